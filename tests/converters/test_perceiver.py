"""The perceiver: places never trained on, and learning what no skip can."""

from __future__ import annotations

import torch
from small import STUDENT, draw, stir, tiny

from converters import create_converter
from converters.decoder import evenly
from converters.perceiver import along_a_curve
from teachers.layout import TokenLayout


def test_latents_start_apart_and_attention_is_not_uniform():
    student = TokenLayout((8, 16, 16), 32)
    branch = create_converter(
        "perceiver", student=student, targets={"y": TokenLayout((8, 14, 14), 8)}, options={"width": 128}
    ).branch
    placed = branch.project(draw(1, *student.shape)) + branch.places.student()
    read, latents = branch.read, branch.latents[None]
    q = read.query(read.norm(latents)).unflatten(-1, (2, 64)).transpose(1, 2)
    k = read.keys_values(read.memory_norm(placed)).chunk(2, dim=-1)[0].unflatten(-1, (2, 64)).transpose(1, 2)
    weights = (q @ k.transpose(-1, -2) / 8).softmax(dim=-1)
    attended = weights.mean(dim=1)[0] @ student.centres()  # (l, 3): where each latent looks
    seen = (-(weights * weights.log()).sum(dim=-1)).exp().mean()
    assert seen < 1000  # of 2048 tokens; independent query and key maps look at nearly all
    assert attended.std(dim=0).min() > 0.05


def test_the_look_up_reads_single_student_tokens(tokens):
    """A token far from a query reaches it through the look-up, beyond what one latent lets through."""
    options = {"width": 16, "latents": 1, "heads": 2, "blocks": 1}
    without, plain = (stir(tiny("perceiver", options=options | {"lookup": count})) for count in (0, 8))
    assert without.branch.decoder.lookup is None
    missing = plain.load_state_dict(without.state_dict(), strict=False).missing_keys
    assert missing and all("lookup" in name for name in missing)
    assert not torch.allclose(plain(tokens)["videomae"], without(tokens)["videomae"])


def test_queries_sample_where_the_clip_says(tokens):
    converter = stir(tiny("perceiver", skip="none"))
    before = converter(tokens)["videomae"]
    with torch.no_grad():
        converter.branch.decoder.sampler.where.bias.add_(0.5)
    assert (converter(tokens)["videomae"] - before).abs().max() > 1e-3


def test_special_tokens_of_the_student_are_read():
    student = TokenLayout(STUDENT.grid, STUDENT.dim, ("cls",))
    converter = stir(tiny("perceiver", student=student))
    tokens = draw(2, *student.shape)
    changed = tokens.clone()
    changed[:, -1] += 3
    assert (converter(tokens)["vivit"] - converter(changed)["vivit"]).abs().max() > 1e-3


def test_the_places_of_the_students_tokens_are_read():
    """The same tokens in another order are another clip; the skip and the mean content cannot tell."""
    converter = stir(tiny("perceiver", skip="none", normaliser="global"))
    tokens = draw(1, *STUDENT.shape)
    turned = converter(tokens.flip(1), standardised=True)["vivit"]
    assert (converter(tokens, standardised=True)["vivit"] - turned).abs().max() > 1e-4


def test_special_tokens_of_a_target_are_told_apart(tokens):
    converter = stir(tiny("perceiver", skip="none", targets={"y": TokenLayout(None, 5, ("cls", "reg"))}))
    answer = converter(tokens, standardised=True)["y"]
    assert (answer[:, 0] - answer[:, 1]).abs().max() > 1e-3
    answer.sum().backward()
    assert (converter.branch.decoder.kinds["y"].grad != 0).any(dim=1).tolist() == [True, True, True]


def test_a_coarse_target_never_sees_the_bands_of_a_fine_one(tokens):
    targets = {"coarse": TokenLayout((2, 3, 3), 5), "fine": TokenLayout((2, 9, 9), 5)}
    converter = stir(tiny("perceiver", skip="none", targets=targets))
    before = converter(tokens)
    weight = converter.branch.places.code.weight
    assert weight.shape[1] == 2 * (1 + 8 + 8)
    weight.data[:, [2 + 7, 2 + 15, 18 + 7, 18 + 15]] += 1  # the highest band of y and x: above the student's too
    after = converter(tokens)
    assert torch.equal(before["coarse"], after["coarse"])
    assert not torch.equal(before["fine"], after["fine"])


def test_size_sets_defaults_and_a_bundle_needs_none():
    student, targets = TokenLayout((2, 4, 4), 256), {"y": TokenLayout((2, 3, 3), 12)}

    def options(**given):
        return create_converter("perceiver", student=student, targets=targets, options=given).branch.options()

    base, small = options(), options(size="small")
    assert options(size="base") == base
    assert [small[name] for name in ("width", "latents", "samples", "lookup")] == [160, 128, 4, 32]
    assert "size" not in small and options(**small) == small
    mine = {"width": 64, "latents": 7, "samples": 2, "lookup": 0}
    assert options(size="small", **mine) == options(**mine)
    assert options(size="small", width=6, heads=3)["samples"] == 3


def test_neighbours_follow_each_other_along_the_curve():
    places = evenly(192)
    order = along_a_curve(places)
    assert sorted(order.tolist()) == list(range(192))
    spread, scattered = (part.unflatten(0, (32, 6)).std(dim=1).mean() for part in (places[order], places))
    assert spread < 0.6 * scattered


def test_latents_that_landmarks_will_average_start_in_runs():
    full, nystrom = (
        tiny("perceiver", options={"width": 32, "heads": 2, "latents": 64, "mixing": mixing}).branch.latents.detach()
        for mixing in ("full", "nystrom")
    )
    steps = [latents.diff(dim=0).norm(dim=1).mean() for latents in (full, nystrom)]
    assert steps[1] < 0.8 * steps[0]
