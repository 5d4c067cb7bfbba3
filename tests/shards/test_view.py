from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.decode import Refusal
from shards.rendered import encode
from shards.videos import Clip, find_clips
from shards.view import centre_square, clip_span, frame_times, render_views, view_digest

VIDEOS = Path(__file__).resolve().parents[2] / "../shared/videos"
needs_videos = pytest.mark.skipif(not VIDEOS.is_dir(), reason="../shared/videos is not there")


def clip_of(path: Path, **entries: object) -> Clip:
    values = {"start": None, "end": None, "position": (0, 1), **entries}
    return Clip("000000-0", str(path), None, "g", "train", name=path.name, size=path.stat().st_size, **values)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 frames at 16 fps, 96 x 64 pixels: the frame number is the brightness; a white mark of 8 x 8 pixels stands in
    the top left corner of the centre square, a black one in its bottom right corner."""
    frames = np.stack([np.full((64, 96, 3), 40 + 3 * index, np.uint8) for index in range(64)])
    frames[:, :8, 16:24] = 255
    frames[:, 56:, 72:80] = 0
    path = tmp_path_factory.mktemp("planted") / "a.mp4"
    encode(path, frames, rate=16, options={"crf": "1", "preset": "veryfast", "g": "16"})
    return path


def test_the_right_frames_for_every_backbone(planted: Path) -> None:
    requests = [(8, 64), (16, 64), (32, 64), (16, 224), (5, 32)]
    view, outputs, notes = render_views(clip_of(planted), requests, clip_seconds=2.0)
    assert (view.start, view.end) == pytest.approx((1.0, 3.0)) and not notes
    assert set(outputs) == set(requests)
    for (frames, pixels), video in outputs.items():
        assert video.shape == (frames, 3, pixels, pixels) and video.dtype == torch.uint8
        middle = video[:, :, pixels // 4 : 3 * pixels // 4, pixels // 4 : 3 * pixels // 4].float().mean((1, 2, 3))
        shown = ((middle - 40) / 3).round().int().tolist()
        centres = [1.0 + (index + 0.5) / frames * 2.0 for index in range(frames)]
        assert shown == [int(centre * 16 + 1e-4) for centre in centres]


@pytest.mark.parametrize("pixels", [224, 256, 32])
def test_the_crop_is_the_centre_square(planted: Path, pixels: int) -> None:
    view, outputs, _ = render_views(clip_of(planted), [(2, pixels)], clip_seconds=2.0)
    assert (view.top, view.left, view.side, view.width, view.height) == (0, 16, 64, 96, 64)
    image = outputs[2, pixels][0].float().mean(0)
    eighth = pixels // 8
    assert image[: eighth - 1, : eighth - 1].min() > 205 and image[-eighth + 1 :, -eighth + 1 :].max() < 30
    body = image.clone()
    body[: eighth + 2, : eighth + 2] = body[-eighth - 2 :, -eighth - 2 :] = image[pixels // 2, pixels // 2]
    assert body.max() - body.min() < 12  # the marks lie nowhere else: nothing is shifted, mirrored or stretched


def test_portrait_videos_are_cropped_in_height(tmp_path: Path) -> None:
    frames = np.full((8, 96, 64, 3), 100, np.uint8)
    frames[:, 16:24] = 250
    encode(tmp_path / "a.mp4", frames, rate=16, options={"crf": "20"})
    view, outputs, _ = render_views(clip_of(tmp_path / "a.mp4"), [(1, 64)], clip_seconds=9.0)
    assert (view.top, view.left, view.side) == (16, 0, 64) and (view.start, view.end) == (0.0, 0.5)
    rows = outputs[1, 64][0].float().mean((0, 2))
    assert rows[:7].min() > 230 and rows[9:].max() < 115


def test_resizing_smooths_what_it_cannot_show(tmp_path: Path) -> None:
    frames = np.zeros((4, 128, 128, 3), np.uint8)
    frames[:, :, ::2] = 255  # stripes of one pixel: aliasing would make them beat
    encode(tmp_path / "a.mp4", frames, rate=16, options={"crf": "1"})
    _, outputs, _ = render_views(clip_of(tmp_path / "a.mp4"), [(1, 50)], clip_seconds=2.0)
    assert outputs[1, 50][0, :, 5:-5, 5:-5].float().std() < 12


@pytest.mark.parametrize(
    ("duration", "position", "span"),
    [(10.0, (0, 1), (4.0, 6.0)), (10.0, (0, 2), (1.5, 3.5)), (10.0, (1, 2), (6.5, 8.5)), (1.2, (0, 1), (0.0, 1.2)),
     (3.0, (0, 3), (0.0, 2.0)), (3.0, (2, 3), (1.0, 3.0))],
)  # fmt: skip
def test_default_spans(duration: float, position: tuple[int, int], span: tuple[float, float]) -> None:
    assert clip_span(duration, clip_seconds=2.0, position=position) == pytest.approx(span)


def test_times_are_bin_centres_and_the_square_is_centred() -> None:
    assert frame_times(1.0, 3.0, 4) == pytest.approx([1.25, 1.75, 2.25, 2.75])
    assert centre_square(1920, 1080) == (0, 420, 1080) and centre_square(3, 2) == (0, 0, 2)


def test_given_spans(planted: Path) -> None:
    view, outputs, notes = render_views(clip_of(planted, start=2.5, end=3.5), [(4, 32)], clip_seconds=2.0)
    assert (view.start, view.end) == (2.5, 3.5) and not notes
    levels = outputs[4, 32][:, :, 12:20, 12:20].float().mean((1, 2, 3))
    assert ((levels - 40) / 3).round().int().tolist() == [42, 46, 50, 54]
    view, _, notes = render_views(clip_of(planted, start=3.0, end=9.0), [(4, 32)], clip_seconds=2.0)
    assert view.end == pytest.approx(4.0) and "ends at 9 s, the video at 4.000 s" in notes[0]
    with pytest.raises(Refusal, match=r"a.mp4: the span starts at 4.5 s, the video ends at 4.000 s"):
        render_views(clip_of(planted, start=4.5, end=9.0), [(4, 32)], clip_seconds=2.0)


def test_a_file_that_is_gone(planted: Path) -> None:
    from dataclasses import replace

    with pytest.raises(Refusal, match=r"a\.mp4: cannot be opened: No such file"):
        render_views(replace(clip_of(planted), source="/nowhere/a.mp4"), [(4, 32)], clip_seconds=2.0)
    with pytest.raises(Refusal, match=r"a\.mp4: cannot be read: No such file"):
        render_views(replace(clip_of(planted), source="/nowhere/a.tar", offset=512), [(4, 32)], clip_seconds=2.0)


def test_requests_are_checked(planted: Path) -> None:
    for requests in ([], [(0, 224)]):
        with pytest.raises(ValueError, match="requests are"):
            render_views(clip_of(planted), requests, clip_seconds=2.0)


def test_view_digest() -> None:
    definition, digest = view_digest(clip_seconds=2.0, clips_per_video=1)
    assert definition["clip_seconds"] == 2.0 and len(digest) == 64
    assert digest == view_digest(clip_seconds=2, clips_per_video=1)[1]
    assert digest != view_digest(clip_seconds=3.0, clips_per_video=1)[1]


@needs_videos
@pytest.mark.parametrize("name", ["minimal.mp4", "tiny_av1.mp4", "video_colr_nclx_hdr10.mp4", "demo_skeleton.mp4"])
def test_odd_sizes_and_single_frames(name: str) -> None:
    started = time.perf_counter()
    view, outputs, _ = render_views(clip_of(VIDEOS / "odd" / name), [(16, 256), (32, 224)], clip_seconds=2.0)
    assert time.perf_counter() - started < 20
    video = outputs[16, 256]
    assert view.end > view.start and video.shape == (16, 3, 256, 256)
    assert name not in ("tiny_av1.mp4", "demo_skeleton.mp4") or video.float().std() > 1
    if name in ("minimal.mp4", "tiny_av1.mp4"):  # one frame: a still
        assert torch.equal(video[0], video[15])


@needs_videos
def test_labelled_clips() -> None:
    """Every file is found; a spread of them decodes (all of them take half a minute)."""
    found = find_clips(source="folder", root=VIDEOS / "labelled", group=r"(\w*?fi)(\d)\d\d")
    assert len(found.clips) == 48 and found.labels == ["fight", "noFight"]
    assert all(len(clip.group.split("/")) == 2 for clip in found.clips)
    for clip in found.clips[::6]:
        view, outputs, notes = render_views(clip, [(8, 64)], clip_seconds=2.0)
        assert view.end - view.start > 1 and outputs[8, 64].float().std() > 5 and not notes
