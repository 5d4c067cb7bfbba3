"""Tiny converters of every family, and the settings of a deficiency."""

from __future__ import annotations

import torch

from converters import Converter, create_converter
from distill.deficiency import Dials
from teachers.layout import TokenLayout

STUDENT = TokenLayout((2, 4, 4), 12)
TARGETS = {"tokens": TokenLayout((2, 3, 3), 8, ("cls",)), "pooled": TokenLayout(None, 6)}
OPTIONS = {
    "perceiver": {"width": 16, "latents": 6, "heads": 2},
    "dsconv": {"width": 16, "blocks": 1, "kernel": 3},
    "mamba": {"width": 16, "blocks": 1, "states": 4, "samples": 4},
    "tokenlearner": {"width": 16, "tokens": 4, "heads": 2, "samples": 4},
}
SETTINGS = {
    "kind": "combined",
    "strength": 0.5,
    "zero_until": 0.1,
    "full_from": 0.4,
    "nuclear": 3.0,
    "rank": None,
    "ratio": 0.5,
    "entropy": 0.2,
    "entropy_target": 0.0,
    "jacobian": 7.0,
    "every": 4,
    "directions": 2,
    "outputs": 3,
}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dials(kind: str, **settings: object) -> Dials:
    return Dials.of({**SETTINGS, "kind": kind, **settings}, steps=100, seed=1)


def stirred(family: str, **settings: object) -> Converter:
    converter = create_converter(
        family,
        student=STUDENT,
        targets=TARGETS,
        options=OPTIONS.get(family),
        **settings,  # type: ignore[arg-type]
    )
    with torch.no_grad():
        for number, parameter in enumerate(converter.parameters()):
            parameter.add_(0.1 * draw(*parameter.shape, seed=number))
    return converter
