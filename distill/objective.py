"""Objective: one batch in, one loss out, with named terms.

Axes: b clips, s student tokens, q target tokens, d student width, e teacher width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from converters.converter import Converter
from distill import losses

TERMS = ("mse", "smooth_l1", "cosine", "gram", "moments")


class Objective(nn.Module):
    """A converter with what it is asked to minimise: the module that the engine trains.

    weights: term -> weight, over losses.py; a term of weight 0 is not computed.
    gram_tokens: how many tokens of a clip enter the Gram term.
    """

    def __init__(self, converter: Converter, *, weights: Mapping[str, float], gram_tokens: int = 128) -> None:
        super().__init__()
        unknown = set(weights) - set(TERMS)
        if unknown:
            raise ValueError(f"unknown loss terms {sorted(unknown)}; there are {', '.join(TERMS)}")
        self.converter = converter
        self.weights = {name: float(weights[name]) for name in TERMS if weights.get(name)}
        self.gram_tokens = gram_tokens
        if not self.weights:
            raise ValueError(f"every loss term has weight 0; give at least one of {', '.join(TERMS)} a weight")

    def forward(self, batch: Mapping[str, Tensor], positions: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """batch: student (b s d) and every target (b L e), in the backbones' own units.

        positions: target -> indices (q,) of the tokens to decode, on the CPU; None: all of them.
        Returns {"loss": scalar, "<target>/<term>": scalar, ...}: the weighted sum, mean over targets, and its parts.
        """
        positions = dict(positions or {})
        converted = self.converter(batch["student"], positions=positions or None, standardised=True)
        terms: dict[str, Tensor] = {}
        total = batch["student"].new_zeros((), dtype=torch.float32)
        for name, ours in converted.items():
            index = positions.get(name)
            wanted = batch[name] if index is None else batch[name].index_select(1, index.to(batch[name].device))
            theirs = self.converter.standardise_targets(name, wanted, positions=index)
            for term, weight in self.weights.items():
                value = self._term(term, ours, theirs)
                terms[f"{name}/{term}"] = value.detach()
                total = total + weight * value / len(converted)
        return {"loss": total, **terms}

    def _term(self, term: str, ours: Tensor, theirs: Tensor) -> Tensor:
        if term == "gram":
            return losses.gram(ours, theirs, tokens=self.gram_tokens)
        return getattr(losses, term)(ours, theirs)
