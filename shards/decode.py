"""PyAV: timestamps in, frames out.

Nothing that a header says about counts or lengths is believed: `scan` reads the packets, `read_frames` decodes by
presentation time. Seconds count from the first frame of the video. A file either gives the right frames or a Refusal.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

Source = str | BytesIO
Sink = Callable[[range, np.ndarray], None]

BROKEN = (av.FFmpegError, OSError, ValueError, MemoryError)  # what libav's wrappers raise on a bad file
MAX_PIXELS = 2**26  # of a frame; a header that promises more is taken for damage
MAX_SILENT = 1000  # packets in a row without a frame
SEEK_AFTER = 2.0  # seconds; decoding this much is cheaper than being clever
TOLERANCE = 1e-6  # seconds; a frame due exactly at t counts as shown at t
REPAIRED = "presentation times are missing or run backwards: frames are taken in the decoder's order"


class Refusal(Exception):
    """A video that cannot be used: its name and the reason."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class _Missed(Exception):
    """A seek landed behind the frame that was wanted."""


class _Irregular(Exception):
    """A decoded frame has no presentation time, or an earlier one than its predecessor."""


@dataclass(frozen=True)
class Scan:
    """What the packets of a file's best video stream say.

    duration: seconds from the first frame to the end of the last. origin: presentation time of the first frame, in
    seconds of the container. keyframes: seconds from which decoding can start; empty where seeking is not to be
    trusted. rate: frames per second, for files without times.
    """

    source: Source
    name: str
    duration: float
    origin: float
    keyframes: tuple[float, ...]
    rate: float
    timed: bool
    notes: tuple[str, ...]


def _why(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextmanager
def _opened(source: Source, name: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its best video stream, ready to decode on one thread."""
    if isinstance(source, BytesIO):
        source.seek(0)
    try:  # file only: a playlist in disguise must not reach for the network
        options = {"protocol_whitelist": "file"}
        container = cast(InputContainer, av.open(source, metadata_errors="replace", options=options))
    except BROKEN as error:
        raise Refusal(name, f"cannot be opened: {_why(error)}") from error
    with container:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & av.stream.Disposition.attached_pic:
            kinds = ", ".join(sorted({other.type for other in container.streams})) or "none"
            raise Refusal(name, f"has no video stream (streams: {kinds})")
        if stream.codec_context is None or stream.time_base is None:
            raise Refusal(name, "has a video stream that no decoder here reads")
        context = stream.codec_context
        if context.width * context.height > MAX_PIXELS:
            raise Refusal(name, f"frames of {context.width} x {context.height} are over {MAX_PIXELS} pixels")
        context.thread_type = "NONE"  # files are decoded side by side; threads within one would report errors late
        context.thread_count = 1
        context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}  # no concealment of damage
        yield container, stream


def scan(source: Source, *, name: str) -> Scan:
    """Reads all packets, decodes none. Raises Refusal on a file without a readable video stream."""
    times, ends, keys, count, timed, notes = [], [], [], 0, True, []
    with _opened(source, name) as (container, stream):
        base = float(stream.time_base or 0)
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        try:
            for packet in container.demux(stream):
                if not packet.size or packet.is_discard:
                    continue
                count += 1
                if packet.pts is None:
                    timed = False
                    continue
                times.append(packet.pts * base)
                ends.append(packet.duration * base if packet.duration else 0.0)
                if packet.is_keyframe:
                    keys.append(packet.pts * base)
        except BROKEN as error:
            notes.append(f"packet {count + 1} cannot be read: {_why(error)}")
        promised = stream.duration * base if stream.duration else 0.0
        seekable = "avi" not in container.format.name  # stores no presentation times
    if not count:
        raise Refusal(name, notes[0] if notes else "holds no video packets")
    if not timed:
        return Scan(source, name, count / rate, 0.0, (), rate, False, (*notes, REPAIRED))
    origin, last = min(times), max(range(count), key=times.__getitem__)
    tail = ends[last] or (statistics.median(np.diff(sorted(times))) if count > 1 else 0.0) or 1 / rate
    duration = times[last] + float(tail) - origin
    if promised > 1.25 * duration + 0.5:
        notes.append(f"the header promises {promised:.1f} s, the packets end after {duration:.1f} s")
    keyframes = tuple(sorted(key - origin for key in keys)) if seekable else ()
    return Scan(source, name, duration, origin, keyframes, rate, True, tuple(notes))


def read_frames(video: Scan, times: Sequence[float], *, sink: Sink) -> list[str]:
    """Decodes once and hands over the frame shown at each time: the last one due at or before it, else the first.

    times: ascending seconds. sink(indices, image): called with a range of indices into `times` and the upright
    (h, w, 3) uint8 RGB image shown at them; an index may come again, the later call counts. One frame is in memory at
    a time. Returns notes on repairs. Raises Refusal when anything on the way to the last time cannot be decoded.
    """
    if not times or any(late < early for early, late in pairwise(times)):
        raise ValueError(f"times must be ascending and at least one, got {list(times)[:8]}")
    if video.timed:
        reachable = bisect_right(video.keyframes, times[0] + TOLERANCE)
        key = video.keyframes[reachable - 1] if reachable else 0.0
        for start in [key, None] if key > SEEK_AFTER else [None]:
            try:
                _serve(video, times, sink, start=start)
                return []
            except _Irregular:
                break
            except (_Missed, Refusal):
                if start is None:
                    raise
    _serve(video, times, sink, timeline=_timeline(video))
    return [REPAIRED]


def _serve(
    video: Scan, times: Sequence[float], sink: Sink, *, start: float | None = None, timeline: list[float] | None = None
) -> None:
    """One pass, from the keyframe at `start` seconds or from the beginning. timeline: replaces the file's times."""
    with _opened(video.source, video.name) as (container, stream):
        base = float(stream.time_base or 0)
        first = None if start is None else round((start + video.origin) / base)
        if first is not None:  # some containers land late: aim low, what comes before `first` is not decoded
            try:
                container.seek(first - round(1 / base), stream=stream)
            except BROKEN as error:
                raise _Missed from error
        served, held, shown_at = 0, None, float("-inf")
        for index, frame in enumerate(_decoded(video, container, stream, first)):
            if timeline is not None:
                time = timeline[min(index, len(timeline) - 1)]
            elif frame.pts is None or frame.pts * base - video.origin < shown_at:
                raise _Irregular
            else:
                time = frame.pts * base - video.origin
            due = bisect_left(times, time - TOLERANCE)
            if held is None and due and start is not None:
                raise _Missed
            if frame.is_corrupt:
                raise Refusal(video.name, f"the frame at {time:.3f} s is damaged")
            if due > served:
                sink(range(served, due), _upright(held or frame, video, times[served]))
                served = due
                if served == len(times):
                    return
            held, shown_at = frame, time
        if held is None:
            if start is not None:
                raise _Missed
            raise Refusal(video.name, "no frame can be decoded")
        sink(range(served, len(times)), _upright(held, video, times[served]))


def _decoded(
    video: Scan, container: InputContainer, stream: VideoStream, first: int | None = None
) -> Iterator[av.VideoFrame]:
    """Frames in the decoder's order, all of one size; the work between two of them is bounded.

    first: presentation time of the keyframe to start at. Packets shown before it are left out, wherever they stand:
    behind the keyframe they are pictures that lean on frames before it (open groups of pictures).
    """
    count = silent = 0
    size: tuple[int, int] | None = None
    try:
        for packet in container.demux(stream):
            if first is not None and packet.pts is not None and packet.pts < first:
                continue
            frames = packet.decode()
            silent = 0 if frames else silent + 1
            if silent > MAX_SILENT:
                raise Refusal(video.name, f"{count} frames decoded, then none in {MAX_SILENT} packets")
            for frame in frames:
                size = size or (frame.width, frame.height)
                if size != (frame.width, frame.height):
                    change = f"{size[0]} x {size[1]} to {frame.width} x {frame.height}"
                    raise Refusal(video.name, f"the frame size changes from {change} after {count} frames")
                count += 1
                yield frame
    except BROKEN as error:
        raise Refusal(video.name, f"{count} frames decoded, then: {_why(error)}") from error


def _timeline(video: Scan) -> list[float]:
    """Times for a file whose own are out of order: the decoder's order is the display order, so its times, sorted;
    where some are missing, even steps."""
    with _opened(video.source, video.name) as (container, stream):
        base = float(stream.time_base or 0)
        stamps = [frame.pts for frame in _decoded(video, container, stream)]
    known = sorted(stamp for stamp in stamps if stamp is not None)
    if len(known) < len(stamps) or not video.timed:
        return [index / video.rate for index in range(len(stamps))]
    return [stamp * base - video.origin for stamp in known]


def _upright(frame: av.VideoFrame, video: Scan, time: float) -> np.ndarray:
    """(h, w, 3) uint8 RGB as a player shows it: the container's display matrix (rotation, mirror) applied."""
    try:
        image = frame.to_ndarray(format="rgb24")
    except BROKEN as error:
        raise Refusal(video.name, f"the frame shown at {time:.3f} s does not convert to RGB: {_why(error)}") from error
    sides: Any = frame.side_data
    matrix = sides.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = image.transpose(1, 0, 2), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
