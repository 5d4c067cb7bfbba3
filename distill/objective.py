"""Objective: one batch in, one loss out, with named terms.

Axes: b clips, s student tokens, q target tokens, d student width, e teacher width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from converters.attention import watched
from converters.bottleneck import passing
from converters.converter import Converter
from converters.precision import without_autocast
from distill import losses
from distill.deficiency import (
    DIRECTIONS,
    Dials,
    attention_entropy,
    generator,
    hinge,
    nuclear,
    relative_jacobian,
)

TERMS = ("mse", "smooth_l1", "cosine", "gram", "moments")


@dataclass
class Seen:
    """What a deficiency looks at inside a converter while it answers: entropies of attention, and target -> what passes
    its bottleneck."""

    entropies: list[Tensor] = field(default_factory=list)
    passed: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """A converter with what it is asked to minimise: the module that the engine trains.

    weights: term -> weight, over losses.py; a term of weight 0 is not computed.
    gram_tokens: how many tokens of a clip enter the Gram term. dials: what the converter is deprived of, which adds
    terms of its own.
    """

    def __init__(
        self,
        converter: Converter,
        *,
        weights: Mapping[str, float],
        gram_tokens: int = 128,
        dials: Dials | None = None,
    ) -> None:
        super().__init__()
        unknown = set(weights) - set(TERMS)
        if unknown:
            raise ValueError(f"unknown loss terms {sorted(unknown)}; there are {', '.join(TERMS)}")
        self.converter = converter
        self.weights = {name: float(weights[name]) for name in TERMS if weights.get(name)}
        self.gram_tokens, self.dials = gram_tokens, dials
        if not self.weights:
            raise ValueError(f"every loss term has weight 0; give at least one of {', '.join(TERMS)} a weight")

    def forward(
        self, batch: Mapping[str, Tensor], positions: Mapping[str, Tensor] | None = None, step: int = 0
    ) -> dict[str, Tensor]:
        """batch: student (b s d) and every target (b L e), in the backbones' own units.

        positions: target -> indices (q,) of the tokens to decode, on the CPU; None: all of them. step: how far the
        training is, on which the deficiency depends.
        Returns {"loss": scalar, "<target>/<term>": scalar, ...}: the weighted sum, mean over targets, and its parts.
        """
        positions, student = dict(positions or {}), batch["student"]
        mask = self.dials.mask(self.converter.student, step) if self.dials else None
        mask = None if mask is None else mask.to(student.device)
        with self._watching() as seen:
            converted = self.converter(student, positions=positions or None, standardised=True, mask=mask)
        terms: dict[str, Tensor] = {}
        total = student.new_zeros((), dtype=torch.float32)
        for name, ours in converted.items():
            index = positions.get(name)
            wanted = batch[name] if index is None else batch[name].index_select(1, index.to(batch[name].device))
            theirs = self.converter.standardise_targets(name, wanted, positions=index)
            for term, weight in self.weights.items():
                value = self._term(term, ours, theirs)
                terms[f"{name}/{term}"] = value.detach()
                total = total + weight * value / len(converted)
        for name, weight, value in self._deficits(student, converted, positions, seen, step):
            terms[name] = value.detach()
            total = total + weight * value
        return {"loss": total, **terms}

    @contextmanager
    def _watching(self) -> Iterator[Seen]:
        """Within it, the converter shows what the deficiency asks for."""
        seen = Seen()
        with ExitStack() as stack:
            if self.dials is not None and self.dials.entropy:
                stack.enter_context(
                    watched(self.converter, lambda logits: seen.entropies.append(attention_entropy(logits)))
                )
            if self.dials is not None and self.dials.nuclear:
                stack.enter_context(passing(self.converter.bottlenecks, seen.passed))
            yield seen

    def _deficits(
        self,
        student: Tensor,
        converted: Mapping[str, Tensor],
        positions: Mapping[str, Tensor],
        seen: Seen,
        step: int,
    ) -> Iterator[tuple[str, float, Tensor]]:
        """(name, weight, value) of what the deficiency adds at a step; the same names on every rank."""
        dials = self.dials
        if dials is None:
            return
        dial, share = dials.dial(step), 1 / len(converted)
        if dials.nuclear:
            for name in converted:
                value = nuclear(self.converter.bottlenecks[name].weight, seen.passed[name])
                yield f"{name}/nuclear", dial * dials.nuclear * share, value
        if seen.entropies:
            yield "entropy", dial * dials.entropy, hinge(seen.entropies, dials.entropy_target)
        if dials.looks_at_jacobian(step):
            # so much more weight as it is seldom taken (lazy regularisation: Karras et al., StyleGAN2, 2020)
            weight = dial * dials.jacobian * dials.every * share
            for name, value in self._jacobian(dials, student, converted, positions, step).items():
                yield f"{name}/jacobian", weight, value

    def _jacobian(
        self, dials: Dials, student: Tensor, converted: Mapping[str, Tensor], positions: Mapping[str, Tensor], step: int
    ) -> dict[str, Tensor]:
        """By target, at a few of the tokens that were decoded: any of them is answered as in the whole. In float32
        always, for differences of bf16 would be rounding: then the first answer is not there yet."""
        rows = {name: dials.chosen_outputs(y.shape[1], step) for name, y in converted.items()}
        chosen = {name: positions[name][at] if name in positions else at for name, at in rows.items()}
        device = student.device
        rough = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)

        def answer(tokens: Tensor) -> Mapping[str, Tensor]:
            return self.converter(tokens, positions=chosen, standardised=True)

        with without_autocast(device.type):
            tokens = student.float()
            there = {name: y.index_select(1, rows[name].to(device)) for name, y in converted.items()}
            return relative_jacobian(
                answer,
                tokens,
                scale=self.converter.student_normaliser.scale,
                base=answer(tokens) if rough else there,
                directions=dials.directions,
                generator=generator(dials.seed, DIRECTIONS, step, device=device),
            )

    def _term(self, term: str, ours: Tensor, theirs: Tensor) -> Tensor:
        if term == "gram":
            return losses.gram(ours, theirs, tokens=self.gram_tokens)
        return getattr(losses, term)(ours, theirs)
