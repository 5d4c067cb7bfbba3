"""One array of a file that someone else wrote: .npy, .pt (weights only), .safetensors, HDF5. No pickle is run.

A place is PATH or PATH::ENTRY; an entry names an array of a file that holds several.
Axes: q tokens of a clip, d channels, t h w token grid.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from teachers.layout import TokenLayout

INSIDE = "::"  # between a file and an entry of it


class ArrayError(ValueError):
    """An array that cannot be had, or is not what the layout says; the message does not name the file."""


def read_tokens(place: str, layout: TokenLayout) -> Tensor:
    """The tokens (q d) float32 of one clip.

    The array may be (q d), (t h w d) where the layout has a grid alone, or (d,) where it has one token. Raises
    ArrayError where it cannot be read, has another shape, is not floating, or not finite.
    """
    path, _, entry = place.partition(INSIDE)
    array = read_array(Path(path), entry or None)
    if not array.is_floating_point():
        raise ArrayError(f"holds {array.dtype}; features are floating")
    shapes = [layout.shape]
    if layout.grid and not layout.special:
        shapes.append((*layout.grid, layout.dim))
    if layout.num_tokens == 1:
        shapes.append((layout.dim,))
    if tuple(array.shape) not in shapes:
        raise ArrayError(f"has shape {tuple(array.shape)}; the layout says {' or '.join(map(str, shapes))}")
    tokens = array.float().reshape(layout.shape)
    if not bool(tokens.isfinite().all()):
        raise ArrayError("holds values that are not finite in float32")
    return tokens


def read_array(path: Path, entry: str | None) -> Tensor:
    """Raises ArrayError where the file is damaged, needs an entry, or is of a kind that is not read."""
    try:
        return _reader(path)(path, entry)
    except ArrayError:
        raise
    except Exception as error:  # whatever four libraries raise on a damaged file
        raise ArrayError(f"cannot be read: {' '.join(str(error).split())[:200] or type(error).__name__}") from error


def list_entries(path: Path) -> list[str]:
    """The arrays of a file that holds several, sorted. Raises ArrayError for a kind that holds one."""
    suffix = path.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        found: list[str] = []
        with _h5py().File(path, "r") as file:
            file.visititems(lambda name, item: found.append(name) if hasattr(item, "shape") else None)
        return sorted(found)
    if suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as tensors:
            return sorted(tensors.keys())
    if suffix in (".pt", ".pth"):
        return sorted(map(str, _load_pt(path))) if isinstance(_load_pt(path), dict) else []
    raise ArrayError(f"{path}: {suffix or 'a file without an extension'} holds no entries")


def _reader(path: Path) -> Callable[[Path, str | None], Tensor]:
    readers = {
        ".npy": _read_npy,
        ".pt": _read_pt,
        ".pth": _read_pt,
        ".safetensors": _read_safetensors,
        ".h5": _read_hdf5,
        ".hdf5": _read_hdf5,
    }
    if path.suffix.lower() not in readers:
        raise ArrayError(f"is a {path.suffix or 'file without an extension'}; there are {', '.join(readers)}")
    return readers[path.suffix.lower()]


def _read_npy(path: Path, entry: str | None) -> Tensor:
    if entry:
        raise ArrayError(f"is one array; it has no entry {entry!r}")
    return torch.from_numpy(np.load(path, allow_pickle=False))


def _load_pt(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_pt(path: Path, entry: str | None) -> Tensor:
    loaded = _load_pt(path)
    if entry and isinstance(loaded, dict):
        loaded = loaded.get(entry)
    if not isinstance(loaded, Tensor):
        raise ArrayError(f"has no tensor {f'under {entry!r}' if entry else 'alone; name one as FILE::ENTRY'}")
    return loaded


def _read_safetensors(path: Path, entry: str | None) -> Tensor:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as tensors:
        return tensors.get_tensor(_one(list(tensors.keys()), entry))


def _read_hdf5(path: Path, entry: str | None) -> Tensor:
    with _h5py().File(path, "r") as file:
        return torch.from_numpy(np.asarray(file[entry or _one(list_entries(path), None)][()]))


def _one(names: list[str], entry: str | None) -> str:
    """The entry that is asked for, or the only one."""
    if entry is None and len(names) != 1:
        raise ArrayError(f"holds {len(names)} arrays; name one as FILE::ENTRY")
    if entry is not None and entry not in names:
        raise ArrayError(f"has no entry {entry!r}")
    return entry or names[0]


def _h5py():  # type: ignore[no-untyped-def]
    try:
        import h5py
    except ImportError:
        raise ArrayError("is HDF5, which needs h5py; pip install 'tokenbridge[hdf5]'") from None
    return h5py
