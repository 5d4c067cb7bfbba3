"""A miniature's weights as a file, and the record beside it: how they were made, and the hash that they must have."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import nn

from teachers.weights import WeightsNotFound

SHIPPED = Path(__file__).resolve().parent / "weights"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What NAME.json says. seconds: of training, on `hardware`. losses: the terms at the end, means over the last steps.
    sha256: of NAME.safetensors. world: version of the renderer."""

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
        """Raises WeightsNotFound where there is none, ValueError where it is no record."""
        if not path.is_file():
            raise WeightsNotFound(
                f"{path} is missing: weights come with a record beside them; train them by "
                f"`python -m teachers.miniature train {path.stem} --out {path.parent}`"
            )
        try:
            return cls(**json.loads(path.read_bytes()))
        except (TypeError, ValueError) as error:
            names = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"{path} is no record of a training run ({error}); it holds {names}") from error


def write_weights(folder: Path, network: nn.Module, record: dict[str, Any]) -> Record:
    """NAME.safetensors in fp16, then NAME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{record['model']}.safetensors"
    save_file({name: tensor.detach().to("cpu", torch.float16) for name, tensor in network.state_dict().items()}, file)
    whole = Record(**record, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    (folder / f"{whole.model}.json").write_text(json.dumps(asdict(whole), indent=2) + "\n")
    return whole


def read_weights(folder: Path, network: nn.Module, *, model: str) -> Record:
    """Loads a miniature's weights into its network.

    Raises WeightsNotFound where a file is missing, and ValueError where its hash is not the recorded one, or where the
    weights are another model's.
    """
    record, file = Record.read(folder / f"{model}.json"), folder / f"{model}.safetensors"
    if not file.is_file():
        raise WeightsNotFound(f"{file} is missing, though {model}.json beside it says how it was made")
    data = file.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != record.sha256:
        raise ValueError(
            f"{file}: its sha256 is {found[:16]}... but {model}.json records {record.sha256[:16]}...; the file is "
            "damaged, or not the one that was trained: restore both, or train again"
        )
    try:
        tensors = load(data)
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{file} holds no weights of {model} as it is built here: {reason}; train it again") from error
    return record
