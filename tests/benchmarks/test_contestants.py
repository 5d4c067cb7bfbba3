"""The skeletons and peers of the benchmark, and the benchmark itself, at a tiny geometry."""

from __future__ import annotations

import json

import pytest
import steps
import torch
from peers import PEERS, ConvolutionTranslator
from skeletons import AttentionResampler, LinearResampler, StateSpaceResampler, TokenLearnerResampler, sines
from timing import medians, training_step
from torch import Tensor, nn

from teachers.layout import TokenLayout

STUDENT = TokenLayout((2, 4, 4), 24)
TARGETS = {
    "videomae": TokenLayout((2, 2, 2), 48),
    "timesformer": TokenLayout((4, 2, 2), 48),
    "vivit": TokenLayout(None, 48),
}
FULL = TokenLayout((8, 16, 16), 1024), TokenLayout((8, 14, 14), 768)


class Running(nn.Module):
    """In the place of a state-space block: the mean of what came so far."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.cumsum(dim=1) / torch.arange(1, x.shape[1] + 1)[:, None]


def made(name: str, student: TokenLayout, target: TokenLayout) -> nn.Module:
    """A contestant; skips the test where its package is not there."""
    if name == "running means in C":
        return StateSpaceResampler(student, target, block=lambda width: Running())
    try:
        return {**steps.SKELETONS, **PEERS}[name](student, target)
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, *STUDENT.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("target", "precision"), [*((target, "fp32") for target in TARGETS), ("videomae", "bf16")])
@pytest.mark.parametrize("name", [*steps.SKELETONS, "running means in C", *PEERS])
def test_shapes_and_gradients(name: str, target: str, precision: str, tokens: Tensor) -> None:
    if name == "Theia-style convolution" and target == "vivit":
        pytest.skip("it answers on grids only")
    model = made(name, STUDENT, TARGETS[target])
    tokens.requires_grad_(True)
    assert model(tokens).shape == (2, *TARGETS[target].shape)
    training_step(model, tokens, precision=precision)()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), label
    assert tokens.grad is not None and (tokens.grad.abs().amax(dim=2) > 0).all()  # every token is read


@pytest.mark.parametrize("name", ["skeleton A", "skeleton D"])
def test_shuffled_tokens_are_answered_otherwise(name: str, tokens: Tensor) -> None:
    """In float64, for at the start attention is nearly uniform, and the difference small."""
    model, tokens = made(name, STUDENT, TARGETS["videomae"]).eval().double(), tokens.double()
    answer = model(tokens)
    assert (answer - model(tokens.flip(1))).abs().max() > 1e-6
    assert (answer[:, 1:] - answer[:, :1]).abs().amax(dim=2).min() > 1e-6  # places are answered differently


def test_learned_tokens_of_d_differ(tokens: Tensor) -> None:
    weights = TokenLearnerResampler(STUDENT, TARGETS["videomae"]).score(tokens).softmax(dim=1)  # (b s k)
    assert weights.std(dim=2).mean() > 0.2 / STUDENT.num_tokens


@pytest.mark.parametrize(
    ("skeleton", "count"), [(AttentionResampler, 5.61), (LinearResampler, 3.75), (TokenLearnerResampler, 3.48)]
)
def test_skeletons_have_the_parameters_of_the_report(skeleton: type[nn.Module], count: float) -> None:
    with torch.device("meta"):
        assert steps.millions(skeleton(*FULL)) == pytest.approx(count, abs=0.005)


@pytest.mark.parametrize("name", PEERS)
def test_peers_are_about_as_large_as_the_perceiver_at_width_320(name: str) -> None:
    """At its default width it is smaller: tables at equal size take that one."""
    wide = steps.family("perceiver", {"y": FULL[1]}, {"perceiver": {"width": 320}}, skip="none")
    assert 0.9 * steps.millions(wide) < steps.millions(made(name, *FULL)) < 1.2 * steps.millions(wide)


def test_interpolation_follows_the_grid() -> None:
    """A field that is linear in the row stays so; along the flattened sequence it would not."""
    student, target = TokenLayout((2, 4, 4), 6), TokenLayout((2, 2, 2), 6)
    model = StateSpaceResampler(student, target, block=lambda width: nn.Identity(), width=6)
    nn.init.eye_(model.project.weight)
    nn.init.eye_(model.out.weight)
    rows = student.centres()[:, 1:2].expand(-1, 6)[None]
    torch.testing.assert_close(model(rows), target.centres()[:, 1:2].expand(-1, 6)[None])
    pooled = StateSpaceResampler(student, TokenLayout(None, 6), block=lambda width: nn.Identity(), width=6)
    pooled.load_state_dict(model.state_dict())
    torch.testing.assert_close(pooled(rows), rows.mean(dim=1, keepdim=True))


def test_sines_need_a_multiple_of_six() -> None:
    with pytest.raises(ValueError, match="width is 8; .* a multiple of 6"):
        sines(STUDENT, 8)


@pytest.mark.parametrize(
    ("target", "match"),
    [
        (TokenLayout((2, 3, 3), 12), "2 x 3 x 3 = 18 tokens of 12; an unpadded"),
        (TokenLayout(None, 12), "pooled = 1 tokens of 12; an unpadded"),
        (TokenLayout((3, 2, 2), 12), "3 frames, the student 2"),
    ],
)
def test_the_translator_names_a_grid_that_it_cannot_reach(target: TokenLayout, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ConvolutionTranslator(STUDENT, target)


def test_medians_take_turns_and_leave_the_first_out() -> None:
    order: list[str] = []
    times = medians({name: lambda name=name: order.append(name) for name in "ab"}, 2)  # type: ignore[misc]
    assert order == list("ababab") and set(times) == set("ab")


def test_the_benchmark_prints_its_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(steps, "STUDENT", STUDENT)
    monkeypatch.setattr(steps, "TARGETS", TARGETS)
    monkeypatch.setattr(steps, "QUERIES", 3)
    options = {"tokenlearner:narrow": {"width": 16}}
    monkeypatch.setattr(
        "sys.argv",
        [
            "steps.py",
            "--sections",
            "family",
            "contest",
            "cost",
            "--rounds",
            "1",
            "--batches",
            "1",
            "--precisions",
            "fp32",
        ]
        + ["--families", "tokenlearner:narrow", "--options", json.dumps(options)],
    )
    steps.main()
    printed = capsys.readouterr().out
    for line in ("| tokenlearner:narrow, both |", "| skeleton D |", "| skip |", "| timesformer, batch 2, fp32 |"):
        assert line in printed
    for name in [*steps.SKELETONS, *PEERS]:
        assert f"| {name} |" in printed or f"{name} is left out: " in printed  # never silently
    assert steps.peak("tokenlearner:narrow", "all", options, "fp32") >= 0
