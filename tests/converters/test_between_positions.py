"""Trained on 14 x 14, asked at 28 x 28: the answer is the smooth interpolation, not noise."""

from __future__ import annotations

import pytest
import torch
from small import draw

from converters import FAMILIES, create_converter
from converters.converter import Converter
from converters.resample import trilinear
from teachers.layout import TokenLayout

STUDENT, COARSE, FINE = TokenLayout((2, 8, 8), 12), TokenLayout((2, 14, 14), 2), TokenLayout((2, 28, 28), 2)
OPTIONS = {
    "perceiver": {"width": 48, "latents": 16},
    "dsconv": {"width": 48, "blocks": 2},
    "mamba": {"width": 48},
    "tokenlearner": {"width": 48, "tokens": 8},
}
LEARNED = ("perceiver", "dsconv", "mamba", "tokenlearner")


def smooth(layout: TokenLayout, waves: torch.Tensor) -> torch.Tensor:
    """A sum of one cosine per axis and channel, with weights of each clip's own: (b q d)."""
    return (layout.centres() * torch.pi).cos() @ waves


def trained(family: str, *, steps: int = 60) -> tuple[Converter, torch.Tensor, float]:
    """The family alone, without a skip, trained on a linear map of a smooth field; new clips; its error on them."""
    converter = create_converter(family, student=STUDENT, targets={"y": COARSE}, skip="none", options=OPTIONS[family])
    mixing = draw(12, 2, seed=5)
    optimizer = torch.optim.AdamW(converter.parameters(), lr=3e-3)
    for step in range(steps):
        waves = draw(4, 3, 12, seed=1000 + step)
        wanted = smooth(COARSE, waves) @ mixing
        loss = (converter(smooth(STUDENT, waves), standardised=True)["y"] - wanted).square().mean() / wanted.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    waves = draw(8, 3, 12, seed=7)
    wanted, x = smooth(COARSE, waves) @ mixing, smooth(STUDENT, waves)
    with torch.no_grad():
        error = (converter(x)["y"] - wanted).square().mean() / wanted.var()
    return converter.eval(), x, float(error)


def test_every_family_is_asked():
    assert {name for name in FAMILIES if FAMILIES[name]} == {*LEARNED, "mlp"}


@pytest.mark.parametrize("family", LEARNED)
def test_answers_between_trained_positions_are_the_smooth_interpolation(family):
    converter, x, error = trained(family)
    print(f"{family}: error {error:.3f}")
    assert error < 0.2
    with torch.no_grad():
        own, between = converter(x)["y"], converter(x, layouts={"y": FINE})["y"]
    expected = trilinear(own, COARSE.grid, COARSE.extent, FINE.centres())
    places = FINE.centres()[:, 1:]
    inside = ((places > 1 / 28) & (places < 27 / 28)).all(dim=1)  # beyond the outermost centres nothing is between
    off = (between - expected)[:, inside].square().mean() / own.var()
    print(f"{family}: off the interpolation {off:.4f}")
    assert off < 0.002
