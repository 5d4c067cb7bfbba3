from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from shards import decode
from shards.decode import Refusal, read_frames, scan
from shards.rendered import encode

VIDEOS = Path(__file__).resolve().parents[2] / "../shared/videos"
needs_videos = pytest.mark.skipif(not VIDEOS.is_dir(), reason="../shared/videos is not there")

GOOD = {  # name: (frames, width, height as displayed, seconds)
    "av1_video.mkv": (125, 640, 360, 5.0),
    "bbaf2n.mpg": (75, 360, 288, 3.0),
    "bikes.mp4": (250, 640, 272, 10.0),
    "bt709_full_range.mp4": (30, 1280, 720, 1.0),
    "demo_skeleton.mp4": (72, 1920, 1080, 2.567),
    "flipping_a_pancake.mkv": (310, 426, 240, 10.333),
    "h265_10bits.mp4": (30, 200, 200, 1.0),
    "hevc_white_frame.mp4": (1, 640, 480, 0.04),
    "minimal.mp4": (1, 320, 240, 0.04),
    "nasa_13013.mp4": (390, 480, 270, 13.013),
    "test.avi": (164, 320, 240, 6.56),
    "tiny_av1.mp4": (1, 64, 64, 0.042),
    "unordered.mov": (4, 50, 50, 0.125),
    "video_180.mov": (3, 568, 320, 0.1),
    "video_90.mov": (3, 320, 568, 0.1),
    "video_colr_nclx_hdr10.mp4": (3, 2, 2, 0.12),
}
REFUSED = {
    "chunk_out_of_range.mp4": "cannot be opened",
    "corrupted.mp4": "28 frames decoded, then",
    "opus_audioinit.mp4": "no video stream",
}


def frames_at(video: decode.Scan, times: list[float]) -> tuple[list[np.ndarray], list[str]]:
    images: list[np.ndarray | None] = [None] * len(times)

    def sink(due: range, image: np.ndarray) -> None:
        for index in due:
            images[index] = image

    notes = read_frames(video, times, sink=sink)
    assert all(image is not None for image in images)
    return images, notes  # type: ignore[return-value]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many frames each pass decodes."""
    passes: list[int] = []
    plain = decode._decoded

    def counting(*args):  # type: ignore[no-untyped-def]
        passes.append(0)
        for frame in plain(*args):
            passes[-1] += 1
            yield frame

    monkeypatch.setattr(decode, "_decoded", counting)
    return passes


def level(image: np.ndarray) -> int:
    """The frame number that `numbered` wrote."""
    return round((float(image.mean()) - 20) / 3)


def numbered(path: Path, frames: int = 60, rate: int = 10, size: int = 32, **options: str) -> Path:
    """A video whose frame number is its brightness."""
    images = np.stack([np.full((size, size, 3), 20 + 3 * index, np.uint8) for index in range(frames)])
    encode(path, images, rate=rate, options={"crf": "1", "preset": "veryfast", **options})
    return path


@needs_videos
def test_every_odd_file_has_an_expected_outcome() -> None:
    files = {path.name for path in (VIDEOS / "odd").iterdir() if path.suffix != ".pt"}
    assert files == set(GOOD) | set(REFUSED) and len(files) == 19


@needs_videos
@pytest.mark.parametrize("name", GOOD)
def test_odd_files_give_their_frames(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames taken at the centres of the true frame times are the frames of a plain sequential decode."""
    path = str(VIDEOS / "odd" / name)
    frames, width, height, seconds = GOOD[name]
    video = scan(path, name=name)
    assert video.duration == pytest.approx(seconds, abs=2e-3)
    with av.open(path) as container:
        plain = list(container.decode(container.streams.best("video")))
    assert len(plain) == frames
    stamps = sorted(float(frame.pts * frame.time_base) for frame in plain)
    bounds = [stamp - stamps[0] for stamp in stamps] + [video.duration]
    picks = sorted({0, frames // 3, frames // 2, frames - 1})
    passes = counted(monkeypatch)
    images, _ = frames_at(video, [(bounds[pick] + bounds[pick + 1]) / 2 for pick in picks])
    assert sum(passes) <= 2 * frames + 16
    for pick, image in zip(picks, images, strict=True):
        assert image.shape == (height, width, 3)
        if "video_" not in name or "hdr" in name:  # rotation has its own test
            assert np.array_equal(image, plain[pick].to_ndarray(format="rgb24")), pick


@needs_videos
@pytest.mark.parametrize("name", REFUSED)
def test_odd_files_that_are_refused(name: str) -> None:
    with pytest.raises(Refusal, match=f"{name}: .*{REFUSED[name]}") as caught:
        video = scan(str(VIDEOS / "odd" / name), name=name)
        frames_at(video, [video.duration / 2, video.duration - 0.01])
    assert caught.value.name == name


@needs_videos
def test_what_comes_before_the_damage_is_right() -> None:
    video = scan(str(VIDEOS / "odd" / "corrupted.mp4"), name="corrupted.mp4")
    images, _ = frames_at(video, [0.0, 1.05, 2.0])
    assert len(images) == 3
    with pytest.raises(Refusal, match="28 frames decoded"):
        frames_at(video, [0.0, 2.9])


@needs_videos
def test_reference_frames_of_the_best_stream_bit_for_bit() -> None:
    video = scan(str(VIDEOS / "odd" / "nasa_13013.mp4"), name="nasa")
    images, _ = frames_at(video, [index * 1001 / 30000 for index in range(3)])
    for index, image in enumerate(images):
        file = VIDEOS / "odd" / f"nasa_13013.mp4.stream3.frame{index:06d}.pt"
        assert torch.equal(torch.from_numpy(image), torch.load(file, weights_only=True))


@needs_videos
@pytest.mark.parametrize(("name", "turns"), [("video_90.mov", -1), ("video_180.mov", -2)])
def test_rotation_is_applied(name: str, turns: int) -> None:
    path = str(VIDEOS / "odd" / name)
    with av.open(path) as container:
        plain = next(container.decode(video=0)).to_ndarray(format="rgb24")
    images, _ = frames_at(scan(path, name=name), [0.0])
    assert np.array_equal(images[0], np.rot90(plain, turns)) and not np.array_equal(images[0], np.rot90(plain, 1))


@needs_videos
def test_full_range_is_not_stretched() -> None:
    path = str(VIDEOS / "odd" / "bt709_full_range.mp4")
    images, _ = frames_at(scan(path, name="full"), [0.5])
    with av.open(path) as container:
        frame = list(container.decode(video=0))[15]
    planes = frame.to_ndarray().astype(float)  # (h * 3 / 2, w): Y, then U and V at half the size
    luma, (u, v) = planes[:720], planes[720:].reshape(2, 360, 640).repeat(2, 1).repeat(2, 2) - 128
    expected = np.stack([luma + 1.5748 * v, luma - 0.1873 * u - 0.4681 * v, luma + 1.8556 * u], -1).clip(0, 255)
    assert np.abs(images[0] - expected).mean() < 1
    assert images[0].min() == 0


@needs_videos
def test_backward_times_are_repaired_with_a_note() -> None:
    """test.avi: the decoder's order is the display order; its k-th frame is shown from k / 25 s on."""
    path = str(VIDEOS / "odd" / "test.avi")
    with av.open(path) as container:
        plain = list(container.decode(video=0))
    assert any(late.pts < early.pts for early, late in pairwise(plain))
    picks = list(range(0, 164, 7))
    images, notes = frames_at(scan(path, name="test.avi"), [(pick + 0.5) / 25 for pick in picks])
    assert notes == [decode.REPAIRED]
    assert all(np.array_equal(i, plain[p].to_ndarray(format="rgb24")) for p, i in zip(picks, images, strict=True))


@needs_videos
@pytest.mark.parametrize("name", ["bikes.mp4", "nasa_13013.mp4", "flipping_a_pancake.mkv", "bbaf2n.mpg"])
def test_seeking_gives_the_frames_of_decoding_from_the_start(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    video = scan(str(VIDEOS / "odd" / name), name=name)
    assert len(video.keyframes) > 1
    passes = counted(monkeypatch)
    for start in np.linspace(video.keyframes[-1] - 0.2, video.duration - 0.3, 4):
        times = [float(start) + 0.04 * index for index in range(7)]
        sought, _ = frames_at(video, times)
        plain, _ = frames_at(replace(video, keyframes=()), times)
        assert all(map(np.array_equal, sought, plain))
    assert len(passes) == 8 and passes[-2] < passes[-1] / 2


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi", ".mov"])
def test_the_frame_shown_at_a_time(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame of a file with B-frames and open groups of pictures, from the start and after a seek."""
    path = numbered(tmp_path / f"a{suffix}", g="12", bf="3", x264opts="open-gop=1")
    video = scan(str(path), name="a")
    assert video.duration == pytest.approx(6.0, abs=0.11)
    images, _ = frames_at(video, [-1.0, 0.0, 0.05, 0.0999, 0.1002, 3.45, 5.95, 5.95, 99.0])
    assert [level(image) for image in images] == [0, 0, 0, 0, 1, 34, 59, 59, 59]
    for first in range(22, 55, 4):
        images, _ = frames_at(video, [(first + index + 0.5) / 10 for index in range(5)])
        assert [level(image) for image in images] == [first + index for index in range(5)]


def test_a_seek_that_misses_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = scan(str(numbered(tmp_path / "a.mp4", g="12")), name="a")
    plain, passes = decode._decoded, []

    def late(*args):  # type: ignore[no-untyped-def]
        passes.append(1)
        for index, frame in enumerate(plain(*args)):
            if len(passes) > 1 or index > 12:
                yield frame

    monkeypatch.setattr(decode, "_decoded", late)
    images, _ = frames_at(video, [4.05, 4.15])
    assert [level(image) for image in images] == [40, 41] and len(passes) == 2


def test_a_file_without_times(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.h264", frames=50, rate=25, bf="2")
    video = scan(str(path), name="a")
    images, notes = frames_at(video, [(index + 0.5) / 25 for index in range(0, 50, 9)])
    assert [level(image) for image in images] == list(range(0, 50, 9))
    assert notes == [decode.REPAIRED] and video.duration == pytest.approx(2.0)


def test_variable_frame_rate(tmp_path: Path) -> None:
    path, shown = tmp_path / "a.mkv", [0, 100, 150, 1150, 1200, 3000]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"crf": "1"})
        stream.width = stream.height = 32
        for index, time in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 + 3 * index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    times = [0.05, 0.11, 0.16, 1.1, 1.16, 2.9, 3.0]
    images, _ = frames_at(scan(str(path), name="a"), times)
    assert [level(image) for image in images] == [0, 1, 2, 2, 3, 4, 5]


def test_bytes_and_paths_are_the_same(tmp_path: Path) -> None:
    path = numbered(tmp_path / "ünï codé #1.mp4", g="10")
    from_bytes = scan(BytesIO(path.read_bytes()), name="a")
    from_path = scan(str(path), name="a")
    for times in ([0.5, 1.5], [4.05, 5.05]):
        for one, other in zip(frames_at(from_bytes, times)[0], frames_at(from_path, times)[0], strict=True):
            assert np.array_equal(one, other) and level(one) in (5, 15, 40, 50)


def test_a_frame_size_that_changes(tmp_path: Path) -> None:
    small, large = numbered(tmp_path / "a.ts", 20), numbered(tmp_path / "b.ts", 20, size=64)
    (tmp_path / "c.ts").write_bytes(small.read_bytes() + large.read_bytes())
    with pytest.raises(Refusal, match=r"changes from 32 x 32 to 64 x 64 after 20 frames"):
        frames_at(scan(str(tmp_path / "c.ts"), name="c"), [0.0, 99.0])


@needs_videos
@pytest.mark.parametrize(
    ("name", "trial"),
    [("bikes.mp4", 0), ("bbaf2n.mpg", 0), ("test.avi", 0), ("av1_video.mkv", 0)]
    + [("h265_10bits.mp4", 7)]  # only a strict decoder tells
    + [("flipping_a_pancake.mkv", 4)],  # only the frame's flag tells
)
def test_damage_inside_the_span_is_refused_not_concealed(name: str, trial: int) -> None:
    """400 bytes overwritten. Some damage no decoder can see: entropy coding makes another valid picture of it."""
    data, rng = bytearray((VIDEOS / "odd" / name).read_bytes()), np.random.default_rng(trial)
    place = len(data) // 2 + 1000 * trial
    data[place : place + 400] = rng.bytes(400)
    video = replace(scan(BytesIO(bytes(data)), name=name), keyframes=())
    with pytest.raises(Refusal, match=r"frames decoded, then|is damaged"):
        frames_at(video, [0.0, video.duration])
    if name != "test.avi":  # whose repair needs all of it
        assert len(frames_at(video, [0.0, 0.2])[0]) == 2


def test_a_file_cut_in_the_middle(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.mp4", movflags="+faststart")
    data = path.read_bytes()
    with (
        av.open(str(path)) as source,
        av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "+faststart"}) as copy,
    ):
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    data = (tmp_path / "b.mp4").read_bytes()
    video = scan(BytesIO(data[: len(data) - 1200]), name="b")
    assert video.duration < 5 and any("the header promises 6.0 s" in note for note in video.notes)
    images, _ = frames_at(video, [0.05, 1.05])
    assert [level(image) for image in images] == [0, 10]


def test_garbage_is_refused_quickly() -> None:
    rng = np.random.default_rng(1)
    for size in (0, 1, 100, 100_000):
        with pytest.raises(Refusal, match=r"junk: cannot be opened|junk: has"):
            scan(BytesIO(rng.bytes(size)), name="junk")


@needs_videos
def test_every_prefix_and_flipped_byte_ends(tmp_path: Path) -> None:
    """Frames or a refusal, whatever the bytes."""
    data = (VIDEOS / "odd" / "unordered.mov").read_bytes()
    rng, outcomes = np.random.default_rng(2), []
    damaged = [data[:size] for size in range(0, len(data), 97)]
    for _ in range(60):
        other = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            other[place] = rng.integers(0, 256)
        damaged.append(bytes(other))
    for content in damaged:
        try:
            video = scan(BytesIO(content), name="x")
            frames_at(video, [0.0, video.duration / 2])
            outcomes.append(True)
        except Refusal:
            outcomes.append(False)
    assert True in outcomes and False in outcomes


def test_silence_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_SILENT", 5)
    path = numbered(tmp_path / "a.mkv", 40, **{"rc-lookahead": "0"})
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mkv"), "w") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for index, packet in enumerate(source.demux(source.streams.video[0])):
            if packet.dts is not None and index > 0:  # no keyframe: the decoder never starts
                packet.stream = stream
                copy.mux(packet)
    with pytest.raises(Refusal, match=r"0 frames decoded, then"):
        frames_at(scan(str(tmp_path / "b.mkv"), name="b"), [0.0])


def test_frames_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    with pytest.raises(Refusal, match=r"32 x 32 are over 1000 pixels"):
        scan(str(numbered(tmp_path / "a.mp4", 3)), name="a")


def test_times_must_ascend(tmp_path: Path) -> None:
    video = scan(str(numbered(tmp_path / "a.mp4", 3)), name="a")
    for times in ([], [1.0, 0.5]):
        with pytest.raises(ValueError, match="ascending"):
            frames_at(video, times)


def test_a_refusal_survives_a_process_boundary() -> None:
    import copy

    refusal = copy.copy(Refusal("a.mp4", "is odd"))
    assert str(refusal) == "a.mp4: is odd" and refusal.reason == "is odd"
