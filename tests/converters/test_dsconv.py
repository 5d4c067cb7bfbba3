"""DS-conv: the depthwise convolution against a plain reference, its borders, upsampling, pooling, and learning."""

from __future__ import annotations

import pytest
import torch
from small import STUDENT, TARGETS, draw, stir, tiny

from converters import create_converter
from converters.dsconv import AttentionPool, DepthwiseConv
from teachers.layout import TokenLayout

GRID = (3, 5, 4)


def test_depthwise_convolution_equals_a_float64_reference():
    """Token by token: taps on t, y and x multiply; the weight of those outside the grid goes to the token itself."""
    conv = DepthwiseConv(6, GRID, (3, 5, 3))
    x = draw(2, 60, 6).double().unflatten(1, GRID)
    kt, ky, kx = (taps.detach().double() for taps in conv.taps)
    expected = torch.zeros_like(x)
    for t, y, x_at in torch.cartesian_prod(*(torch.arange(cells) for cells in GRID)).tolist():
        for dt, dy, dx in torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-2, 3), torch.arange(-1, 2)).tolist():
            weight = kt[:, dt + 1] * ky[:, dy + 2] * kx[:, dx + 1]
            at = (t + dt, y + dy, x_at + dx)
            inside = all(0 <= place < cells for place, cells in zip(at, GRID, strict=True))
            source = at if inside else (t, y, x_at)
            expected[:, t, y, x_at] += weight * x[:, source[0], source[1], source[2]]
    torch.testing.assert_close(conv(x.flatten(1, 3).float()).double(), expected.flatten(1, 3), atol=1e-5, rtol=1e-5)


def test_a_constant_stays_constant_up_to_the_border():
    conv = DepthwiseConv(6, GRID, (3, 5, 7))
    level = draw(2, 1, 6)
    gain = torch.stack([taps.sum(dim=1) for taps in conv.taps]).prod(dim=0)
    torch.testing.assert_close(conv(level.expand(2, 60, 6)), (level * gain).expand(2, 60, 6), atol=1e-5, rtol=1e-5)


def test_a_constant_clip_stays_constant_through_the_branch():
    """Without codes of places every answer is the same, at the border and in the middle."""
    converter = stir(tiny("dsconv", skip="none", normaliser="global"))
    torch.nn.init.zeros_(converter.branch.place.weight)
    answer = converter(draw(2, 1, STUDENT.dim).expand(2, *STUDENT.shape), standardised=True)["videomae"]
    torch.testing.assert_close(answer, answer[:, :1].expand_as(answer), atol=1e-5, rtol=1e-5)
    assert answer.abs().min() > 0


def test_transposed_starts_where_trilinear_does(tokens):
    """Twice as many time steps: their centres are those of the upsampled cells, and interpolation is itself."""
    targets = {"y": TokenLayout((4, 4, 4), 5)}
    answers = []
    for resample in ("trilinear", "transposed"):
        converter = tiny("dsconv", skip="none", targets=targets, options={"width": 16, "resample": resample})
        torch.nn.init.constant_(converter.branch.outputs["y"].weight, 0.1)
        answers.append(converter(tokens)["y"])
    torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-5)


def test_pooling_after_the_values_is_the_same():
    """Against a softmax over all tokens of values projected one by one, in float64."""
    pool = AttentionPool(8, 2, 3).double()
    x = draw(2, 7, 8).double()
    normed = pool.norm(x)
    weights = pool.queries(normed).softmax(dim=1).unflatten(2, (3, 2))  # (b s k h)
    values = torch.einsum("bsw, hwc -> bshc", normed, pool.values)
    expected = torch.einsum("bskh, bshc -> bkhc", weights, values).flatten(2)
    torch.testing.assert_close(pool(x), expected, atol=1e-6, rtol=1e-6)


def test_a_pooled_answer_reads_every_token(tokens):
    tokens.requires_grad_(True)
    stir(tiny("dsconv", skip="none"))(tokens)["vivit"].square().sum().backward()
    assert (tokens.grad.abs().amax(dim=2) > 0).all()


def test_special_tokens_of_the_student_are_read():
    student = TokenLayout(STUDENT.grid, STUDENT.dim, ("cls",))
    converter = stir(tiny("dsconv", student=student))
    tokens = draw(2, *student.shape)
    changed = tokens.clone()
    changed[:, -1] += 3
    for name in TARGETS:
        assert (converter(tokens)[name] - converter(changed)[name]).abs().max() > 1e-3


def test_special_tokens_of_a_target_are_told_apart(tokens):
    converter = stir(tiny("dsconv", skip="none", targets={"y": TokenLayout(None, 5, ("cls", "reg"))}))
    answer = converter(tokens, standardised=True)["y"]
    assert (answer[:, 0] - answer[:, 1]).abs().max() > 1e-3


def test_it_learns_a_product_of_neighbours():
    """What neither a linear map nor a perceptron on the local content can: y(p) = x0(p - one column) * x1(p)."""
    student, target = TokenLayout((2, 6, 6), 8), TokenLayout((2, 6, 6), 2)
    options = {"width": 32, "blocks": 1, "kernel": 3}
    converter = create_converter("dsconv", student=student, targets={"y": target}, skip="none", options=options)
    optimizer = torch.optim.AdamW(converter.parameters(), lr=1e-2)
    errors = []
    for step in range(250):
        x = draw(16, *student.shape, seed=step)
        volume = x.unflatten(1, (2, 6, 6))
        y = (volume[:, :, :, :, :2].roll(1, dims=3) * volume[:, :, :, :, 2:4])[:, :, :, 1:].flatten(1, 3)
        inside = torch.arange(72)[torch.arange(72) % 6 > 0]
        loss = (converter(x, positions={"y": inside})["y"] - y).square().mean() / y.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert sum(errors[-10:]) < 0.3 * sum(errors[:10])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kernel": 4}, "kernel is 4; it must be odd"),
        ({"kernel_time": 2}, "kernel_time is 2; it must be odd"),
        ({"kernel": 65}, "kernel is 65; .* 1 to 63"),
        ({"blocks": 0}, "blocks is 0"),
        ({"width": 5000}, "width is 5000; .* 1 to 4096"),
        ({"width": 20, "heads": 3}, "width is 20 and heads is 3"),
        ({"heads": "2"}, "heads is '2'"),
        ({"resample": "nearest"}, "resample is 'nearest'; valid: trilinear, transposed"),
    ],
)
def test_wrong_options_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        create_converter("dsconv", student=STUDENT, targets=TARGETS, options=options)
