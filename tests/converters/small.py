"""Tiny layouts and a converter with statistics and trained-looking weights."""

from __future__ import annotations

import torch

from converters import Converter, create_converter
from teachers.layout import TokenLayout

STUDENT = TokenLayout((2, 4, 4), 24)
TARGETS = {
    "videomae": TokenLayout((2, 3, 3), 12),
    "timesformer": TokenLayout((4, 3, 3), 12, ("cls",), ((0.0, 1.0), (1 / 16, 15 / 16), (1 / 16, 15 / 16))),
    "vivit": TokenLayout(None, 10),
}
OPTIONS = {
    "perceiver": {"width": 16, "latents": 6, "heads": 2, "blocks": 1},
    "dsconv": {"width": 16, "blocks": 2, "kernel": 3, "resample": "transposed"},
    "mamba": {"width": 16, "blocks": 2, "states": 4, "samples": 4},
    "tokenlearner": {"width": 16, "tokens": 4, "heads": 2, "samples": 4},
    "mlp": {"parameters": 3000},
}
VARIANTS = {  # further settings that a family's contract covers: "family-what" -> options
    "perceiver-nystrom": OPTIONS["perceiver"] | {"mixing": "nystrom", "landmarks": 4},
    "perceiver-performer": OPTIONS["perceiver"] | {"mixing": "performer", "features": 20},
}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiny(family: str, seed: int = 0, **overrides: object) -> Converter:
    """A converter of any registered family or variant with position statistics in its normalisers."""
    options = (OPTIONS | VARIANTS).get(family)
    arguments = {"student": STUDENT, "targets": TARGETS, "options": options, "seed": seed, **overrides}
    converter = create_converter(family.partition("-")[0], **arguments)  # type: ignore[arg-type]
    normalisers = [converter.student_normaliser, *converter.target_normalisers.values()]
    for at, normaliser in enumerate(normalisers):
        normaliser.set_(draw(*normaliser.mean.shape, seed=at) * 3, draw(*normaliser.scale.shape, seed=at).abs() + 0.5)
    return converter


@torch.no_grad()
def stir(converter: Converter, seed: int = 1) -> Converter:
    """Every parameter at random, so that nothing is hidden behind a zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in converter.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return converter
