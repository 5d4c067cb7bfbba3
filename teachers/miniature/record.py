"""A miniature's weights as a folder: model.safetensors, and config.json, the record of how they were made."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import float16, nn

RECORD, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Record:
    """seconds: of training, on `hardware`. losses: the objective's terms, means over the last steps. sha256: that
    model.safetensors must have. world: version of the renderer."""

    model: str
    command: str
    steps: int
    batch: int
    lr: float
    seed: int
    world: int
    difficulty: float
    hardware: str
    seconds: float
    losses: dict[str, float]
    sha256: str

    @classmethod
    def read(cls, path: Path) -> Record:
        """Raises ValueError where the file is no record."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except (TypeError, ValueError) as error:
            names = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"{path} is no record of a miniature's training ({error}); one has {names}") from error


def write_weights(folder: Path, network: nn.Module, record: dict[str, Any]) -> Record:
    """The weights in fp16, and their record with their hash."""
    folder.mkdir(parents=True, exist_ok=True)
    data = save({name: tensor.detach().to("cpu", float16) for name, tensor in network.state_dict().items()})
    whole = Record(**record, sha256=hashlib.sha256(data).hexdigest())
    (folder / WEIGHTS).write_bytes(data)
    (folder / RECORD).write_text(json.dumps(asdict(whole), indent=2) + "\n")
    return whole


def read_weights(folder: Path, network: nn.Module, *, model: str) -> Record:
    """Loads weights that `write_weights` wrote into the network of `model`, and returns their record.

    Raises ValueError where the record is another model's, the file does not have the recorded hash, or the tensors are
    not those of the network.
    """
    record, file = Record.read(folder / RECORD), folder / WEIGHTS
    if record.model != model:
        raise ValueError(f"{folder} holds weights of {record.model}, not of {model}; give the folder of {model}")
    data = file.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != record.sha256:
        raise ValueError(
            f"{file}: its sha256 is {found[:16]}... but {RECORD} beside it records {record.sha256[:16]}...; one of "
            "them was changed or damaged: restore both, or train again"
        )
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in load(data).items()})
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"{file} does not hold the weights of {model} as it is built here ({reason}); train it again"
        ) from error
    return record
