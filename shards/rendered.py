"""Folders of rendered videos: made once, named when whole."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

DONE = ".done.json"
EXACT = "cpu-independent=1"  # without it x264's AVX-512 rate control differs from run to run


def rendered_folder(folder: Path, write: Callable[[Path], None], *, marker: dict[str, Any]) -> Path:
    """`folder`, filled by `write` unless it is there. marker: what it was made from, for people.

    It takes its name only when it is whole, so a rendering that was cut short is not taken for one.
    """
    if (folder / DONE).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
    try:
        write(draft)
        (draft / DONE).write_text(json.dumps(marker))
        draft.chmod(0o755)
        try:
            os.rename(draft, folder)
        except OSError:  # another process was faster, or a folder without its marker lies there
            if not (folder / DONE).is_file():
                shutil.rmtree(folder)
                os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def encode(path: Path, frames: np.ndarray, *, rate: int, options: dict[str, str]) -> None:
    """(f, h, w, 3) uint8 -> H.264 in the container that the name's extension says; the same frames, the same bytes."""
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(rate), options={"x264-params": EXACT} | options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
