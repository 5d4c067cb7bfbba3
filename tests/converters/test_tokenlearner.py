"""TokenLearner: learned tokens that differ from the start and know their places; merging that loses nothing."""

from __future__ import annotations

import pytest
import torch
from small import STUDENT, TARGETS, draw, stir, tiny

from converters import create_converter
from converters.tokenlearner import merge
from teachers.layout import TokenLayout

STUDENT_8_16_16 = TokenLayout((8, 16, 16), 32)
MERGING = {"width": 16, "tokens": 5, "heads": 2, "samples": 4, "compress": "tome"}


def test_learned_tokens_differ_at_the_start():
    student, targets = TokenLayout((8, 16, 16), 64), {"y": TokenLayout((8, 14, 14), 8)}
    score = create_converter("tokenlearner", student=student, targets=targets).branch.score
    frames = draw(2, 256, 64)
    within = TokenLayout((1, 16, 16), 1).centres()[:, 1:]
    weights = score(frames, within)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 32))
    seen = (-(weights * weights.clamp(min=1e-12).log()).sum(dim=-1)).exp()
    assert 4 < seen.mean() < 128  # cells of 256 that a token looks at; a plain perceptron scorer: 255
    pooled = weights @ frames
    spread = pooled.std(dim=1).mean() / frames.std()
    assert spread > 0.1  # copies of the mean token: 1e-6
    assert torch.pdist((weights @ within)[0]).min() > 0.01


def test_learned_tokens_keep_their_places():
    branch = create_converter(
        "tokenlearner", student=STUDENT_8_16_16, targets={"y": TokenLayout((8, 14, 14), 8)}
    ).branch
    tokens = draw(2, 2048, 32)
    pooled, places, _ = branch.compress(tokens)
    assert pooled.shape == (2, 8 * 32, 32) and places.shape == (2, 8 * 32, 3)
    times = (torch.arange(8) + 0.5) / 8
    torch.testing.assert_close(places[..., 0], times.repeat_interleave(32).expand(2, -1))
    assert places[..., 1:].amin() > 0 and places[..., 1:].amax() < 1
    linear = STUDENT_8_16_16.centres().repeat(2, 1, 1)  # tokens that hold their own place pool to their place
    weights = branch.score(tokens.unflatten(1, (8, -1)).flatten(0, 1), STUDENT_8_16_16.centres()[:256, 1:])
    expected = weights @ linear.unflatten(1, (8, -1)).flatten(0, 1)
    torch.testing.assert_close(places, expected.unflatten(0, (2, 8)).flatten(1, 2))


@pytest.mark.parametrize("count", [1, 7, 16, 31, 32])
def test_merging_keeps_the_mean_and_every_token(count):
    tokens, places = draw(3, 32, 6), draw(3, 32, 3, seed=1)
    merged, where, sizes = merge(tokens, places, count)
    assert merged.shape == (3, count, 6) and where.shape == (3, count, 3)
    torch.testing.assert_close(sizes.sum(dim=1), torch.full((3,), 32.0))
    torch.testing.assert_close((merged * sizes[..., None]).sum(dim=1), tokens.sum(dim=1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close((where * sizes[..., None]).sum(dim=1), places.sum(dim=1), atol=1e-4, rtol=1e-4)


def test_merging_joins_copies_first():
    distinct = torch.eye(8)[None]
    tokens = distinct.repeat_interleave(4, dim=1)
    merged, _, sizes = merge(tokens, torch.zeros(1, 32, 3), 8)
    assert sizes.tolist() == [[4.0] * 8]
    assert sorted(merged[0].argmax(dim=1).tolist()) == list(range(8))
    torch.testing.assert_close(merged.norm(dim=-1), torch.ones(1, 8))


def test_merging_treats_clips_apart_and_repeats_itself():
    tokens, places = draw(3, 32, 6), draw(3, 32, 3, seed=1)
    whole, alone, again = merge(tokens, places, 8), merge(tokens[1:2], places[1:2], 8), merge(tokens, places, 8)
    assert all(torch.equal(a[1:2], b) for a, b in zip(whole, alone, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_a_merging_converter_learns_and_exports(tokens):
    converter = stir(tiny("tokenlearner", options=MERGING))
    answers = converter(tokens)
    sum(y.square().mean() for y in answers.values()).backward()
    assert all(bool(p.grad.isfinite().all()) for p in converter.parameters() if p.grad is not None)
    assert bool((converter.branch.project.weight.grad != 0).any())
    converter.eval()
    program = torch.export.export(converter, (tokens,), dynamic_shapes={"tokens": {0: torch.export.Dim("b", min=1)}})
    three = draw(3, *STUDENT.shape, seed=4)
    for name, y in converter(three).items():
        torch.testing.assert_close(program.module()(three)[name], y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("compress", ["learn", "tome"])
def test_special_tokens_of_the_student_are_read(compress):
    student = TokenLayout(STUDENT.grid, STUDENT.dim, ("cls",))
    converter = stir(tiny("tokenlearner", student=student, options=MERGING | {"compress": compress}))
    tokens = draw(2, *student.shape)
    changed = tokens.clone()
    changed[:, -1] += 3
    assert (converter(tokens)["vivit"] - converter(changed)["vivit"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"compress": "pool"}, "compress is 'pool'; valid: learn, tome"),
        ({"tokens": 17}, "tokens is 17; .* from 1 to 16"),
        ({"blocks": 0}, "blocks is 0"),
        ({"width": 24, "heads": 5}, "width is 24 and heads is 5"),
        ({"width": 24, "samples": 5}, "width is 24 and samples is 5"),
    ],
)
def test_wrong_options_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        create_converter("tokenlearner", student=STUDENT, targets=TARGETS, options=options)
