"""What a loss makes of a deficiency: its terms, their weights, and the converter that they reach."""

from __future__ import annotations

import pytest
import torch
from deprived import OPTIONS, STUDENT, TARGETS, dials, draw, stirred

from converters import FAMILIES, Converter
from converters.attention import watched
from distill.deficiency import Dials, attention_entropy
from distill.objective import Objective


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    return {name: draw(2, *at.shape, seed=seed) for name, at in {"student": STUDENT, **TARGETS}.items()}


def built(family: str, at: Dials | None) -> Objective:
    rank, mask = (at.rank, at.ratio is not None) if at else (None, False)
    return Objective(stirred(family, rank=rank, mask_token=mask), weights={"mse": 1.0}, dials=at)


@pytest.mark.parametrize("family", list(OPTIONS))
@pytest.mark.parametrize("kind", ["low_rank", "masking", "jacobian", "combined"])
def test_terms_are_named_weighted_and_reach_the_converter(kind: str, family: str) -> None:
    at = dials(kind, strength=1.0)
    objective = built(family, at)
    names = {f"{target}/mse" for target in TARGETS}
    names |= {f"{target}/nuclear" for target in TARGETS if at.nuclear}
    names |= {"entropy"} if at.entropy else set()
    positions = {"tokens": torch.tensor([0, 2, 5, 7, 11, 18])}
    late = objective(batch(), positions, 72)
    assert set(late) == {"loss", *names, *(f"{target}/jacobian" for target in TARGETS if at.jacobian)}
    weights = {"mse": 0.5, "nuclear": at.nuclear / 2, "entropy": at.entropy, "jacobian": 4 * at.jacobian / 2}
    total = sum(weights[name.rpartition("/")[2]] * float(value) for name, value in late.items() if name != "loss")
    assert float(late["loss"]) == pytest.approx(total, rel=1e-5)
    late["loss"].backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None] == []
    assert set(objective(batch(), positions, 73)) == {"loss", *names}, "the Jacobian is looked at every fourth step"


@pytest.mark.parametrize("kind", ["low_rank", "masking", "jacobian", "combined"])
def test_nothing_is_lost_before_the_dial_turns(kind: str) -> None:
    objective = built("perceiver", dials(kind))
    plain = Objective(objective.converter, weights={"mse": 1.0})
    assert torch.equal(objective(batch(), None, 8)["loss"], plain(batch(), None)["loss"])
    assert not torch.equal(objective(batch(), None, 72)["loss"], plain(batch(), None)["loss"])


def test_a_step_s_terms_do_not_depend_on_what_came_before() -> None:
    for kind in ("masking", "jacobian"):
        objective = built("tokenlearner", dials(kind))
        first = objective(batch(), None, 72)
        objective(batch(1), None, 48)
        assert all(torch.equal(value, first[name]) for name, value in objective(batch(), None, 72).items())


def test_the_jacobian_under_autocast_is_not_rounding() -> None:
    objective = built("perceiver", dials("jacobian", directions=16))
    exact = objective(batch(), None, 72)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = objective(batch(), None, 72)
    for target in TARGETS:
        assert float(rough[f"{target}/jacobian"]) == pytest.approx(float(exact[f"{target}/jacobian"]), rel=0.01)


@torch.no_grad()
def mean_entropy(converter: Converter) -> float:
    found: list[float] = []
    with watched(converter, lambda logits: found.append(float(attention_entropy(logits)))):
        converter(batch()["student"])
    return sum(found) / len(found)


def test_the_entropy_hinge_draws_attention_together() -> None:
    objective = built("perceiver", dials("masking", ratio=0.0, entropy=1.0, strength=1.0))
    objective.weights = {"mse": 1e-9}
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    first = mean_entropy(objective.converter)
    for _ in range(15):
        optimizer.zero_grad()
        objective(batch(), None, 72)["loss"].backward()
        optimizer.step()
    assert mean_entropy(objective.converter) < 0.8 * first
    assert all(getattr(part, "watch", None) is None for part in objective.modules()), "left behind"


def test_every_family_is_here() -> None:
    assert set(OPTIONS) == set(FAMILIES) - {"mlp", "linear", "constant"}


def test_the_nuclear_norm_is_not_met_by_larger_activations() -> None:
    """A tenth of the branch's last maps on ten times their inputs answers the same."""
    objective = built("perceiver", dials("low_rank"))
    first = objective(batch(), None, 72)
    with torch.no_grad():
        for output in objective.converter.branch.outputs.values():  # type: ignore[union-attr]
            output.weight /= 10
            output.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 10,))
    for name, value in objective(batch(), None, 72).items():
        assert float(value.detach()) == pytest.approx(float(first[name].detach()), rel=1e-4), name
    assert not any(at._forward_pre_hooks for at in objective.converter.bottlenecks.values()), "left behind"
