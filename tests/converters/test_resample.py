"""Trilinear against float64 and torch; queries; stratified subsets; Fourier features."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small import draw

from converters.resample import Queries, fourier, grid_bands, num_fourier, stratified, trilinear
from teachers.layout import FULL_VIEW, TokenLayout

CROP = ((0.0, 1.0), (1 / 16, 15 / 16), (0.1, 0.8))


def reference(tokens, grid, extent, coords):
    """Plain float64 loops over eight corners."""
    cube = tokens.double().unflatten(1, grid)
    rows = []
    for place in coords.double().tolist():
        row = 0.0
        corners = [(0, 1.0)]
        axes = []
        for value, cells, (low, high) in zip(place, grid, extent, strict=True):
            at = min(max((value - low) / (high - low) * cells - 0.5, 0.0), cells - 1.0)
            below = min(int(at), max(cells - 2, 0))
            axes.append([(below, 1 - (at - below)), (min(below + 1, cells - 1), at - below)])
        corners = [(i, j, k, a * b * c) for i, a in axes[0] for j, b in axes[1] for k, c in axes[2]]
        for i, j, k, weight in corners:
            row = row + weight * cube[:, i, j, k]
        rows.append(row)
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("target", [(4, 3, 3), (8, 9, 7), (1, 1, 1), (3, 14, 2)])
def test_equals_torch_where_both_grids_span_the_view(target):
    grid = (4, 8, 6)
    tokens = draw(2, 4 * 8 * 6, 5)
    ours = trilinear(tokens, grid, FULL_VIEW, TokenLayout(target, 5).centres())
    cube = tokens.transpose(1, 2).unflatten(2, grid)
    theirs = F.interpolate(cube, size=target, mode="trilinear", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("extent", [FULL_VIEW, CROP])
@pytest.mark.parametrize("grid", [(4, 5, 6), (1, 5, 2), (3, 1, 1)])
def test_equals_float64_at_any_place_over_any_box(grid, extent):
    tokens = draw(2, grid[0] * grid[1] * grid[2], 3)
    coords = torch.rand(40, 3, generator=torch.Generator().manual_seed(1)) * 1.4 - 0.2
    torch.testing.assert_close(
        trilinear(tokens, grid, extent, coords).double(), reference(tokens, grid, extent, coords), atol=3e-6, rtol=1e-5
    )


@pytest.mark.parametrize("extent", [FULL_VIEW, CROP])
@pytest.mark.parametrize("grid", [(8, 14, 14), (7, 13, 11), (1, 3, 300)])
def test_is_exact_at_the_sources_own_centres(grid, extent):
    layout = TokenLayout(grid, 2, extent=extent)
    tokens = draw(1, *layout.shape)
    assert torch.equal(trilinear(tokens, grid, extent, layout.centres()), tokens)


def test_holds_the_border_instead_of_extrapolating():
    tokens = torch.arange(4.0).reshape(1, 4, 1)
    outside = torch.tensor([[0.5, 0.5, -3.0], [0.5, 0.5, 0.01], [0.5, 0.5, 9.0]])
    assert trilinear(tokens, (1, 1, 4), FULL_VIEW, outside).flatten().tolist() == [0.0, 0.0, 3.0]


def test_gradient_is_the_transpose():
    tokens = draw(2, 24, 3).double().requires_grad_()
    coords = TokenLayout((3, 3, 3), 3).centres()
    weights = trilinear(torch.eye(24)[None], (2, 3, 4), FULL_VIEW, coords)[0].double()  # (g, s)
    upstream = draw(2, 27, 3, seed=3).double()
    trilinear(tokens, (2, 3, 4), FULL_VIEW, coords).backward(upstream)
    torch.testing.assert_close(tokens.grad, torch.einsum("gs,bgd->bsd", weights, upstream), atol=1e-6, rtol=1e-6)


def test_queries_of_a_choice():
    layout = TokenLayout((1, 2, 2), 3, ("cls", "reg"))
    asked = Queries.of(layout, torch.tensor([1, 3, 5]))
    assert torch.equal(asked.coords, layout.centres()[[1, 3]])
    assert asked.special.tolist() == [1]
    assert len(asked) == 3
    assert len(Queries.of(layout)) == layout.num_tokens
    assert len(Queries.of(TokenLayout(None, 3)).coords) == 0


@pytest.mark.parametrize(
    ("index", "match"),
    [
        (torch.tensor([0, 2, 2]), "2 is followed by 2"),
        (torch.tensor([3, 1]), "3 is followed by 1"),
        (torch.tensor([0, 5]), "position 5 lies outside 0..4"),
        (torch.tensor([-2, 1]), "position -2 lies outside"),
        (torch.tensor([0.0]), "torch.float32"),
        (torch.tensor([[0]]), r"shape \(1, 1\)"),
        (torch.tensor([], dtype=torch.long), r"shape \(0,\)"),
        ([0, 1], "positions are a list; give a LongTensor"),
    ],
)
def test_bad_choices_are_named(index, match):
    with pytest.raises(ValueError, match=match):
        Queries.of(TokenLayout((1, 2, 2), 3, ("cls",)), index)


@pytest.mark.parametrize("count", [1, 7, 64, 125, 196, 400])
def test_stratified_is_increasing_even_and_keeps_special_tokens(count):
    layout = TokenLayout((1, 14, 14), 3, ("cls",))
    picked = stratified(layout, count, torch.Generator().manual_seed(count))
    assert len(picked) == min(count, 196) + 1
    assert picked[-1] == 196
    Queries.of(layout, picked)
    if 1 < count < 196:
        assert picked[:-1].diff().max() <= 2 * -(-196 // count)


def test_stratified_prefers_no_token():
    layout, generator = TokenLayout((1, 5, 5), 3), torch.Generator().manual_seed(0)
    hits = torch.zeros(25)
    for _ in range(4000):
        hits[stratified(layout, 9, generator)] += 1
    assert (hits / 4000 - 9 / 25).abs().max() < 0.04
    with pytest.raises(ValueError, match="count is 0"):
        stratified(layout, 0, generator)


def test_stratified_follows_its_generator():
    layout = TokenLayout((2, 5, 5), 3)
    first, again, other = (stratified(layout, 9, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_fourier_stays_below_nyquist_and_caps():
    assert grid_bands(TokenLayout((8, 14, 1), 3)) == (7, 13, 1)
    assert grid_bands(TokenLayout((8, 14, 16), 3, (), CROP)) == (7, 13, 15)
    wide = ((0.0, 1.0), (-0.5, 1.5), (-0.4, 1.4))  # a view cut out of what the features saw
    assert grid_bands(TokenLayout((8, 14, 16), 3, (), wide)) == (7, 6, 8)  # below 14 / 2 and 16 / 1.8
    bands, cap = (7, 15, 15), (7, 13, 13)
    coords = draw(5, 3).sigmoid()
    full, capped = fourier(coords, bands), fourier(coords, bands, cap)
    assert full.shape == (5, num_fourier(bands)) == (5, 74)
    changed = (full != capped).any(dim=0).nonzero().flatten().tolist()
    assert changed == [27, 28, 42, 43, 57, 58, 72, 73]  # bands 14 and 15 of y and x, sine and cosine
    assert capped[:, changed].abs().max() == 0
    expected = (coords[:, 1].double() * 3 * torch.pi).sin() / 3**0.5
    torch.testing.assert_close(full[:, 14 + 2].double(), expected, atol=1e-5, rtol=1e-4)
