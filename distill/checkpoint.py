"""The files of one checkpoint: a safetensors file for every learner, and a record with their checksums."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash
from safetensors.torch import load_file, save_file
from torch import Tensor

from shards.disk import sync_folder

Checkpoint = tuple[dict[str, Any], dict[str, dict[str, Tensor]]]  # record, {learner: state}


def checkpoint_name(step: int) -> str:
    """The names sort as the steps do."""
    return f"step-{step:08d}"


def write_checkpoint(folder: Path, states: Mapping[str, Mapping[str, Tensor]], record: Mapping[str, Any]) -> None:
    """Writes the files of a checkpoint, synced. The record holds a checksum of every learner's."""
    checksums = {}
    for name, state in states.items():
        save_file(dict(state), folder / f"{name}.safetensors")
        checksums[name] = checksum(folder / f"{name}.safetensors")
    (folder / "record.json").write_text(json.dumps({**record, "learners": checksums}, indent=2))
    for file in folder.iterdir():
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
    sync_folder(folder)


def read_checkpoint(folder: Path) -> Checkpoint:
    """(record, {learner: state}). Raises OSError, ValueError or SafetensorError where it is not as it was written."""
    record = json.loads((folder / "record.json").read_text())
    if not isinstance(record, dict) or {"step", "settings", "learners"} - set(record):
        raise ValueError("record.json lacks step, settings or learners")
    states = {}
    for name, expected in record["learners"].items():
        file = folder / f"{name}.safetensors"
        if checksum(file) != expected:
            raise ValueError(f"{file.name} does not have the checksum of record.json")
        states[name] = load_file(file)
    return record, states


def checksum(path: Path) -> str:
    """xxh3 of a file, a few megabytes at a time."""
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while piece := file.read(2**22):
            digest.update(piece)
    return digest.hexdigest()
