"""One clip view: a time span and a square crop that all backbones of a clip share.

Axes: f frames, h w pixels of the displayed frame, p pixels of a backbone's input.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shards.decode import Refusal, read_frames, scan
from shards.videos import Clip, open_source

Request = tuple[int, int]  # frames, pixels
SLACK = 0.05  # seconds by which a given end may lie past the video's without a word


@dataclass(frozen=True)
class ClipView:
    """What is seen of a video: seconds from its first frame, and a square in pixels of the displayed frame."""

    start: float
    end: float
    top: int
    left: int
    side: int
    width: int
    height: int


def view_digest(*, clip_seconds: float, clips_per_video: int) -> tuple[dict[str, Any], str]:
    """What defines a view, as a dict for the manifest, and its hex digest. Another rule needs another version."""
    definition = {
        "version": 1,
        "clip_seconds": float(clip_seconds),
        "clips_per_video": int(clips_per_video),
        "span": "given, else clip_seconds around the centre of the clip's share of the video, else the whole video",
        "crop": "centre square",
        "frames": "shown at bin centres",
        "resize": "bilinear, antialias, rounded to uint8",
    }
    return definition, hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()


def clip_span(duration: float, *, clip_seconds: float, position: tuple[int, int] = (0, 1)) -> tuple[float, float]:
    """Start and end in seconds of clip `position` = (index, count) of a video.

    The video is cut into `count` equal shares; the clip is centred on its share, and shifted inwards where it would
    leave the video. A video shorter than a clip is seen whole.
    """
    if duration <= clip_seconds:
        return 0.0, duration
    index, count = position
    start = (index + 0.5) / count * duration - clip_seconds / 2
    start = min(max(start, 0.0), duration - clip_seconds)
    return start, start + clip_seconds


def frame_times(start: float, end: float, frames: int) -> list[float]:
    """Seconds of the centres of `frames` equal bins of the span."""
    return [start + (index + 0.5) / frames * (end - start) for index in range(frames)]


def centre_square(width: int, height: int) -> tuple[int, int, int]:
    """(top, left, side) of the largest centred square."""
    side = min(width, height)
    return (height - side) // 2, (width - side) // 2, side


def resize(image: Tensor, pixels: int) -> Tensor:
    """(3, h, w) uint8 -> (3, p, p) uint8."""
    if image.shape[-2:] == (pixels, pixels):
        return image
    size = (pixels, pixels)
    scaled = F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return scaled[0].round_().clamp_(0, 255).to(torch.uint8)


def render_views(
    clip: Clip, requests: Iterable[Request], *, clip_seconds: float
) -> tuple[ClipView, dict[Request, Tensor], list[str]]:
    """One decode of the clip for all backbones.

    requests: the (frames, pixels) that the backbones take. Returns the view, a (f, 3, p, p) uint8 RGB tensor for every
    request, and notes on what was odd about the file. Raises Refusal, with the clip's name, when the span cannot be
    decoded as a whole.
    """
    requests = sorted(set(requests))
    if not requests or min(min(request) for request in requests) < 1:
        raise ValueError(f"requests are {requests}; at least one (frames, pixels) of positive counts is needed")
    try:
        video = scan(open_source(clip), name=clip.name)
    except OSError as error:
        raise Refusal(clip.name, f"cannot be read: {error.strerror or error}") from error
    start, end, notes = _span(clip, video.duration, clip_seconds)
    outputs = {(f, p): torch.zeros(f, 3, p, p, dtype=torch.uint8) for f, p in requests}
    slots: dict[float, list[tuple[Request, int]]] = {}
    for request in requests:
        for index, time in enumerate(frame_times(start, end, request[0])):
            slots.setdefault(time, []).append((request, index))
    times = sorted(slots)
    seen: list[ClipView] = []

    def place(due: range, image: np.ndarray) -> None:
        height, width, _ = image.shape
        top, left, side = centre_square(width, height)
        seen[:] = [ClipView(start, end, top, left, side, width, height)]
        square = torch.from_numpy(np.ascontiguousarray(image[top : top + side, left : left + side])).permute(2, 0, 1)
        sized: dict[int, Tensor] = {}
        for request, index in (slot for moment in due for slot in slots[times[moment]]):
            pixels = request[1]
            if pixels not in sized:
                sized[pixels] = resize(square, pixels)
            outputs[request][index] = sized[pixels]

    notes += read_frames(video, times, sink=place)
    return seen[0], outputs, list(dict.fromkeys([*video.notes, *notes]))


def _span(clip: Clip, duration: float, clip_seconds: float) -> tuple[float, float, list[str]]:
    """The clip's own span held against the video's length, or the default one."""
    if clip.start is None or clip.end is None:
        return *clip_span(duration, clip_seconds=clip_seconds, position=clip.position), []
    if clip.start >= duration:
        raise Refusal(clip.name, f"the span starts at {clip.start:g} s, the video ends at {duration:.3f} s")
    late = clip.end > duration + SLACK
    notes = [f"the span ends at {clip.end:g} s, the video at {duration:.3f} s: cut there"] if late else []
    return clip.start, min(clip.end, duration), notes
