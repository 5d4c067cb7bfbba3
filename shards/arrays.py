"""One array of a file that someone else wrote: .npy, .pt (weights only), .safetensors, HDF5. No pickle is run.

A place is PATH or PATH::ENTRY; an entry names an array of a file that holds several. Shape and type are looked at
before an array is read, for a file of a kilobyte can declare one of gigabytes.
Axes: q tokens of a clip, d channels, t h w token grid.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachers.layout import TokenLayout

INSIDE = "::"  # between a file and an entry of it
FLOATING = re.compile(r"(bfloat|float|BF|F)\d.*")  # as numpy, torch and safetensors call these types
CHUNK_BYTES = 2**28  # of an HDF5 dataset, which are read as a whole
Check = Callable[[Sequence[int], str], None]  # raises ArrayError on a shape or type that is not wanted


class ArrayError(ValueError):
    """An array that cannot be had, or is not what the layout says; only that of `list_entries` names the file."""


class LastFile:
    """What the .pt file that was read last holds, so that a file of many arrays is loaded once; no other stays."""

    def __init__(self) -> None:
        self._state: tuple[Any, ...] = ()
        self._content: object = None

    def load(self, path: Path) -> object:
        """Loads weights only, where possible without reading the tensors into memory."""
        found = os.stat(path)
        state = (path, found.st_size, found.st_mtime_ns)
        if state != self._state:
            self._state, self._content = (), None
            mapped = zipfile.is_zipfile(path)  # not what torch wrote before 1.6
            self._content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            self._state = state
        return self._content


def read_tokens(place: str, layout: TokenLayout, last: LastFile | None = None) -> Tensor:
    """The tokens (q d) float32 of one clip.

    The array may be (q d), (t h w d) where the layout has a grid alone, or (d,) where it has one token. Raises
    ArrayError where it cannot be read, has another shape, is not floating, or not finite. last: shared by the clips of
    an import.
    """
    shapes: list[tuple[int, ...]] = [layout.shape]
    if layout.grid and not layout.special:
        shapes.append((*layout.grid, layout.dim))
    if layout.num_tokens == 1:
        shapes.append((layout.dim,))

    def check(shape: Sequence[int], kind: str) -> None:
        if not FLOATING.fullmatch(kind):
            raise ArrayError(f"holds {kind}; features are floating")
        if tuple(shape) not in shapes:
            raise ArrayError(f"has shape {tuple(shape)}; the layout says {' or '.join(map(str, shapes))}")

    path, _, entry = place.partition(INSIDE)
    try:
        tokens = _reader(Path(path), last or LastFile())(Path(path), entry or None, check).float().reshape(layout.shape)
    except ArrayError:
        raise
    except Exception as error:  # whatever four libraries raise on a damaged file
        raise ArrayError(f"cannot be read: {_in_words(error)}") from error
    if not bool(tokens.isfinite().all()):
        raise ArrayError("holds values that are not finite in float32")
    return tokens


def list_entries(path: Path) -> list[str]:
    """The arrays of a file that holds several, sorted. Raises ArrayError naming one that is damaged, or holds one."""
    listers = {
        ".h5": _list_hdf5,
        ".hdf5": _list_hdf5,
        ".safetensors": _list_safetensors,
        ".pt": _list_pt,
        ".pth": _list_pt,
    }
    suffix = path.suffix.lower()
    if suffix not in listers:
        raise ArrayError(f"{path}: {suffix or 'a file without an extension'} holds no entries")
    try:
        return sorted(listers[suffix](path))
    except ArrayError as error:
        raise ArrayError(f"{path} {error}") from None
    except Exception as error:  # as above
        raise ArrayError(f"{path} cannot be read: {_in_words(error)}") from error


def _in_words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _reader(path: Path, last: LastFile) -> Callable[[Path, str | None, Check], Tensor]:
    def read_pt(path: Path, entry: str | None, check: Check) -> Tensor:
        return _read_pt(last.load(path), entry, check)

    readers = {
        ".npy": _read_npy,
        ".pt": read_pt,
        ".pth": read_pt,
        ".safetensors": _read_safetensors,
        ".h5": _read_hdf5,
        ".hdf5": _read_hdf5,
    }
    if path.suffix.lower() not in readers:
        raise ArrayError(f"is a {path.suffix or 'file without an extension'}; there are {', '.join(readers)}")
    return readers[path.suffix.lower()]


def _read_npy(path: Path, entry: str | None, check: Check) -> Tensor:
    if entry:
        raise ArrayError(f"is one array; it has no entry {entry!r}")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    check(array.shape, array.dtype.name)
    return torch.from_numpy(np.array(array))


def _read_pt(loaded: object, entry: str | None, check: Check) -> Tensor:
    if entry and isinstance(loaded, dict):
        loaded = loaded.get(entry)
    if not isinstance(loaded, Tensor):
        raise ArrayError(f"has no tensor {f'under {entry!r}' if entry else 'alone; name one as FILE::ENTRY'}")
    if loaded.layout != torch.strided or loaded.device.type != "cpu" or loaded.is_quantized or loaded.is_nested:
        what = f"{str(loaded.layout).removeprefix('torch.')} on {loaded.device}, {loaded.dtype}"
        raise ArrayError(f"holds a tensor that is {what}; features are dense numbers: save tensor.to_dense().cpu()")
    check(loaded.shape, str(loaded.dtype).removeprefix("torch."))
    return loaded


def _list_pt(path: Path) -> list[str]:
    loaded = LastFile().load(path)
    if not isinstance(loaded, dict):
        raise ArrayError(f"holds a {type(loaded).__name__}, no dict of arrays; leave out {INSIDE}ENTRY")
    if other := [name for name in loaded if not isinstance(name, str)]:
        kind = type(other[0]).__name__
        raise ArrayError(f"has the entry {other[0]!r}, of type {kind}; entries are named by text: save str keys")
    return list(loaded)


def _read_safetensors(path: Path, entry: str | None, check: Check) -> Tensor:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as tensors:
        name = _one(list(tensors.keys()), entry)
        declared = tensors.get_slice(name)
        check(declared.get_shape(), declared.get_dtype())
        return tensors.get_tensor(name)


def _list_safetensors(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as tensors:
        return list(tensors.keys())


def _read_hdf5(path: Path, entry: str | None, check: Check) -> Tensor:
    with _h5py().File(path, "r") as file:
        name = entry or _one(_datasets(file), None)
        dataset = _follow(file, name)
        if dataset.is_virtual or dataset.external:  # asking for a virtual one's shape already opens the other files
            kind = "virtual" if dataset.is_virtual else "external"
            raise ArrayError(f"{name} is {kind}: its numbers are in another file, which is not read; copy them here")
        check(dataset.shape, dataset.dtype.name)
        if dataset.chunks and (size := prod(dataset.chunks) * dataset.dtype.itemsize) > CHUNK_BYTES:
            raise ArrayError(f"{name} has chunks of {size} bytes; at most {CHUNK_BYTES} are read: repack it")
        return torch.from_numpy(np.asarray(dataset[()]))


def _list_hdf5(path: Path) -> list[str]:
    with _h5py().File(path, "r") as file:
        return _datasets(file)


def _datasets(file: Any) -> list[str]:
    """What stands in the file itself: links that lead elsewhere are not visited."""
    found: list[str] = []
    dataset = _h5py().Dataset
    file.visititems(lambda name, item: found.append(name) if isinstance(item, dataset) else None)
    return found


def _follow(file: Any, name: str) -> Any:
    """The dataset of an entry. A soft or an external link could lead to any file of this machine: it is not taken."""
    h5py = _h5py()
    item = file
    for part in name.strip("/").split("/"):
        link = item.get(part, getlink=True) if isinstance(item, h5py.Group) else None
        if link is None:
            raise ArrayError(f"has no entry {name!r}")
        if not isinstance(link, h5py.HardLink):
            raise ArrayError(f"{name}: {part} is a link to {link.path!r}, not an array of this file; name that one")
        item = item[part]
    if not isinstance(item, h5py.Dataset):
        raise ArrayError(f"{name} is a {type(item).__name__}, no array")
    return item


def _one(names: list[str], entry: str | None) -> str:
    """The entry that is asked for, or the only one."""
    if entry is None and len(names) != 1:
        raise ArrayError(f"holds {len(names)} arrays; name one as FILE::ENTRY")
    if entry is not None and entry not in names:
        raise ArrayError(f"has no entry {entry!r}")
    return entry or names[0]


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise ArrayError("is HDF5, which needs h5py; pip install 'tokenbridge[hdf5]'") from None
    return h5py
