"""Sampling at places of a clip's own, mixing on the grid, and the look-up."""

from __future__ import annotations

import pytest
import torch
from small import draw

from converters.decoder import GridMix, Lookup, evenly, sample
from converters.resample import trilinear
from teachers.layout import FULL_VIEW

GRID = (2, 4, 5)


def test_samples_equal_the_trilinear_interpolation():
    tokens, coords = draw(2, 40, 6), evenly(30)
    cells = coords * torch.tensor(GRID) - 0.5
    found = sample(tokens, GRID, cells[None, :, None].expand(2, -1, 3, -1))
    torch.testing.assert_close(found, trilinear(tokens, GRID, FULL_VIEW, coords), atol=1e-5, rtol=1e-5)


def test_each_sample_reads_its_own_channels_of_its_own_clip():
    tokens = draw(2, 40, 6)
    cells = torch.zeros(2, 1, 2, 3)
    cells[0, 0, 1] = torch.tensor([1.0, 2.0, 3.0])  # row (1 * 4 + 2) * 5 + 3
    cells[1] = 99.0  # beyond the border: the last token
    found = sample(tokens, GRID, cells)
    assert torch.equal(found[0, 0], torch.cat([tokens[0, 0, :3], tokens[0, 33, 3:]]))
    assert torch.equal(found[1, 0], tokens[1, 39])


def test_the_places_of_samples_have_gradients():
    tokens = draw(1, 40, 4, seed=1).double().requires_grad_()
    cells = (evenly(6).double() * torch.tensor([0.8, 2.8, 3.8]) + 0.1).reshape(1, 3, 2, 3).requires_grad_()
    torch.autograd.gradcheck(lambda x, at: sample(x, GRID, at), (tokens, cells))


def test_grid_mixing_reaches_neighbours_and_no_further():
    mix, x = GridMix((3, 9, 9), 4), draw(1, 3 * 81 + 1, 4)
    changed = x.clone()
    changed[:, 81 + 4 * 9 + 4] += 1  # the middle of the middle frame
    touched = ((mix(changed) - mix(x)).abs().amax(dim=-1)[0, :-1] > 1e-6).unflatten(0, (3, 9, 9))
    expected = torch.zeros(3, 9, 9, dtype=torch.bool)
    expected[:, 2:7, 2:7] = True
    assert torch.equal(touched, expected)
    assert torch.equal(mix(x)[:, -1], x[:, -1])


def test_a_look_up_does_not_mind_where_a_token_stands():
    lookup, tokens, codes = Lookup(16, 8), draw(2, 32, 16), draw(5, 16, seed=1)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lookup(codes, tokens[:, order]), lookup(codes, tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 7, 256])
def test_even_places_lie_in_the_view_and_apart(count):
    places = evenly(count)
    assert places.shape == (count, 3) and bool(((places >= 0) & (places < 1)).all())
    assert count == 1 or torch.pdist(places).min() > 0.2 * count ** (-1 / 3)
