"""Files that stand for videos, and what names them: folders, tables, tars."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path


def fill(root: Path, *names: str) -> Path:
    """Files of distinct content; nothing here is decoded."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"video {name}".encode())
    return root


def write_csv(root: Path, *rows: str, header: str = "path,label,split,group,start,end") -> Path:
    path = root / "clips.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def write_tar(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
