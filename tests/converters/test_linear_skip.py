"""The linear skip: both orders, special tokens, ridge weights, and what the ridge reads."""

from __future__ import annotations

import pytest
import torch
from small import STUDENT, draw

from converters.linear import AROUND, LinearSkip, LocalSkip
from converters.resample import Queries, trilinear
from converters.ridge import NormalEquations
from teachers.layout import TokenLayout

FINE = TokenLayout((4, 5, 5), 7, ("cls", "reg"))
COARSE = TokenLayout((2, 3, 3), 7, ("cls", "reg"))
POOLED = TokenLayout(None, 7)


def ready(target):
    skip = LinearSkip(STUDENT, target)
    skip.set_({part: draw(target.dim, STUDENT.dim, seed=at) for at, part in enumerate(skip.parts)})
    for at, linear in enumerate(skip.maps.values()):
        linear.bias.data = draw(target.dim, seed=20 + at)
    return skip


@pytest.mark.parametrize("target", [FINE, COARSE, POOLED])
def test_either_order_equals_resample_then_map(target, tokens):
    skip, asked = ready(target), Queries.of(target)
    expected = [skip.maps[name](tokens.mean(dim=1, keepdim=True)) for name in target.special]
    if target.grid:
        resampled = trilinear(tokens, STUDENT.grid, STUDENT.extent, target.centres())
        expected.insert(0, skip.maps["grid"](resampled))
    torch.testing.assert_close(skip(tokens, asked), torch.cat(expected, dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("target", "rows"), [(FINE, 32), (COARSE, 18)])
def test_the_map_goes_where_rows_are_fewer(target, rows, tokens):
    skip, seen = ready(target), []
    skip.maps["grid"].register_forward_hook(lambda _module, arguments, _answer: seen.append(arguments[0].shape[1]))
    skip(tokens, Queries.of(target))
    assert seen == [rows]


def test_starts_at_zero_and_special_tokens_can_be_chosen(tokens):
    assert LinearSkip(STUDENT, FINE)(tokens, Queries.of(FINE)).abs().max() == 0
    skip = ready(FINE)
    index = torch.tensor([3, 101])
    torch.testing.assert_close(skip(tokens, Queries.of(FINE, index)), skip(tokens, Queries.of(FINE))[:, index])


@pytest.mark.parametrize("target", [FINE, COARSE, POOLED])
def test_ridge_on_its_design_recovers_the_map(target):
    skip = LinearSkip(STUDENT, target)
    truth, asked = ready(target), Queries.of(target)
    for linear in truth.maps.values():
        linear.bias.data.zero_()
    equations = {part: NormalEquations(STUDENT.dim, target.dim, folds=2) for part in skip.parts}
    for clip in range(60):
        x = draw(1, *STUDENT.shape, seed=clip)
        rows, answers = skip.design(x, asked), skip.split(truth(x, asked))
        for part in skip.parts:
            equations[part].add(rows[part], {"true": answers[part]}, fold=clip % 2)
    skip.set_({part: equations[part].solve()["true"].weight for part in skip.parts})
    x = draw(2, *STUDENT.shape, seed=99)
    torch.testing.assert_close(skip(x, asked), truth(x, asked), atol=1e-3, rtol=1e-3)


def test_wrong_weights_are_named():
    skip = LinearSkip(STUDENT, POOLED)
    with pytest.raises(ValueError, match=r"\['grid'\].*\['pooled'\]"):
        skip.set_({"grid": draw(7, 24)})
    with pytest.raises(ValueError, match=r"'pooled' is \(24, 7\)"):
        skip.set_({"pooled": draw(24, 7)})
    with pytest.raises(ValueError, match="1 entries not finite"):
        skip.set_({"pooled": draw(7, 24).index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(float("nan")))})


def test_a_place_reads_the_cells_around_it(tokens):
    """At a cell's own centre: the 27 cells on the basis, in the order of AROUND, the border's cells again beyond it."""
    basis = torch.linalg.qr(draw(STUDENT.dim, 3, seed=4)).Q
    skip = LocalSkip(STUDENT, STUDENT, basis)
    t, h, w = STUDENT.grid
    grid = (tokens[:, : t * h * w] @ basis)[0].unflatten(0, (t, h, w))
    found = skip.design(tokens, Queries.of(STUDENT))["grid"][0].unflatten(1, (27, 3)).unflatten(0, (t, h, w))
    for place in ((1, 1, 2), (0, 0, 0), (t - 1, h - 1, 1)):
        for at, step in enumerate(AROUND):
            cell = [min(max(i + s, 0), n - 1) for i, s, n in zip(place, step, STUDENT.grid, strict=True)]
            torch.testing.assert_close(found[(*place, at)], grid[tuple(cell)], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", [FINE, POOLED])
def test_the_local_skip_maps_what_it_reads(target, tokens):
    basis = torch.linalg.qr(draw(STUDENT.dim, 3, seed=4)).Q
    skip, asked = LocalSkip(STUDENT, target, basis), Queries.of(target)
    rows = skip.design(tokens, asked)
    skip.set_({part: draw(target.dim, rows[part].shape[-1], seed=at) for at, part in enumerate(skip.parts)})
    expected = torch.cat([skip.maps[part](rows[part]) for part in skip.parts], dim=1)
    torch.testing.assert_close(skip(tokens, asked), expected, atol=1e-5, rtol=1e-5)
