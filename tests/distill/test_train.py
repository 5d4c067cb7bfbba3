"""The loop: what stops it, what it reports, and that a learner ends the same in any company."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest
import torch

from converters import create_converter
from distill.engine import Engine
from distill.objective import Objective
from distill.train import Learner, NotFinite, Stopped, StopRequest, sampled_positions, train
from shards.ranks import Ranks
from teachers.layout import TokenLayout

STUDENT = TokenLayout(grid=(2, 4, 4), dim=12)
TARGETS = {"tokens": TokenLayout(grid=(2, 3, 3), dim=8, special=("cls",)), "pooled": TokenLayout(grid=None, dim=6)}


def learner(family: str, name: str, *, steps: int = 6) -> Learner:
    Ranks.join({})
    options = {"width": 16, "latents": 4, "heads": 2, "blocks": 1} if family == "perceiver" else {}
    converter = create_converter(family, student=STUDENT, targets=TARGETS, options=options, seed=1)
    objective = Objective(converter, weights={"mse": 1.0, "cosine": 0.5, "gram": 0.1})
    engine = Engine(objective, device=torch.device("cpu"), steps=steps, micro_batch=2, accumulation=2)
    return Learner(name, engine, sampled_positions(TARGETS, count=7, seed=3))


def batches(start: int = 0, *, spoil: int | None = None) -> Iterator[dict]:
    """Two micro-batches of two clips a step."""
    for number in range(2 * start, 10**6):
        generator = torch.Generator().manual_seed(number)
        columns = {"student": STUDENT, **TARGETS}
        batch: dict = {name: torch.randn(2, *at.shape, generator=generator) for name, at in columns.items()}
        batch["keys"] = [f"{number}-a", f"{number}-b"]
        if spoil is not None and number == 2 * spoil + 1:
            batch["student"][1, 0, 0] = float("nan")
        yield batch


def loop(learners: list[Learner], *, stop_at: int | None = None, spoil: int | None = None) -> dict:
    seen: dict = {"reports": {}, "saved": [], "validated": []}
    asked: Callable[[], bool] = lambda: stop_at is not None and len(seen["reports"]) + 1 >= stop_at  # noqa: E731
    try:
        train(
            learners,
            batches(spoil=spoil),
            start=0,
            steps=6,
            accumulation=2,
            ranks=Ranks.join({}),
            report=lambda step, losses: seen["reports"].update({step: losses}),
            save=seen["saved"].append,
            save_every=4,
            validate=seen["validated"].append,
            validate_every=3,
            asked_to_stop=asked,
        )
    except Stopped as stopped:
        seen["stopped"] = stopped.step
    return seen


def test_reports_every_step_with_named_terms() -> None:
    seen = loop([learner("perceiver", "main")])
    assert list(seen["reports"]) == [1, 2, 3, 4, 5, 6]
    assert seen["saved"] == [4, 6] and seen["validated"] == [3]
    terms = seen["reports"][1]["main"]
    assert set(terms) == {"loss", *(f"{t}/{m}" for t in TARGETS for m in ("mse", "cosine", "gram"))}
    mean = sum(terms[f"{t}/mse"] + 0.5 * terms[f"{t}/cosine"] + 0.1 * terms[f"{t}/gram"] for t in TARGETS) / 2
    assert terms["loss"] == pytest.approx(mean)


def test_a_reported_loss_is_the_mean_over_micro_batches() -> None:
    main = learner("linear", "main")
    stream, positions = batches(), main.positions(0)
    with torch.no_grad():
        expected = [float(main.engine.forward(next(stream), positions)["loss"]) for _ in range(2)]
    assert loop([main])["reports"][1]["main"]["loss"] == pytest.approx(sum(expected) / 2)


def test_a_learner_ends_the_same_in_company() -> None:
    alone, together, other = learner("perceiver", "main"), learner("perceiver", "main"), learner("linear", "skip")
    first, second = loop([alone]), loop([other, together])
    assert [r["main"]["loss"] for r in first["reports"].values()] == [
        r["main"]["loss"] for r in second["reports"].values()
    ]
    ours, theirs = alone.engine.state(), together.engine.state()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_clip() -> None:
    main = learner("perceiver", "main")
    parameters = main.engine.parameters.values()
    with pytest.raises(NotFinite, match=r"step 2: main's .*tokens of 5-b are not finite"):
        loop([main], spoil=2)
    assert main.engine.step_count == 2
    assert all(p.isfinite().all() for p in parameters)


def test_a_request_to_stop_is_saved_first() -> None:
    seen = loop([learner("linear", "main")], stop_at=2)
    assert seen["stopped"] == 2 and seen["saved"] == [2]


def test_sigterm_is_remembered_within_the_loop_only() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
    assert signal.getsignal(signal.SIGTERM) == before
    try:
        with pytest.raises(Stopped), StopRequest():
            raise Stopped(3)
        os.kill(os.getpid(), signal.SIGTERM)  # a second one does not kill what is on its way out
    finally:
        signal.signal(signal.SIGTERM, before)


def test_positions_are_a_function_of_seed_and_step() -> None:
    one, two = (sampled_positions(TARGETS, count=7, seed=3) for _ in range(2))
    assert torch.equal(one(5)["tokens"], two(5)["tokens"])
    assert not torch.equal(one(5)["tokens"], one(6)["tokens"])
    assert not torch.equal(one(5)["tokens"], sampled_positions(TARGETS, count=7, seed=4)(5)["tokens"])
    assert len(one(5)["tokens"]) == 8 and int(one(5)["tokens"][-1]) == 18  # seven of the grid, and cls
    assert "pooled" not in one(5)
    assert sampled_positions(TARGETS, count=None, seed=0)(0) == {}


def test_objective_needs_a_term() -> None:
    converter = create_converter("linear", student=STUDENT, targets=TARGETS)
    with pytest.raises(ValueError, match="every loss term has weight 0"):
        Objective(converter, weights={"mse": 0.0})
    with pytest.raises(ValueError, match="mze"):
        Objective(converter, weights={"mze": 1.0})
