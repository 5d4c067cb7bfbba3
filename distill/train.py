"""The training loop: one read of the data, any number of learners.

A batch is read once; every learner (the converter, and the floors that need training) takes the same step on it with an
optimizer, a clipping and an average of its own. What is random in a step is a function of (seed, step) alone, so that a
learner ends with the same weights in any company, and a resumed run needs no generator's state.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from converters.resample import stratified
from distill.engine import Engine
from distill.pairs import WRONG
from shards.ranks import Ranks
from teachers.layout import TokenLayout

Batch = Mapping[str, object]
Report = Callable[[int, dict[str, dict[str, float]]], None]


@dataclass(frozen=True)
class Learner:
    """A name, the engine that trains it, and the target tokens that it decodes at a step (see sampled_positions).

    wrong: it learns from wrongly paired clips, which its batches must have (distill.pairs)."""

    name: str
    engine: Engine
    positions: Callable[[int], dict[str, Tensor]]
    wrong: bool = False

    def sees(self, batch: Batch) -> Batch:
        return {**batch, **batch[WRONG]} if self.wrong else batch  # type: ignore[dict-item]


class NotFinite(RuntimeError):
    """A loss that is not a number, found before the optimizer stepped."""


class Stopped(Exception):
    """The run was asked to stop; its state at `step` is on disk."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


def train(
    learners: Sequence[Learner],
    batches: Iterator[Batch],
    *,
    start: int,
    steps: int,
    accumulation: int,
    ranks: Ranks,
    report: Report,
    save: Callable[[int], None],
    save_every: int,
    validate: Callable[[int], None],
    validate_every: int,
    asked_to_stop: Callable[[], bool],
) -> None:
    """Trains from step `start` to `steps`.

    batches: this rank's micro-batches from step `start` on, `accumulation` for each step. report(step, losses):
    {learner: {term: value}}, means over ranks and micro-batches. save(n), validate(n): called when n steps are done.
    Raises NotFinite before the optimizer would step on such a loss, and Stopped once a requested stop is on disk.
    """
    progress = tqdm(total=steps, initial=start, desc="train", unit="step", disable=not ranks.main, dynamic_ncols=True)
    with progress:
        for step in range(start, steps):
            micro_batches = list(islice(batches, accumulation))
            positions = [learner.positions(step) for learner in learners]
            sums: list[dict[str, Tensor]] = [{} for _ in learners]
            for batch in micro_batches:
                for learner, chosen, terms in zip(learners, positions, sums, strict=True):
                    found = learner.engine.forward(learner.sees(batch), chosen, step)
                    learner.engine.backward(found["loss"])
                    for name, value in found.items():
                        terms[name] = terms.get(name, 0) + value.detach() / len(micro_batches)

            losses, stop = gather(sums, asked_to_stop(), ranks)  # the one wait for the device in a step
            stop_if_not_finite(losses, learners, micro_batches, step)
            for learner in learners:
                learner.engine.step()

            done = step + 1
            report(done, {learner.name: terms for learner, terms in zip(learners, losses, strict=True)})
            progress.set_postfix(loss=f"{losses[0]['loss']:.4f}", refresh=False)
            progress.update()
            if done % validate_every == 0 and done < steps:
                validate(done)
            if stop or done % save_every == 0 or done == steps:
                save(done)
            if stop:
                raise Stopped(done)


def gather(sums: list[dict[str, Tensor]], stop: bool, ranks: Ranks) -> tuple[list[dict[str, float]], bool]:
    """All learners' terms, averaged over ranks, and whether any rank was asked to stop: one transfer for all of it."""
    flat = [value.float() for terms in sums for value in terms.values()]
    vector = torch.stack([*flat, flat[0].new_tensor(float(stop))])
    numbers = iter(ranks.sum_(vector).tolist())
    losses = [{name: next(numbers) / ranks.world for name in terms} for terms in sums]
    return losses, next(numbers) > 0


def stop_if_not_finite(
    losses: list[dict[str, float]], learners: Sequence[Learner], micro_batches: Sequence[Batch], step: int
) -> None:
    for learner, terms in zip(learners, losses, strict=True):
        broken = [name for name, value in terms.items() if not math.isfinite(value)]
        if broken:
            keys = [key for batch in micro_batches for key in batch["keys"]]  # type: ignore[attr-defined]
            sick = sorted({key for batch in micro_batches for key in not_finite_clips(batch)})
            own = f"the tokens of this rank's clips ({', '.join(keys)}) are all finite"
            blame = f"tokens of {', '.join(sick)} are not finite" if sick else own
            raise NotFinite(
                f"step {step}: {learner.name}'s {', '.join(broken)} is not finite; {blame}. No weight was moved. "
                "Audit the store, or lower train.lr"
            )


def not_finite_clips(batch: Batch) -> list[str]:
    """Keys of the clips in which any column has a value that is not finite."""
    sick: set[str] = set()
    for value in batch.values():
        if isinstance(value, Tensor) and value.is_floating_point():
            bad = ~value.flatten(1).isfinite().all(dim=1)
            sick.update(key for key, is_bad in zip(batch["keys"], bad.tolist(), strict=True) if is_bad)  # type: ignore
    return sorted(sick)


def sampled_positions(
    layouts: Mapping[str, TokenLayout], *, count: int | None, seed: int
) -> Callable[[int], dict[str, Tensor]]:
    """step -> for each target the tokens to decode: `count` of its grid, one from each stratum, and its special tokens.
    The same for all ranks and learners. None, or a grid that is no larger: all tokens (an empty entry)."""
    sampled = {name: layout for name, layout in layouts.items() if count and layout.num_grid_tokens > count}

    def positions(step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(mix(seed, step))
        return {name: stratified(layout, count, generator) for name, layout in sampled.items()}  # type: ignore

    return positions


def mix(*numbers: int) -> int:
    """A 32-bit seed from several numbers. (torch's CPU generator reads only 32 bits: shifting would lose one.)"""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class StopRequest:
    """Within it, SIGTERM is remembered, so that the loop can stop between two steps."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> StopRequest:
        self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not Stopped:  # else stay: launchers send a second one to a process that is on its way out
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def _ask(self, signum: int, frame: object) -> None:
        self.asked = True

    def __call__(self) -> bool:
        return self.asked
