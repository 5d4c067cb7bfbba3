"""Standardise and restore, on the layout's own grid, a subset, and another grid."""

from __future__ import annotations

import pytest
import torch
from small import draw

from converters.normaliser import Normaliser
from converters.resample import Queries
from teachers.layout import TokenLayout

LAYOUT = TokenLayout((2, 3, 3), 4, ("cls",))


def ready(mode="position"):
    normaliser = Normaliser(LAYOUT, mode)
    normaliser.set_(draw(*normaliser.mean.shape), draw(4).abs() + 0.1)
    return normaliser


@pytest.mark.parametrize("mode", ["position", "global"])
def test_round_trip_and_definition(mode):
    normaliser, tokens = ready(mode), draw(3, *LAYOUT.shape, seed=2)
    z = normaliser.standardise(tokens)
    assert torch.equal(z, (tokens - normaliser.mean) / normaliser.scale)
    torch.testing.assert_close(normaliser.restore(z), tokens)


def test_a_subset_reads_its_own_means():
    normaliser, tokens = ready(), draw(3, *LAYOUT.shape, seed=2)
    index = torch.tensor([0, 7, 11, 18])
    part = normaliser.standardise(tokens[:, index], Queries.of(LAYOUT, index))
    assert torch.equal(part, normaliser.standardise(tokens)[:, index])


def test_another_grid_reads_means_between():
    normaliser = ready()
    finer = TokenLayout((2, 6, 6), 4)
    asked = Queries.of(finer)
    normaliser.mean[:18] = LAYOUT.centres() @ draw(3, 4) + 1  # a linear field: trilinear is exact inside
    means = normaliser.restore(torch.zeros(1, len(asked), 4), asked)[0]
    inside = ((asked.coords > 1 / 6) & (asked.coords < 5 / 6)).all(dim=1)
    assert inside.sum() > 10
    torch.testing.assert_close(means[inside], (asked.coords @ draw(3, 4) + 1)[inside])


def test_means_are_buffers():
    assert not list(ready().parameters())
    assert set(ready().state_dict()) == {"mean", "scale"}


@pytest.mark.parametrize(
    ("which", "channel", "value"),
    [("scale", 2, 0.0), ("scale", 1, -1.0), ("scale", 3, float("inf")), ("mean", 0, float("nan"))],
)
def test_bad_statistics_are_named_by_channel(which, channel, value):
    normaliser = ready()
    mean, scale = normaliser.mean.clone(), normaliser.scale.clone()
    (mean[5] if which == "mean" else scale)[channel] = value
    before = normaliser.mean.clone()
    with pytest.raises(ValueError, match=rf"{which} of channel {channel} is {value}"):
        normaliser.set_(mean, scale)
    assert torch.equal(normaliser.mean, before) or which == "scale"


def test_wrong_shape_and_mode():
    with pytest.raises(ValueError, match=r"scale has shape \(5,\)"):
        ready().set_(draw(19, 4), torch.ones(5))
    with pytest.raises(ValueError, match="'phis'"):
        Normaliser(LAYOUT, "phis")  # type: ignore[arg-type]
    ready("global").set_(torch.zeros(4), torch.ones(4))
