"""The streaming ridge against closed forms, and its choice of penalty."""

from __future__ import annotations

import pytest
import torch
from small import draw

from converters.ridge import PENALTIES, NormalEquations, assign_folds

D, E, FOLDS, ROWS = 8, 5, 4, 60


def data(noise=0.3):
    truth = draw(E, D, seed=1)
    clips = [draw(ROWS, D, seed=10 + at) for at in range(FOLDS)]
    return clips, [x @ truth.T + noise * draw(ROWS, E, seed=50 + at) for at, x in enumerate(clips)]


def filled(clips, targets, pairings=("true",)):
    equations = NormalEquations(D, E, folds=FOLDS, pairings=pairings)
    for fold, x in enumerate(clips):
        equations.add(x, {name: targets[name][fold] for name in pairings}, fold=fold)
    return equations


def closed_form(x, y, penalty):
    x, y = x.double(), y.double()
    xx = x.T @ x
    return torch.linalg.solve(xx + penalty * xx.diagonal().mean() * torch.eye(D, dtype=torch.float64), x.T @ y).T


@pytest.mark.parametrize("noise", [0.1, 5.0, 40.0])
def test_weights_and_fold_errors_equal_the_closed_form(noise):
    clips, targets = data(noise)
    ridge = filled([x.double() for x in clips], {"true": [y.double() for y in targets]}).solve()["true"]
    for fold in range(FOLDS):
        rest = [at for at in range(FOLDS) if at != fold]
        x, y = torch.cat([clips[at] for at in rest]), torch.cat([targets[at] for at in rest])
        for at, penalty in enumerate(sorted(PENALTIES)):
            error = (targets[fold].double() - clips[fold].double() @ closed_form(x, y, penalty).T).square().sum()
            assert ridge.errors[fold][at] == pytest.approx(
                float(error / targets[fold].double().square().sum()), rel=1e-8
            )
    size = [float(y.double().square().sum()) for y in targets]
    total = [sum(ridge.errors[fold][at] * size[fold] for fold in range(FOLDS)) for at in range(len(PENALTIES))]
    assert ridge.penalty == sorted(PENALTIES)[total.index(min(total))]
    expected = closed_form(torch.cat(clips), torch.cat(targets), ridge.penalty)
    torch.testing.assert_close(ridge.weight, expected, atol=1e-10, rtol=1e-8)


def test_shuffled_pairing_shrinks_to_nothing_and_each_picks_its_own():
    clips, targets = data()
    shuffled = [draw(ROWS, E, seed=90 + at) for at in range(FOLDS)]
    both = filled(clips, {"true": targets, "shuffled": shuffled}, ("true", "shuffled")).solve()
    assert both["true"].penalty < 0.01
    assert both["shuffled"].penalty >= 1
    assert both["shuffled"].weight.norm() < 0.05 * both["true"].weight.norm()
    alone = filled(clips, {"true": targets}).solve()["true"]
    assert torch.equal(alone.weight, both["true"].weight)


def test_float32_products_with_float64_sums_agree_with_float64():
    d, e, rows = 96, 16, 400
    mixing = draw(d, d, seed=3) * torch.logspace(0, -2, d)
    truth = draw(d, e, seed=4)
    exact, quick = (NormalEquations(d, e, folds=3) for _ in range(2))
    for clip in range(30):
        x = draw(rows, d, seed=100 + clip) @ mixing
        y = x @ truth + 0.1 * draw(rows, e, seed=200 + clip)
        quick.add(x, {"true": y}, fold=clip % 3)
        exact.add(x.double(), {"true": y.double()}, fold=clip % 3)
    one, other = exact.solve()["true"], quick.solve()["true"]
    assert one.penalty == other.penalty
    x = (draw(rows, d, seed=7) @ mixing).double()
    assert (x @ (one.weight - other.weight).T).norm() < 1e-5 * (x @ one.weight.T).norm()
    assert quick.xx.dtype == torch.float64


def test_sums_over_ranks_are_the_whole():
    clips, targets = data()
    whole = filled(clips, {"true": targets})
    parts = [NormalEquations(D, E, folds=FOLDS) for _ in range(2)]
    for fold in range(FOLDS):
        parts[fold % 2].add(clips[fold], {"true": targets[fold]}, fold=fold)
    for mine, other in zip(parts[0].tensors(), parts[1].tensors(), strict=True):
        mine += other
    assert torch.equal(parts[0].solve()["true"].weight, whole.solve()["true"].weight)


def test_autocast_does_not_reach_the_products():
    clips, targets = data()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = filled(clips, {"true": targets})
    assert torch.equal(inside.tensors()[1], filled(clips, {"true": targets}).tensors()[1])
    assert inside.xx.any()


def test_clips_of_few_rows_wait_for_each_other_but_none_is_left_out():
    """Each fold's products are of at least d rows, but for its last; a view that waits is a copy of its own."""
    d, rows, clips = 24, 10, 11
    whole, parts = (NormalEquations(d, E, folds=2) for _ in range(2))
    xs, ys = draw(clips, rows, d, seed=1), draw(clips, rows, E, seed=2)
    for fold in (0, 1):
        whole.add(xs[fold::2].double(), {"true": ys[fold::2].double()}, fold=fold)
    summed = []
    for at in range(clips):
        x, y = xs[at].clone(), ys[at].clone()
        parts.add(x, {"true": y}, fold=at % 2)
        x.zero_(), y.zero_()  # what the caller does with them later is the caller's
        summed.append(parts.rows.tolist())
    assert summed[3:5] == [[0, 0], [30, 0]] and summed[-1] == [60, 30]
    for ours, exact in zip(parts.tensors(), whole.tensors(), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)
    assert parts.rows.tolist() == [60, 50] and parts.waiting == [[], []]


@pytest.mark.parametrize("rows", [1, 40])
def test_fewer_rows_than_inputs(rows):
    """Pooled targets: a row a clip. The sums are singular, and rounding makes eigenvalues negative."""
    wide, clips = 300, 6
    equations = NormalEquations(wide, E, folds=3)
    xs = [draw(rows, wide, seed=at) * 30 for at in range(clips)]
    ys = [draw(rows, E, seed=90 + at) for at in range(clips)]
    for at, (x, y) in enumerate(zip(xs, ys, strict=True)):
        equations.add(x, {"true": y}, fold=at % 3)
    found = equations.solve(penalties=[1e-6])["true"]
    x, y = torch.cat(xs).double(), torch.cat(ys).double()
    penalty = 1e-6 * float((x.T @ x).diagonal().mean())
    dual = x.T @ torch.linalg.solve(x @ x.T + penalty * torch.eye(len(x), dtype=torch.float64), y)
    assert torch.allclose(found.weight, dual.T, atol=1e-8)


def test_one_group_has_no_fold():
    equations = NormalEquations(D, E, folds=FOLDS)
    equations.add(draw(ROWS, D), {"true": draw(ROWS, E)}, fold=2)
    with pytest.raises(ValueError, match=r"\[0, 0, 60, 0\].*two groups"):
        equations.solve()


def test_refusals():
    clips, targets = data()
    equations = filled(clips, {"true": targets})
    with pytest.raises(ValueError, match="'wrong'"):
        equations.add(clips[0], {"wrong": targets[0]}, fold=0)
    with pytest.raises(ValueError, match="fold is 4"):
        equations.add(clips[0], {"true": targets[0]}, fold=4)
    with pytest.raises(ValueError, match=r"\(60, 8\) -> \(59, 5\)"):
        equations.add(clips[0], {"true": targets[0][1:]}, fold=0)
    with pytest.raises(ValueError, match=r"-1\.0"):
        equations.solve([-1.0, 1.0])
    with pytest.raises(ValueError, match="folds is 1"):
        NormalEquations(D, E, folds=1)
    with pytest.raises(ValueError, match="zero in all clips"):
        filled([x * 0 for x in clips], {"true": targets}).solve()
    equations.add(clips[0] * float("nan"), {"true": targets[0]}, fold=0)
    with pytest.raises(ValueError, match="X'X holds nan"):
        equations.solve()


def test_folds_keep_groups_together_and_level():
    groups = [f"g{at % 7}" for at in range(50)] + ["big"] * 12
    folds = assign_folds(groups, 4)
    assert all(len({fold for fold, name in zip(folds, groups, strict=True) if name == group}) == 1 for group in groups)
    assert max(folds.count(fold) for fold in range(4)) <= 22
    assert assign_folds(["only"] * 3) == [0, 0, 0]
