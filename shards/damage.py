"""What storing costs: the error of int8 in standardised space, and what it does to a converter.

An fp16 column holds the tokens, so int8 is measured on it. An int8 column holds no truth any more, but its scales are
the sizes of the quantiser's steps, and rounding errs evenly within a step: the size of the error is known.

Axes: b clips, q tokens of a clip, d channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shards.codec import CALIBRATION_CLIPS, Calibration, Int8
from shards.store import FeatureStore
from teachers.layout import TokenLayout

MOST_CLIPS = 64  # that are looked at, spread over the store


@dataclass(frozen=True)
class Damage:
    """In standardised space. relative: root of error over spread. worst: root of the mean error of the worst channel,
    which `channel` names, in its floored deviation. cosine: of a token with itself as stored. measured: on the tokens.
    """

    relative: float
    worst: float
    channel: int
    cosine: float
    clips: int
    measured: bool


class Converts(Protocol):
    """A converter: student tokens (b s d) -> {target: (b q e)}."""

    targets: Mapping[str, TokenLayout]

    def __call__(self, tokens: Tensor) -> Mapping[str, Tensor]: ...


def damage_of(store: FeatureStore, column: str) -> Damage:
    """Of an open column, over clips that are spread over the store. Raises ValueError without a train clip."""
    space = store.statistics(column)
    mean, scale = space["mean"].double(), space["scale"].double()
    again = errors_of(store, column)
    error, spread = torch.zeros(2, len(scale), dtype=torch.float64)
    cosine, clips = 0.0, spread_out(store)
    for index in clips:
        tokens, wrong = store[index][column].double(), again(index).double() / scale
        true = (tokens - mean) / scale
        error += wrong.square().sum(0)
        spread += true.square().sum(0)
        cosine += float(torch.cosine_similarity(true + wrong, true, dim=-1).mean())
    mean_error = (error / (len(clips) * len(mean))).sqrt()
    worst = int(mean_error.argmax())
    total = float((error.sum() / spread.sum().clamp_min(torch.finfo(torch.float64).tiny)).sqrt())
    measured = store.columns[column].codec == "fp16"
    return Damage(total, float(mean_error[worst]), worst, cosine / len(clips), len(clips), measured)


def errors_of(store: FeatureStore, column: str) -> Callable[[int], Tensor]:
    """clip -> the error (q d) of int8 on its tokens, in the backbone's units: true, or by chance of the same size."""
    if store.columns[column].codec == "fp16":
        train = store.indices("train")
        some = train[:: max(1, len(train) // CALIBRATION_CLIPS)][:CALIBRATION_CLIPS]
        codec = Int8(column, Calibration.fit([store[index][column] for index in some], column=column))

        def true(index: int) -> Tensor:
            tokens = store[index][column]
            return codec.decode(codec.encode(tokens)) - tokens

        return true
    kept = store.codec(column)
    assert isinstance(kept, Int8)
    deviation = kept.calibration.deviation

    def likely(index: int) -> Tensor:
        steps = store.select(store.read(index, column), column)["scale"].float().unsqueeze(-1) * deviation
        draw = torch.rand(steps.shape, generator=torch.Generator().manual_seed(index))
        return (draw - 0.5) * steps

    return likely


def effect_on(store: FeatureStore, converter: Converts, *, student: str) -> dict[str, tuple[float, float]]:
    """target -> r2c on test clips from the student's tokens as stored, and with the codec's error once more."""
    again = errors_of(store, student)
    missed = {name: torch.zeros(3, dtype=torch.float64) for name in converter.targets}
    for index in store.indices("test"):
        sample = store[index]
        pair = torch.stack([sample[student], sample[student] + again(index)])
        with torch.no_grad():
            converted = converter(pair)
        for name, rows in converted.items():
            space = store.statistics(name)
            errors = ((rows - sample[name]) / space["scale"]).double().square().sum((1, 2))
            spread = ((sample[name] - space["mean"]) / space["scale"]).double().square().sum()
            missed[name] += torch.stack([*errors, spread])
    return {name: (float(1 - one / total), float(1 - two / total)) for name, (one, two, total) in missed.items()}


def spread_out(store: FeatureStore) -> list[int]:
    """At most MOST_CLIPS clips."""
    return list(range(0, len(store), max(1, -(-len(store) // MOST_CLIPS))))
