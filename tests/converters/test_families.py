"""The registry, the converter's own checks, and the sizes at full geometry."""

from __future__ import annotations

import pytest
import torch
from small import STUDENT, TARGETS, draw, stir, tiny

from converters import FAMILIES, create_converter, list_converters
from converters.converter import check_finite
from teachers.layout import TokenLayout

FULL = TokenLayout((8, 16, 16), 1024)
VIDEOMAE = {"videomae": TokenLayout((8, 14, 14), 768)}
TIMESFORMER = {"timesformer": TokenLayout((16, 14, 14), 768)}
TIMESFORMER_CLS = {"timesformer": TokenLayout((16, 14, 14), 768, ("cls",))}
VIVIT = {"vivit": TokenLayout(None, 768)}
SHAPES = {
    "videomae": VIDEOMAE,
    "timesformer": TIMESFORMER,
    "timesformer_cls": TIMESFORMER_CLS,
    "vivit": VIVIT,
    "all": VIDEOMAE | TIMESFORMER | VIVIT,
    "all_cls": VIDEOMAE | TIMESFORMER_CLS | VIVIT,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", [name for name in FAMILIES if FAMILIES[name]])
def test_one_to_five_million_parameters_at_full_geometry(family, shape):
    with torch.device("meta"):
        converter = create_converter(family, student=FULL, targets=SHAPES[shape])
    assert 1_000_000 <= converter.num_parameters() <= 5_000_000


@pytest.mark.parametrize("targets", SHAPES.values(), ids=SHAPES)
def test_a_small_perceiver_has_over_a_million_parameters_and_fewer_than_the_default(targets):
    with torch.device("meta"):
        base, small = (
            create_converter("perceiver", student=FULL, targets=targets, options={"size": size})
            for size in ("base", "small")
        )
    assert 1_000_000 <= small.num_parameters() < base.num_parameters()


@pytest.mark.parametrize("family", ["perceiver", "dsconv", "mamba", "tokenlearner"])
def test_the_trunk_narrows_with_targets(family):
    widths = []
    for count in range(1, 6):
        with torch.device("meta"):
            targets = {f"y{at}": VIDEOMAE["videomae"] for at in range(count)}
            converter = create_converter(family, student=FULL, targets=targets)
        assert count > 4 or converter.num_parameters() <= 5_000_000
        widths.append(converter.branch.options()["width"])
    assert widths == [224, 224, 192, 160, 128]


@pytest.mark.parametrize("targets", SHAPES.values(), ids=SHAPES)
def test_the_mlp_matches_a_parameter_count(targets):
    with torch.device("meta"):
        branch = create_converter("mlp", student=FULL, targets=targets, options={"parameters": 3_900_000}).branch
    assert 0.99 * 3_900_000 < sum(parameter.numel() for parameter in branch.parameters()) <= 3_900_000


def test_names_are_found():
    assert list_converters() == sorted(FAMILIES)
    assert list_converters("per*") == ["perceiver"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"family": "perciever"}, "'perciever'; valid: .*did you mean 'perceiver'"),
        ({"options": {"widht": 32}}, "no option 'widht'; valid: width, .*did you mean 'width'"),
        ({"family": "linear", "options": {"width": 3}}, "'linear' has no option 'width'; valid: none"),
        ({"options": {"width": 20, "heads": 3}}, "width is 20 and heads is 3"),
        ({"options": {"width": "20"}}, "width is '20'"),
        ({"options": {"latents": 0}}, "latents is 0"),
        ({"options": {"blocks": True}}, "blocks is True"),
        ({"options": {"width": 1 << 20}}, "width is 1048576; .* 1 to 4096"),
        ({"options": {"lookup": -1}}, "lookup is -1"),
        ({"options": {"size": "tiny"}}, "size is 'tiny'; valid: base, small"),
        ({"options": {"mixing": "linear"}}, "mixing is 'linear'; valid: full, nystrom, performer"),
        ({"options": {"mixing": ["full"]}}, r"mixing is \['full'\]"),
        ({"options": {"landmarks": 0}}, "landmarks is 0"),
        ({"options": {"features": 1 << 20}}, "features is 1048576; .* 1 to 8192"),
        ({"options": {"samples": 3, "width": 16}}, "width is 16 and samples is 3"),
        ({"family": "mlp", "options": {"hidden": 3, "parameters": 4}}, "hidden=3 and parameters=4"),
        ({"family": "mlp", "options": {"parameters": 40}}, "parameters is 40"),
        ({"skip": "conv"}, "skip is 'conv'; valid: linear, none"),
        ({"normaliser": "phis"}, "normaliser is 'phis'; valid: position, global"),
        ({"family": "linear", "skip": "none"}, "'constant'"),
        ({"student": TokenLayout(None, 24)}, "student is pooled"),
        ({"targets": {}}, "targets is empty"),
        ({"targets": {"videomae": (1568, 768)}}, r"target 'videomae' is \(1568, 768\), which has no positions; give"),
        ({"student": None}, "the student is None, which has no positions"),
        ({"targets": {"a.b": TARGETS["vivit"]}}, "'a.b'"),
        ({"targets": {"pop": TARGETS["vivit"]}}, "'pop'"),
        ({"targets": {"copy": TARGETS["vivit"]}}, "target is called 'copy'"),
        ({"targets": {"training": TARGETS["vivit"]}}, "target is called 'training'"),
        ({"targets": {"x": TokenLayout((1, 1, 1), 3, ("training",))}}, "special token of 'x' is called 'training'"),
        ({"targets": {"x": TokenLayout((1, 1, 1), 3, ("grid",))}}, "special token of 'x' is called 'grid'"),
    ],
)
def test_wrong_arguments_are_named(changes, match):
    arguments = {"student": STUDENT, "targets": TARGETS} | changes
    with pytest.raises(ValueError, match=match):
        create_converter(arguments.pop("family", "perceiver"), **arguments)


@pytest.mark.parametrize(
    ("shape", "match"),
    [((2, 31, 24), r"\(2, 31, 24\).*\(clips, 32, 24\)"), ((2, 32, 23), r"\(2, 32, 23\)"), ((32, 24), r"\(32, 24\)")],
)
def test_wrong_tokens_are_named(shape, match):
    with pytest.raises(ValueError, match=match):
        tiny("linear")(draw(*shape))


def test_wrong_questions_are_named(tokens):
    converter = tiny("linear")
    with pytest.raises(ValueError, match=r"torch.int64"):
        converter(tokens.long())
    with pytest.raises(ValueError, match="positions name the target 'dino'; this converter has videomae"):
        converter(tokens, positions={"dino": torch.tensor([0])})
    with pytest.raises(ValueError, match=r"position 18 lies outside 0\.\.17"):
        converter(tokens, positions={"videomae": torch.tensor([18])})
    with pytest.raises(ValueError, match="layouts name the target 'dino'"):
        converter(tokens, layouts={"dino": TARGETS["vivit"]})
    for other in (TokenLayout((2, 3, 3), 13), TokenLayout(None, 12), TokenLayout((2, 3, 3), 12, ("reg",))):
        with pytest.raises(ValueError, match="only grid and extent may differ"):
            converter(tokens, layouts={"videomae": other})
    with pytest.raises(ValueError, match=r"\(2, 4, 12\), but 3 positions"):
        converter.standardise_targets("videomae", draw(2, 4, 12), torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="'dino'"):
        converter.standardise_targets("dino", draw(2, 4, 12))


def test_special_tokens_may_be_left_out_of_another_grid(tokens):
    converter = stir(tiny("perceiver"))
    own = TARGETS["timesformer"]
    answer = converter(tokens, layouts={"timesformer": TokenLayout(own.grid, own.dim, (), own.extent)})["timesformer"]
    torch.testing.assert_close(answer, converter(tokens)["timesformer"][:, :-1], atol=1e-5, rtol=1e-5)


def test_check_finite_names_the_place():
    tokens = draw(2, 3, 4)
    check_finite(tokens)
    tokens[1, 2, 0] = float("inf")
    with pytest.raises(ValueError, match=r"student tokens\[1, 2, 0\] is inf, and 1 of 24"):
        check_finite(tokens)


def test_a_constant_predicts_the_mean(tokens):
    for mode in ("position", "global"):
        converter = tiny("constant", normaliser=mode)
        assert converter.num_parameters() == 0
        for name, y in converter(tokens).items():
            assert torch.equal(y, converter.target_normalisers[name].mean.expand_as(y))
