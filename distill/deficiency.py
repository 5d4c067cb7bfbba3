"""Deficiency: what a converter is deliberately deprived of, how much of it at which step, and how it is measured.

low rank   |U|^2 + |z|^2 of the answer's factors, half of which is at its least the sum of the answer's singular values
           (variational nuclear norm: Srebro et al. 2005); all converted tokens pass through U, the skip's answer as
           well as the branch's (converters.bottleneck)
masking    tubes of student tokens, the same places at all times (VideoMAE: Tong et al. 2022), and a hinge on the
           entropy of attention: a norm of softmax weights is constant, their entropy is not
Jacobian   |J|_F^2 by random directions (Hutchinson 1989) and finite differences, in units of the answer's variance:
           else it would be met by answering less

What is random in a step is a function of (seed, step) alone. All here is pure: modules come in as functions.
Axes: b clips, s student tokens, q tokens of an answer, d student width, e target width, m tokens of a memory,
r random directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from teachers.layout import TokenLayout

Answer = Callable[[Tensor], Mapping[str, Tensor]]  # student tokens (b s d) -> {target: (b q e)}
NEAR = 1e-2  # of a deviation of the input: how far finite differences look. Rounding is 1e-5 of it, curvature small
TINY = 1e-6  # variance below which an answer counts as constant
MASKS, DIRECTIONS, TEST = 1, 2, 3  # what a generator is for


@dataclass(frozen=True)
class Dials:
    """A training's deficiency at every step: zero until `zero_until` of the steps, whole from `full_from` on.

    nuclear, entropy, jacobian: weights in the loss. rank: of what is answered, "full" for factors without a
    limit, None for none. ratio: share of places that are hidden; None: nothing is. entropy_target: share of log m down
    to which attention is drawn together. every, directions, outputs: the Jacobian's steps, random directions, and
    answered tokens of a target that it looks at.
    """

    kind: str
    strength: float
    steps: int
    seed: int = 0
    zero_until: float = 0.1
    full_from: float = 0.4
    nuclear: float = 0.0
    rank: int | Literal["full"] | None = None
    ratio: float | None = None
    entropy: float = 0.0
    entropy_target: float = 0.5
    jacobian: float = 0.0
    every: int = 8
    directions: int = 1
    outputs: int = 16

    @classmethod
    def of(cls, settings: Mapping[str, Any], *, steps: int, seed: int) -> Dials:
        """From the settings of a recipe's deficiency: what belongs to its kind, times its strength."""
        kind, strength = settings["kind"], settings["strength"]
        low_rank, masking = (kind in (part, "combined") for part in ("low_rank", "masking"))
        return cls(
            kind=kind,
            strength=strength,
            steps=steps,
            seed=seed,
            nuclear=strength * settings["nuclear"] if low_rank else 0.0,
            rank=(settings["rank"] or "full") if low_rank else None,
            ratio=strength * settings["ratio"] if masking else None,
            entropy=strength * settings["entropy"] if masking else 0.0,
            jacobian=strength * settings["jacobian"] if kind == "jacobian" else 0.0,
            zero_until=settings["zero_until"],
            full_from=settings["full_from"],
            entropy_target=settings["entropy_target"],
            every=settings["every"],
            directions=settings["directions"],
            outputs=settings["outputs"],
        )

    def dial(self, step: int) -> float:
        """The share of the whole deficiency at a step."""
        done = step / self.steps
        if done >= self.full_from:
            return 1.0
        return max(0.0, (done - self.zero_until) / max(self.full_from - self.zero_until, 1e-9))

    def mask(self, student: TokenLayout, step: int) -> Tensor | None:
        """(s,) bool: the tokens hidden at a step, on the CPU; None if none ever is."""
        if self.ratio is None:
            return None
        return tube_mask(student, self.ratio * self.dial(step), generator(self.seed, MASKS, step))

    def test_masks(self, student: TokenLayout, count: int) -> list[Tensor]:
        """Masks to test with. A larger ratio hides what a smaller one does, and more."""
        if self.ratio is None:
            return []
        return [tube_mask(student, self.ratio, generator(self.seed, TEST, number)) for number in range(count)]

    def amounts(self) -> dict[str, float | str]:
        """How much of everything, whole; what is not taken is left out."""
        found = {"nuclear": self.nuclear, "rank": self.rank, "mask_ratio": self.ratio, "entropy": self.entropy}
        return {name: value for name, value in (found | {"jacobian": self.jacobian}).items() if value}

    def looks_at_jacobian(self, step: int) -> bool:
        return self.jacobian > 0 and step % self.every == 0 and self.dial(step) > 0

    def chosen_outputs(self, count: int, step: int) -> Tensor:
        """Which of `count` answered tokens the Jacobian looks at, increasing."""
        order = torch.randperm(count, generator=generator(self.seed, DIRECTIONS, step))
        return order[: self.outputs].sort().values


def generator(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream is a function of some numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    return torch.Generator(device).manual_seed(seed)


# --- low rank


def nuclear(spread: Tensor, passed: Tensor) -> Tensor:
    """(|U|^2 + mean |z|^2) / 2e of a bottleneck's U (e k) and of what passes through it, z (b q k).

    At its least over all factors of the same answers Y = z U' (n e), n tokens, the sum of the singular values of
    Y / sqrt(n) per channel. As the squared error is a mean over channels, a weight of w takes w / 2 from every one. The
    maps V that make z are not in it: a branch meets a penalty on its last map by larger activations, and answers as
    before (on an oracle a penalty so halved nine times over left R2 at 0.99).
    """
    e = len(spread)
    return (spread.float().square().sum() + passed.float().square().sum(dim=-1).mean()) / (2 * e)


# --- masking


def tube_mask(student: TokenLayout, ratio: float, generator: torch.Generator) -> Tensor:
    """(s,) bool: `ratio` of the places (h w) hidden at all times, at least one left. Special tokens are never hidden: a
    student that has some tells through them what stands behind the mask."""
    if not 0 <= ratio < 1:
        raise ValueError(f"the mask ratio is {ratio}; it must be at least 0 and below 1, or nothing is left to convert")
    assert student.grid is not None
    t, h, w = student.grid
    hidden = torch.zeros(h * w, dtype=torch.bool)
    hidden[torch.randperm(h * w, generator=generator)[: min(round(ratio * h * w), h * w - 1)]] = True
    return torch.cat([hidden.repeat(t), torch.zeros(len(student.special), dtype=torch.bool)])


def attention_entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the softmax of logits (.. q m), as a share of log m. 1: attention is uniform; 0: on a token
    each."""
    memory = logits.shape[-1]
    if memory < 2:
        return logits.new_zeros((), dtype=torch.float32)
    logs = F.log_softmax(logits.float(), dim=-1)
    return -(logs.exp() * logs).sum(dim=-1).mean() / math.log(memory)


def hinge(entropies: Sequence[Tensor], target: float) -> Tensor:
    """By how much entropies exceed the target, averaged."""
    return F.relu(torch.stack(list(entropies)) - target).mean()


# --- Jacobian


def variance(y: Tensor) -> Tensor:
    """Variance of an answer (b q e) over clips and tokens, mean over channels, without bias from any number of clips:
    tokens of a clip are alike, so the square of the mean is taken between clips only. Of a lone clip the mean square.
    """
    y, b = y.float(), len(y)
    means = y.mean(dim=1)
    squared = (means.sum(dim=0).square() - means.square().sum(dim=0)) / max(b * (b - 1), 1)
    return (y.square().mean() - squared.mean()).clamp(min=0)


def relative_jacobian(
    answer: Answer,
    tokens: Tensor,
    *,
    scale: Tensor,
    base: Mapping[str, Tensor],
    directions: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """|J|_F^2 per answered channel over the answer's variance, by target: mean over b, q, e of (J u)^2 for random u.

    tokens: (b s d), of which channels have the deviations `scale` (d,). base: their answer. One forward pass for every
    direction. The gradient flows through the variance too, so that no scale of the answer makes it less.
    """
    sums = {name: y.new_zeros((), dtype=torch.float32) for name, y in base.items()}
    for _ in range(directions):
        u = torch.randn(tokens.shape, generator=generator, device=tokens.device)
        for name, moved in answer(tokens + NEAR * scale * u).items():
            sums[name] = sums[name] + ((moved - base[name]) / NEAR).square().mean() / directions
    return {name: total / (variance(base[name]) + TINY) for name, total in sums.items()}


@torch.no_grad()
def jacobian_norm(
    answer: Answer, tokens: Tensor, *, scale: Tensor, directions: int, generator: torch.Generator
) -> dict[str, tuple[float, float]]:
    """target -> |J|_F^2, mean over clips, and the standard error that is left by `directions` random ones, at least 2.

    Central differences: their error is of third order in NEAR. J is that of the answer by the standardised input.
    """
    if directions < 2:
        raise ValueError(f"directions is {directions}; a standard error takes at least 2")
    found: dict[str, list[Tensor]] = {}
    for _ in range(directions):
        u = torch.randn(tokens.shape, generator=generator, device=tokens.device)
        ahead, behind = answer(tokens + NEAR * scale * u), answer(tokens - NEAR * scale * u)
        for name, y in ahead.items():
            found.setdefault(name, []).append(((y - behind[name]) / (2 * NEAR)).double().square().sum() / len(tokens))
    samples = {name: torch.stack(values) for name, values in found.items()}
    return {name: (float(at.mean()), float(at.std() / len(at) ** 0.5)) for name, at in samples.items()}


# --- what is left


def effective_rank(singular_values: Tensor) -> float:
    """exp of the entropy of singular values taken as shares (Roy and Vetterli 2007; RankMe: Garrido et al. 2023).

    Of a sample it is biased low unless rows far outnumber it (true 371: 114 of 200 rows, 294 of 768, 350 of 2000), and
    noise raises it: compare it only with that of other tokens of the same clips and places.
    """
    values = singular_values.double().clamp(min=0)
    if not bool(values.sum() > 0):
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def recovered(error: Tensor, spread: Tensor, *, least: float = 0.5) -> tuple[Tensor, int]:
    """R2 of every principal component of a teacher, from sums of squared errors and of squares (e,), and k*: how many
    components exceed `least`. A component that never moves counts as not recovered."""
    r2 = torch.where(spread > 0, 1 - error / spread.clamp(min=torch.finfo(spread.dtype).tiny), -math.inf)
    return r2, int((r2 > least).sum())
