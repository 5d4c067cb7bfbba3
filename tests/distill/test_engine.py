"""The engine under DeepSpeed: exact resume, any ZeRO stage, accumulation, and an average that follows."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from converters.branch import undecayed
from distill.engine import Engine, load_parameters, parameter_groups, schedule
from shards.ranks import Ranks


@pytest.fixture
def ranks() -> Ranks:
    return Ranks.join({})


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.branch = nn.Sequential(nn.Linear(7, 33), nn.GELU(), nn.Linear(33, 5))
            self.skips = nn.Linear(7, 5)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.branch(x) + self.skips(x)).float() - y).square().mean()}


def start(state: dict | None = None, **options: object) -> tuple[Regression, Engine]:
    model = Regression()
    if state:
        load_parameters(model, state)
    defaults = {"device": torch.device("cpu"), "steps": 10, "micro_batch": 4, "slow": {"skips": 0.1}, "lr": 1e-2}
    engine = Engine(model, **{**defaults, **options})  # type: ignore[arg-type]
    if state:
        engine.restore(state)
    return model, engine


def run(engine: Engine, first: int, last: int, *, accumulation: int = 1) -> list[float]:
    trace = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(4, 7, generator=generator)
        y = torch.randn(4, 5, generator=generator)
        for part in zip(x.chunk(accumulation), y.chunk(accumulation), strict=True):
            terms = engine.forward(*part)
            engine.backward(terms["loss"])
        engine.step()
        trace.append(float(terms["loss"].detach()))
    return trace


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_is_bit_exact(ranks: Ranks, zero: int, precision: str) -> None:
    _, whole = start(zero=zero, precision=precision)
    expected = run(whole, 0, 10)
    _, first = start(zero=zero, precision=precision)
    trace = run(first, 0, 4)
    _, second = start(first.state(), zero=zero, precision=precision)
    trace += run(second, 4, 10)
    assert trace == expected
    ours, theirs = second.state(), whole.state()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert {tensor.dtype for name, tensor in theirs.items() if name != "step"} == {torch.float32}


def test_a_state_is_at_home_in_any_zero_stage(ranks: Ranks) -> None:
    _, first = start(zero=1)
    run(first, 0, 4)
    _, second = start(first.state(), zero=0)
    _, whole = start(zero=0)
    run(whole, 0, 4)
    for left, right in zip(run(second, 4, 10), run(whole, 4, 10), strict=True):
        assert left == pytest.approx(right, rel=1e-5)


def test_accumulation_takes_the_same_step(ranks: Ranks) -> None:
    _, one = start(micro_batch=4)
    _, four = start(micro_batch=1, accumulation=4)
    run(one, 0, 5)
    run(four, 0, 5, accumulation=4)
    assert one.step_count == four.step_count == 5
    ours, theirs = one.state(), four.state()
    assert all(torch.allclose(ours[name].float(), theirs[name].float(), atol=1e-5) for name in theirs)


def test_the_skip_runs_slower_and_the_average_follows(ranks: Ranks) -> None:
    model, engine = start(ema=0.9)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run(engine, 0, 1)
    moved = {name: float((p - before[name]).detach().abs().max()) for name, p in model.named_parameters()}
    assert moved["skips.weight"] == pytest.approx(moved["branch.0.weight"] / 10, rel=0.05)
    decay = 1 / 10  # (1 + t) / (10 + t) at t = 0
    expected = decay * before["branch.0.weight"] + (1 - decay) * model.branch[0].weight
    assert torch.allclose(engine.average["branch.0.weight"], expected, atol=1e-6)
    last = model.branch[0].weight.detach().clone()
    with engine.averaged():
        assert torch.allclose(model.branch[0].weight, expected, atol=1e-6)
    assert torch.equal(model.branch[0].weight, last)
    engine.keep_average()
    assert torch.allclose(model.branch[0].weight, expected, atol=1e-6)


def test_schedule_warms_up_and_ends_at_nothing() -> None:
    shares = [schedule(step, steps=100, warmup=0.05) for step in range(100)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[5] == pytest.approx(1.0) and shares[-1] < 0.001
    assert all(a >= b for a, b in pairwise(shares[5:]))


def test_vectors_do_not_decay_and_slow_parts_have_a_share_of_the_rate() -> None:
    parameters = dict(Regression().named_parameters())
    groups = parameter_groups(parameters, lr=1.0, slow={"skips": 0.1}, weight_decay=0.02)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert {name: found[id(p)] for name, p in parameters.items()} == {
        "branch.0.weight": (1.0, 0.02),
        "branch.0.bias": (1.0, 0.0),
        "branch.2.weight": (1.0, 0.02),
        "branch.2.bias": (1.0, 0.0),
        "skips.weight": (0.1, 0.02),
        "skips.bias": (0.1, 0.0),
    }
    marked = {"places": undecayed(torch.ones(3, 2))}
    assert parameter_groups(marked, lr=1.0, slow={}, weight_decay=0.02)[0]["weight_decay"] == 0.0


def test_gradients_are_clipped(ranks: Ranks) -> None:
    """Adam ignores a common factor, but not one that changes: after one clipped step its moments say the norm."""
    _, engine = start(clip_norm=1e-3)
    run(engine, 0, 1)
    moments = [value for name, value in engine.state().items() if name.startswith("exp_avg/")]
    norm = torch.cat([value.flatten() for value in moments]).norm() / (1 - 0.9)
    assert float(norm) == pytest.approx(1e-3, rel=1e-2)


def test_a_foreign_state_is_refused(ranks: Ranks) -> None:
    _, engine = start()
    state = engine.state()
    del state["parameter/skips.bias"]
    with pytest.raises(ValueError, match="'skips.bias'"):
        load_parameters(Regression(), state)
    state = engine.state()
    state["parameter/skips.bias"] = torch.zeros(6)
    with pytest.raises(ValueError, match=r"skips.bias is \(6,\)"):
        load_parameters(Regression(), state)
    run(engine, 0, 1)
    with pytest.raises(ValueError, match="load_parameters before"):
        start()[1].restore(engine.state())


def test_spoilt_weights_are_not_saved(ranks: Ranks) -> None:
    """A finite loss whose gradients overflow: the weights go, the checkpoint on disk must not."""
    model, engine = start()
    run(engine, 0, 2)
    with torch.no_grad():
        model.skips.bias[1] = float("inf")
    with pytest.raises(ValueError, match=r"after step 2 parameter/skips.bias is not finite \(1 such"):
        engine.state()
