"""Token codecs: how the float tokens of one clip become the tensors of one shard member, and back.

fp16: `tokens` (q d) float16.
int8: `q` (q d) int8 and `scale` (q,) float16. Channels are standardised with a calibration's mean and deviation first,
so that one scale per token serves them all; without that, a massive channel takes the whole range (errors up to 98%
of a quiet channel's deviation; so 1%).

Axes: b clips, q tokens of a clip, d channels. Everything works on (q d) and on (b q d).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from shards.disk import StoreError, read_inside, write_atomically
from shards.tensorfile import CHECKSUM, Spec, checksum, metadata_of, pack_alone

DEVIATION_FLOOR = 1e-2  # of the median channel's deviation
WORST_CHANNEL = 0.05  # of its deviation
CALIBRATION_FILE = "calibration.safetensors"
CALIBRATION_CLIPS = 16
FP16_MAX = 65504.0
LEVELS = 127
SMALLEST_SCALE = 2.0**-14  # the smallest normal float16: 6e-5 of a deviation per level


def floor_deviation(deviation: Tensor) -> Tensor:
    """Lifts near-dead channels to 1% of the median channel's deviation, (d,) -> (d,).

    Divided by its own deviation, a channel that hardly moves is rounding noise at full size. Where more than half of
    the channels are constant the mean deviation stands in for the median, and 1 where all are.
    """
    typical = float(deviation.median()) or float(deviation.mean()) or 1.0 / DEVIATION_FLOOR
    return deviation.clamp_min(DEVIATION_FLOOR * typical)


class Codec(Protocol):
    """encode and decode are inverse up to the codec's error. name: as in recipes and manifests."""

    @property
    def name(self) -> str: ...

    def spec(self, shape: tuple[int, int]) -> Spec:
        """The encoded tensors of one clip with tokens of `shape` (q, d)."""
        ...

    def encode(self, tokens: Tensor) -> dict[str, Tensor]:
        """(..., q, d) float -> encoded tensors on the same device. Raises ValueError where the range is too small."""
        ...

    def decode(
        self, encoded: Mapping[str, Tensor], *, dtype: torch.dtype = torch.float32, out: Tensor | None = None
    ) -> Tensor:
        """Encoded tensors -> (..., q, d) on the same device, computed in float32 whatever the dtype.

        out: a float32 tensor that receives them. Reused memory makes decoding six times faster on a CPU: 0.8 ms
        instead of 4.6 for 2048 x 1024, the rest being page faults.
        """
        ...

    def to(self, device: torch.device | str) -> Codec:
        """The same codec with its constants on `device`."""
        ...


@dataclass(frozen=True)
class Fp16:
    """Tokens as float16. column: named in errors."""

    column: str
    name: str = "fp16"

    def spec(self, shape: tuple[int, int]) -> Spec:
        return {"tokens": (torch.float16, tuple(shape))}

    def encode(self, tokens: Tensor) -> dict[str, Tensor]:
        peak = float(tokens.abs().amax())
        if not peak <= FP16_MAX:
            raise ValueError(
                f"column {self.column}: a token value of {peak:g} does not fit in fp16 (at most {FP16_MAX:g}); "
                "set store.codec=int8"
            )
        return {"tokens": tokens.half()}

    def decode(
        self, encoded: Mapping[str, Tensor], *, dtype: torch.dtype = torch.float32, out: Tensor | None = None
    ) -> Tensor:
        tokens = encoded["tokens"]
        return (tokens if out is None else out.copy_(tokens)).to(dtype)

    def to(self, device: torch.device | str) -> Fp16:
        return self


@dataclass(frozen=True)
class Calibration:
    """Per-channel mean and (floored) deviation of a column, (d,) float32 each."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def fit(cls, clips: Sequence[Tensor], *, column: str) -> Calibration:
        """From the tokens of a few train clips, (q d) each; moments in float64.

        Raises ValueError when int8 so calibrated errs by more than 5% of its deviation on any channel of these clips,
        naming the channel.
        """
        if not clips:
            raise ValueError(
                f"column {column}: int8 needs at least one readable train clip to calibrate, there is none"
            )
        count = sum(len(tokens) for tokens in clips)
        mean = sum(tokens.double().sum(0) for tokens in clips) / count
        variance = sum((tokens.double() - mean).square().sum(0) for tokens in clips) / count
        assert isinstance(mean, Tensor) and isinstance(variance, Tensor)
        calibration = cls(mean.float().cpu(), floor_deviation(variance.sqrt()).float().cpu())
        codec = Int8(column, calibration).to(clips[0].device)
        squared = sum((codec.decode(codec.encode(x)) - x).double().square().sum(0) for x in clips) / count
        assert isinstance(squared, Tensor)
        error = squared.sqrt().cpu() / calibration.deviation
        worst = int(error.argmax())
        if not error[worst] <= WORST_CHANNEL:
            raise ValueError(
                f"column {column}: int8 errs by {float(error[worst]):.1%} of its deviation on channel {worst} "
                f"(at most {WORST_CHANNEL:.0%}); set store.codec=fp16"
            )
        return calibration

    def save(self, folder: Path) -> None:
        write_atomically(
            folder / CALIBRATION_FILE,
            pack_alone({"mean": self.mean, "deviation": self.deviation}, metadata={"column": folder.name}),
        )

    @classmethod
    def load(cls, root: Path, *, column: str, dim: int) -> Calibration:
        """Raises StoreError naming the file where it is missing or not (dim,) finite float32 tensors."""
        where = f"{root}/{column}/{CALIBRATION_FILE}"
        tensors = load_tensors(root, column, CALIBRATION_FILE)
        for name in ("mean", "deviation"):
            tensor = tensors.get(name)
            if tensor is None or tensor.shape != (dim,) or tensor.dtype != torch.float32 or not tensor.isfinite().all():
                raise StoreError(f"{where}: {name} must be {dim} finite float32 numbers; re-run precompute")
        if not tensors["deviation"].min() > 0:
            raise StoreError(f"{where}: a deviation of {float(tensors['deviation'].min()):g} is not positive")
        return cls(tensors["mean"], tensors["deviation"])


@dataclass(frozen=True)
class Int8:
    """One byte a value, one float16 scale a token: 8.02 bits, relative error 0.4-0.7%. column: named in errors."""

    column: str
    calibration: Calibration
    name: str = "int8"

    def spec(self, shape: tuple[int, int]) -> Spec:
        return {"q": (torch.int8, tuple(shape)), "scale": (torch.float16, (shape[0],))}

    def encode(self, tokens: Tensor) -> dict[str, Tensor]:
        standard = (tokens.float() - self.calibration.mean) / self.calibration.deviation
        peak = standard.abs().amax(-1)
        scale = (peak / LEVELS).clamp_min(SMALLEST_SCALE).half()
        if not scale.isfinite().all():
            raise ValueError(
                f"column {self.column}: a token lies {float(peak.max()):g} deviations from the calibration's mean, "
                "which int8 cannot hold; set store.codec=fp16"
            )
        levels = standard.div_(scale.float().unsqueeze(-1)).round_().clamp_(-LEVELS, LEVELS)
        return {"q": levels.to(torch.int8), "scale": scale}

    def decode(
        self, encoded: Mapping[str, Tensor], *, dtype: torch.dtype = torch.float32, out: Tensor | None = None
    ) -> Tensor:
        tokens = encoded["q"].float() if out is None else out.copy_(encoded["q"])
        tokens.mul_(encoded["scale"].float().unsqueeze(-1))
        return torch.addcmul(self.calibration.mean, tokens, self.calibration.deviation, out=tokens).to(dtype)

    def to(self, device: torch.device | str) -> Int8:
        return replace(self, calibration=Calibration(*(t.to(device) for t in vars(self.calibration).values())))


CODECS = ("int8", "fp16")


def check_codec(name: str) -> str:
    if name not in CODECS:
        raise ValueError(f"codec is {name!r}; there are {', '.join(CODECS)}")
    return name


def load_codec(name: str, *, root: Path, column: str, dim: int) -> Codec:
    """The codec of a stored column of `dim` channels, with its calibration."""
    if check_codec(name) == "fp16":
        return Fp16(column)
    return Int8(column, Calibration.load(root, column=column, dim=dim))


def encoded_spec(name: str, shape: tuple[int, int]) -> Spec:
    """The encoded tensors of one clip, without a calibration at hand."""
    blank = torch.zeros(0)
    codec: Codec = Fp16("") if check_codec(name) == "fp16" else Int8("", Calibration(blank, blank))
    return codec.spec(shape)


def load_tensors(root: Path, column: str, name: str) -> dict[str, Tensor]:
    """The tensors of a small safetensors file of a column. Raises StoreError where it is missing or damaged."""
    try:
        data = read_inside(root, column, name)
        tensors = load_safetensors(data)
        metadata, body = metadata_of(data)
        if metadata.get(CHECKSUM, checksum(body)) != checksum(body):
            raise ValueError("its checksum is another than it says")
        if metadata.get("column", column) != column:
            raise ValueError(f"it is of column {metadata['column']}")
        return tensors
    except StoreError:
        raise
    except FileNotFoundError:
        raise StoreError(f"{root}/{column}/{name} is missing; re-run precompute, which writes it") from None
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{root}/{column}/{name} is damaged ({error}); delete it and re-run precompute") from None
