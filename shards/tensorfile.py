"""One safetensors file as bytes, laid out so that its tensors start on a 64-byte boundary.

Written by hand because a shard needs the header's length under control (spaces pad it) and the same bytes every time
(the library keeps metadata in a hash map). What is written is plain safetensors, and the library reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any, TypeAlias

import torch
import xxhash
from torch import Tensor

ALIGNMENT = 64
DTYPES = {"I8": torch.int8, "F16": torch.float16, "F32": torch.float32}
CHECKSUM = "xxh3_64"  # entry of a file's metadata
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Spec: TypeAlias = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]  # name -> dtype and shape, in file order


def spec_of(tensors: Mapping[str, Tensor]) -> Spec:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def sizes(spec: Spec) -> dict[str, int]:
    """Bytes of every tensor."""
    return {name: dtype.itemsize * prod(shape) for name, (dtype, shape) in spec.items()}


def describe(spec: Spec) -> dict[str, dict[str, Any]]:
    """The entries of a safetensors header: dtype, shape and data_offsets (from the first byte after the header)."""
    entries: dict[str, dict[str, Any]] = {}
    start = 0
    for (name, (dtype, shape)), size in zip(spec.items(), sizes(spec).values(), strict=True):
        entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    return entries


def header(spec: Spec, *, metadata: Mapping[str, str] | None = None) -> bytes:
    """Length, JSON and padding: what stands before the first tensor. Its own length is a multiple of 64."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    text = json.dumps(entries | describe(spec), separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, as bytes that can be read, written and filled."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def pack(tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> list[bytes | memoryview]:
    """A whole file as pieces, to be written one after the other. The tensors' memory is not copied."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return [header(spec_of(contiguous), metadata=metadata), *map(as_bytes, contiguous.values())]


def pack_alone(tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> list[bytes | memoryview]:
    """A file that no index vouches for: the checksum of its tensors stands in its own metadata."""
    _, *pieces = pack(tensors)
    return pack(tensors, metadata={**(metadata or {}), CHECKSUM: checksum(b"".join(pieces))})


def checksum(data: bytes) -> str:
    return f"{xxhash.xxh3_64_intdigest(data):016x}"


def metadata_of(data: bytes) -> tuple[dict[str, str], bytes]:
    """The metadata of a whole file, and the bytes of its tensors. Raises ValueError and its kin on a damaged header."""
    size = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + size]).get("__metadata__", {})), data[8 + size :]
