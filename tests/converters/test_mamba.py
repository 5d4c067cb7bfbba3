"""The mamba family: its scan orders, every option, what it reads, and that learning moves it."""

from __future__ import annotations

import pytest
import torch
from small import STUDENT, TARGETS, draw, stir, tiny

from converters import create_converter
from converters.mamba import Block, GridTaps, scan_orders
from converters.mixers import MIXERS, first_steps, largest_divisor
from teachers.layout import TokenLayout

OPTIONS = {"width": 16, "states": 4}


def test_scan_orders_are_thw_and_hwt():
    grid = (2, 3, 4)
    first, second = scan_orders(grid)
    assert first.tolist() == list(range(24))
    t, h, w = (torch.arange(24).reshape(grid)[tuple(at)].item() for at in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    assert second[:3].tolist() == [0, t, w]  # time fastest, then width
    assert second.tolist().index(h) == 8
    assert sorted(second.tolist()) == list(range(24))


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_mixer_looks_only_back(mixer):
    layer = MIXERS[mixer](8, paths=2, states=4, length=40)
    values, controls = draw(2, 40, 8), draw(2, 40, 2, layer.controls, seed=1)
    changed, told = values.clone(), controls.clone()
    changed[:, 25:] += 1
    told[:, 25:] += 1
    before, after = layer(values, controls), layer(changed, told)
    torch.testing.assert_close(before[:, :25], after[:, :25], atol=1e-4, rtol=1e-4)
    assert (before[:, 25:] - after[:, 25:]).abs().amax(dim=(0, 2)).min() > 1e-4


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_mixer_carries_the_first_token_to_the_last(mixer):
    layer = MIXERS[mixer](8, paths=2, states=4, length=100)
    values = draw(1, 100, 8).requires_grad_()
    layer(values, draw(1, 100, 2, layer.controls, seed=1))[:, -1].sum().backward()
    assert values.grad[0, 0].abs().max() > 0


@pytest.mark.parametrize("orders", ["alternate", "parallel"])
@pytest.mark.parametrize("local", ["grid", "causal"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_option_learns_and_stays_close_in_bf16(mixer, local, orders, tokens):
    options = OPTIONS | {"mixer": mixer, "local": local, "orders": orders}
    converter = stir(tiny("mamba", options=options))
    assert converter.branch.options() == options | {"blocks": 2, "expand": 1, "decode": "resample", "samples": 8}
    exact = converter(tokens, standardised=True)
    sum(y.square().mean() for y in exact.values()).backward()
    assert [name for name, part in converter.named_parameters() if not bool((part.grad != 0).any())] == []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = converter(tokens.bfloat16(), standardised=True)
    for name, y in exact.items():
        assert (rough[name] - y).norm() <= 0.03 * y.norm()


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_trains_in_bf16_over_several_chunks(mixer):
    student = TokenLayout((3, 4, 5), 24)  # 60 tokens, a chunk has 32
    converter = stir(tiny("mamba", student=student, options=OPTIONS | {"mixer": mixer}))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        converter.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            answers = converter(draw(2, *student.shape), standardised=True)
        sum(y.square().mean() for y in answers.values()).backward()
        found.append(torch.cat([part.grad.flatten() for part in converter.parameters()]))
    exact, rough = found
    assert (rough - exact).norm() <= 0.1 * exact.norm()


@pytest.mark.parametrize("mixer", [name for name in MIXERS if name != "ssd"])
def test_every_mixer_exports_with_any_batch(mixer, tokens):
    """(The default stands in the contract.) On a shorter student, for a graph holds every step of Mamba-1's scan."""
    student = TokenLayout((2, 2, 3), 24)
    options = OPTIONS | {"mixer": mixer, "decode": "queries", "blocks": 1}
    converter = stir(tiny("mamba", student=student, options=options)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    short = tokens[:, : student.num_tokens]
    program = torch.export.export(converter, (short,), dynamic_shapes={"tokens": {0: batch}})
    three = draw(3, *student.shape, seed=4)
    for name, y in converter(three).items():
        torch.testing.assert_close(program.module()(three)[name], y, atol=1e-5, rtol=1e-5)


def test_queries_see_beyond_their_own_place():
    """With decode=queries a place attends to the trunk; its weights on top change nothing else's shape."""
    plain, asked = (tiny("mamba", options=OPTIONS | {"decode": how}) for how in ("resample", "queries"))
    extra = set(asked.state_dict()) - set(plain.state_dict())
    assert extra
    assert all(name.startswith("branch.attend.") for name in extra)
    assert set(plain.state_dict()) <= set(asked.state_dict())


@pytest.mark.parametrize("orders", ["alternate", "parallel"])
def test_one_block_pair_reaches_every_token(orders):
    """Both ways: the first and the last token of the clip move every other one."""
    walks = scan_orders((2, 3, 3))
    layers = [walks[:1], walks[1:]] if orders == "alternate" else [walks]
    x = draw(1, 18, 8).requires_grad_()
    h = x
    for part in layers:
        block = Block(8, grid=(2, 3, 3), orders=part, inner=16, states=4, mixer="ssd", local="causal", features=5)
        h = h + block(h, draw(18, 5))
    for at in (0, 9, 17):
        moved = torch.autograd.grad(h[0, at].square().sum(), x, retain_graph=True)[0]
        assert (moved[0].abs().amax(dim=-1) > 0).all()


def test_special_tokens_of_the_student_are_read():
    student = TokenLayout(STUDENT.grid, STUDENT.dim, ("cls", "reg"))
    converter = stir(tiny("mamba", student=student))
    tokens = draw(2, *student.shape)
    changed = tokens.clone()
    changed[:, -1] += 3
    for name, y in converter(tokens).items():
        assert (y - converter(changed)[name]).abs().max() > 1e-3


def test_special_tokens_of_a_target_are_told_apart_and_weigh_the_whole_clip(tokens):
    converter = stir(tiny("mamba", skip="none", targets={"y": TokenLayout(None, 5, ("cls", "reg"))}))
    tokens.requires_grad_()
    answer = converter(tokens, standardised=True)["y"]
    assert (answer[:, 0] - answer[:, 1]).abs().max() > 1e-3
    answer[0].square().sum().backward()
    moved = tokens.grad[0].norm(dim=-1)
    assert (moved > 0).all()
    assert moved.max() < 10 * moved.median()  # not the middle token alone


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mixer": "s6"}, "mixer is 's6'; valid: ssd, selective, s4d, hyena"),
        ({"local": "none"}, "local is 'none'; valid: grid, causal"),
        ({"orders": "both"}, "orders is 'both'; valid: alternate, parallel"),
        ({"decode": "conv"}, "decode is 'conv'; valid: resample, queries"),
        ({"width": 9}, "width is 9 and expand is 1; .* multiple of 2 paths"),
        ({"width": 18, "samples": 0, "orders": "parallel"}, "width is 18 .* multiple of 4 paths"),
        ({"width": 20, "samples": 8}, "width is 20 and samples is 8"),
        ({"samples": True}, "samples is True"),
        ({"samples": -1}, "samples is -1"),
        ({"states": 0}, "states is 0"),
        ({"blocks": 65}, "blocks is 65"),
        ({"expand": True}, "expand is True"),
        ({"width": 1 << 20}, "width is 1048576"),
        ({"mixr": "ssd"}, "no option 'mixr'; valid: .*did you mean 'mixer'"),
        ({"mixer": ["ssd"]}, r"mixer is \['ssd'\]"),
    ],
)
def test_wrong_options_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        create_converter("mamba", student=STUDENT, targets=TARGETS, options=options)


def test_first_steps_and_heads():
    steps = torch.nn.functional.softplus(first_steps(1000))
    assert 0.0009 < steps.min() < 0.0015
    assert 0.08 < steps.max() < 0.101
    assert [largest_divisor(320, 64), largest_divisor(7, 64), largest_divisor(80, 64)] == [64, 7, 40]


@pytest.mark.parametrize("grid", [(3, 4, 5), (1, 2, 2), (2, 1, 3)])
def test_taps_on_the_grid_are_a_convolution_over_three_axes(grid):
    taps, x = GridTaps(6, grid), draw(2, grid[0] * grid[1] * grid[2], 6).requires_grad_()
    expected = torch.nn.Conv3d.forward(taps, x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(taps(x), expected, atol=1e-5, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(y.square().sum(), taps.weight)[0] for y in (taps(x), expected))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
