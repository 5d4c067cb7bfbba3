"""Low-rank converters: the rank is kept by everything that is answered, and starts as well as that rank can."""

from __future__ import annotations

import json

import pytest
import torch
from small import STUDENT, TARGETS, draw, stir, tiny

from converters import FAMILIES, create_converter, load_converter
from converters.bottleneck import reduced_rank
from converters.ridge import NormalEquations
from teachers.layout import TokenLayout

LEARNED = [family for family in FAMILIES if family != "constant"]


def rank_of(y: torch.Tensor) -> int:
    """Of the tokens around their mean, over all clips and places."""
    rows = y.detach().flatten(0, 1).double()
    return int(torch.linalg.matrix_rank(rows - rows.mean(dim=0), rtol=1e-4))


@pytest.mark.parametrize("skip", ["linear", "none"])
@pytest.mark.parametrize("family", LEARNED)
def test_no_rank_leaks_past_the_bottleneck(family, skip):
    if family == "linear" and skip == "none":
        pytest.skip("the family linear is its skip")
    x = draw(12, *STUDENT.shape)
    full, held = (stir(tiny(family, skip=skip, rank=rank))(x, standardised=True) for rank in (None, 3))
    for name, y in held.items():
        assert rank_of(y) == 3 < rank_of(full[name]), name


@pytest.mark.parametrize("family", [name for name in LEARNED if name != "linear"])
def test_every_family_starts_at_its_factorised_skip(family, tokens):
    converter, linear = tiny(family, rank="full"), tiny("linear", rank="full")
    for part in (converter.skips, converter.bottlenecks):
        stir(part)
    linear.skips.load_state_dict(converter.skips.state_dict())
    linear.bottlenecks.load_state_dict(converter.bottlenecks.state_dict())
    for name, y in converter(tokens).items():
        assert torch.equal(y, linear(tokens)[name]) and not torch.equal(y, tiny("constant")(tokens)[name])


@pytest.mark.parametrize("family", LEARNED)
@pytest.mark.parametrize("skip", ["linear", "none"])
def test_gradient_reaches_every_factor(family, skip, tokens):
    if family == "linear" and skip == "none":
        pytest.skip("the family linear is its skip")
    converter = tiny(family, skip=skip, rank=3, mask_token=True)
    mask = torch.arange(STUDENT.num_tokens) % 3 == 0
    optimizer = torch.optim.SGD(converter.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        answers = converter(tokens, standardised=True, mask=mask)
        sum((y - draw(*y.shape, seed=5)).square().mean() for y in answers.values()).backward()
        optimizer.step()
    assert [name for name, at in converter.named_parameters() if not bool((at.grad != 0).any())] == []


@pytest.mark.parametrize("family", LEARNED)
def test_effective_maps_are_what_the_factors_multiply_to(family):
    converter, plain = stir(tiny(family, rank=3)), stir(tiny(family))
    for name, layout in TARGETS.items():
        first, *rest = converter.factors(name)
        assert first.shape == (layout.dim, 3) and all(len(factor) == 3 for factor in rest)
        maps = converter.effective_maps(name)
        assert set(maps) == {*converter.skips[name].parts, *(["branch"] if family != "linear" else [])}
        assert torch.equal(list(maps.values())[-1], first @ rest[-1])
        wide = plain.effective_maps(name)
        assert list(wide) == list(maps) and all(len(value) == layout.dim for value in [*wide.values(), *maps.values()])
        assert wide[converter.skips[name].parts[0]].shape == (layout.dim, STUDENT.dim)


def regression(rank: int | None, *, channels: int = 40, noise: float = 0.5) -> tuple:
    """Rows, answers, their solved ridge: 12 outputs of which the i-th direction has a deviation of 0.7^i."""
    mixing = draw(channels, channels, seed=1)
    x = draw(4000, channels, seed=2) @ mixing  # correlated: the SVD of the weights alone would keep the wrong part
    left, right = (torch.linalg.qr(draw(n, 12, seed=n)).Q for n in (12, channels))
    y = x @ right * 0.7 ** torch.arange(12.0) @ left.T + noise * draw(4000, 12, seed=4)
    equations = NormalEquations(channels, 12)
    for fold in range(5):
        part = slice(800 * fold, 800 * (fold + 1))
        equations.add(x[part], {"true": y[part]}, fold=fold)
    return x.double(), y.double(), equations.solve()["true"]


def test_the_kept_rank_is_the_best_there_is():
    """Reduced-rank regression by its textbook formula, and against random subspaces and the plain truncation."""
    x, y, ridge = regression(None)
    spread = ridge.predictable - ridge.weight @ x.T @ x @ ridge.weight.T
    assert float(spread.abs().max()) < 1e-2 * float(ridge.predictable.max()), "not what the ridge answers with"
    for rank in (1, 3, 8):
        up, down = reduced_rank({"grid": ridge.weight}, ridge.predictable, rank)
        kept = float((y - x @ (up @ down["grid"]).T).square().sum())
        fitted = x @ ridge.weight.T
        expected = torch.linalg.svdvals(fitted)[rank:].square().sum() + (y - fitted).square().sum()
        assert kept == pytest.approx(float(expected), rel=5e-3)
        u, s, v = torch.linalg.svd(ridge.weight, full_matrices=False)
        truncated = float((y - x @ (u[:, :rank] * s[:rank] @ v[:rank]).T).square().sum())
        assert kept < 0.99 * truncated


def test_factors_are_balanced_and_whole_and_none_is_dead():
    weight, two = draw(5, 9, seed=1).double(), draw(5, 7, seed=2).double()
    up, down = reduced_rank({"grid": weight, "cls": two}, torch.eye(5, dtype=torch.float64), 5)
    torch.testing.assert_close(up @ down["grid"], weight)
    torch.testing.assert_close(up @ down["cls"], two)
    sizes = torch.cat(list(down.values()), dim=1).norm(dim=1)
    torch.testing.assert_close(up.norm(dim=0), sizes)
    nuclear = torch.linalg.svdvals(torch.cat([weight, two], dim=1)).sum()
    torch.testing.assert_close((up.square().sum() + sizes.square().sum()) / 2, nuclear)
    up, down = reduced_rank({"grid": torch.zeros(5, 9).double()}, torch.zeros(5, 5).double(), 5)
    assert float(up.norm(dim=0).min()) > 0.5 and float(down["grid"].abs().max()) == 0
    thin = weight[:, :1] @ weight[:1]
    up, down = reduced_rank({"grid": thin}, thin @ thin.T, 5)
    torch.testing.assert_close(up @ down["grid"], thin)
    assert float(up.norm(dim=0).min()) > 0.01


@pytest.mark.parametrize("family", LEARNED)
def test_a_deficient_converter_is_saved_and_loaded_bit_for_bit(family, tokens, tmp_path):
    mask = torch.arange(STUDENT.num_tokens) < 9
    for number, rank in enumerate((2, "full")):
        converter = stir(tiny(family, rank=rank, mask_token=True)).eval()
        loaded = load_converter(converter.save(tmp_path / str(number)))
        assert loaded.config() == converter.config() and loaded.rank == rank
        for hidden in (None, mask):
            ours, theirs = (one(tokens, mask=hidden) for one in (converter, loaded))
            assert all(torch.equal(theirs[name], y) for name, y in ours.items())


def test_a_plain_converter_s_bundle_says_nothing_of_rank_or_mask(tmp_path):
    config = json.loads((tiny("perceiver").save(tmp_path) / "config.json").read_text())
    assert not {"rank", "mask_token"} & set(config["converter"])


def test_a_mask_hides_what_stands_there(tokens):
    mask = torch.zeros(STUDENT.num_tokens, dtype=torch.bool)
    mask[::2] = True
    for family in LEARNED:
        converter = stir(tiny(family, mask_token=True))
        other = tokens.clone()
        other[:, ::2] += 1
        seen, hidden = converter(tokens), converter(tokens, mask=mask)
        for name, y in converter(other, mask=mask).items():
            assert torch.equal(y, hidden[name]) and not torch.allclose(y, seen[name])
        for name, y in converter(tokens, mask=torch.zeros_like(mask)).items():
            assert torch.equal(y, seen[name])


@pytest.mark.parametrize("rank", [0, -1, 2.0, True, "ful", 1 << 20])
def test_a_wrong_rank_is_named(rank):
    with pytest.raises(ValueError, match=rf"rank is '?{rank}'?; it must be a whole number from 1"):
        tiny("linear", rank=rank)


def test_a_rank_above_a_targets_width_is_named():
    with pytest.raises(ValueError, match=r"rank is 11, but target 'vivit' has 10 channels; give a rank from 1 to 10"):
        tiny("dsconv", rank=11)
    assert create_converter("linear", student=STUDENT, targets={"a": TokenLayout(None, 10)}, rank=10).rank == 10
    with pytest.raises(ValueError, match="the family 'constant' has no map to limit"):
        tiny("constant", rank=2)


def test_a_wrong_mask_is_named(tokens):
    with pytest.raises(ValueError, match=r"mask is \(32,\) of torch\.bool, and this converter has none"):
        tiny("linear")(tokens, mask=torch.zeros(32, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask is \(31,\) of torch\.bool.* give \(32,\)"):
        tiny("linear", mask_token=True)(tokens, mask=torch.zeros(31, dtype=torch.bool))
