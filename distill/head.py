"""The residual-compensated head: logits = W_T p + b + alpha W_o U' r.

p are the pooled converted tokens, r what is left of the pooled student beside them (distill.residual). Deficiency takes
something from p, r may give back what a task misses, through rank q: without that limit r would simply contain the
student. The idea is that of the report on deliberate deficiency; the closest public attempt's gate stayed at zero and
nobody saw it, hence `alarms`.

It is fitted in stages: W_T and b as a logistic regression; then the residual's part, with those logits as a fixed
offset. So the residual explains only what conversion leaves, and cannot make the train loss worse. The gate alpha
starts at 0 and W_o at random: with both at 0 neither has a gradient, and the head never learns. Every linear map is
solved by L-BFGS on all clips (convex, but for a learned U), and its decay is chosen on val by the Brier score.

Axes: n clips, e width of p, d of r, q rank, c classes that train has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DECAYS = (10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4)  # of half the squared norm, beside the mean loss of a clip
STEPS = 200  # of L-BFGS; a convex map of 16 classes takes 20 to 80
GATE_FLOOR = 1e-3  # below it, the residual's map is as good as none
SHARE_FLOOR = 0.01  # of the logits' variance: an input with less is ignored


@dataclass(frozen=True)
class Examples:
    """What a head learns from: p (n e), r (n d), both float64 and standardised; truth, (n,) int64 in 0..c-1, or of
    several labels (n c), 1 where it holds and 0 where not. -1: no label."""

    p: Tensor
    r: Tensor
    truth: Tensor


@dataclass(frozen=True)
class Loss:
    """Cross-entropy, or of several labels the sum of the binary ones, as a mean over the clips that have a label.

    smoothing: share of the target that goes to all classes alike. weights: (c,) of the classes, or, of several labels,
    of what holds against what does not; None: all alike.
    """

    smoothing: float = 0.0
    weights: Tensor | None = None

    def __call__(self, logits: Tensor, truth: Tensor) -> Tensor:
        if truth.ndim == 1:
            return F.cross_entropy(logits, truth, weight=self.weights, ignore_index=-1, label_smoothing=self.smoothing)
        wanted = truth.clamp_min(0).to(logits) * (1 - self.smoothing) + self.smoothing / 2
        each = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=self.weights, reduction="none")
        counted = truth >= 0
        return (each * counted).sum() / counted.any(1).sum()


class Head(nn.Module):
    """p (n e), r (n d) -> logits (n, classes), -inf where train has no such class.

    known: (classes,) bool. weight W_T (c e) and bias (c,); basis U (d q), orthonormal; out W_o (c q), of norm 1 where
    the gate is not 0, so that the gate is the Frobenius norm of the residual's map. several: labels that do not
    exclude each other. decays: what was chosen for p and for r.
    """

    known: Tensor
    weight: Tensor
    bias: Tensor
    basis: Tensor
    out: Tensor
    gate: Tensor

    def __init__(
        self,
        *,
        known: Tensor,
        weight: Tensor,
        bias: Tensor,
        basis: Tensor,
        out: Tensor,
        gate: Tensor,
        several: bool,
        decays: tuple[float, float],
    ) -> None:
        super().__init__()
        self.several, self.decays = several, decays
        found = {"known": known, "weight": weight, "bias": bias, "basis": basis, "out": out, "gate": gate}
        for name, tensor in found.items():
            self.register_buffer(name, tensor.detach())

    @property
    def num_parameters(self) -> int:
        """What was fitted: all of W_T, b, U and W_o, and the gate where there is a residual."""
        maps = self.weight.numel() + self.bias.numel() + self.basis.numel() + self.out.numel()
        return maps + (self.basis.shape[1] > 0)

    def parts(self, p: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """What p and what r adds to the logits of the classes that train has, without the bias: twice (n c)."""
        return p.to(self.weight) @ self.weight.T, self.gate * (r.to(self.basis) @ self.basis) @ self.out.T

    def forward(self, p: Tensor, r: Tensor) -> Tensor:
        ours, residual = self.parts(p, r)
        logits = ours.new_full((len(p), len(self.known)), -math.inf)
        logits[:, self.known] = ours + residual + self.bias
        return logits


def fit_head(
    train: Examples,
    val: Examples,
    *,
    known: Tensor,
    rank: int = 0,
    basis: Tensor | None = None,
    loss: Loss | None = None,
    decays: Sequence[float] = DECAYS,
    generator: torch.Generator,
) -> Head:
    """The head, fitted in stages. rank: q of a learned basis, 0: no residual. basis: (d q) orthonormal, not learned.

    known: (classes,) bool, those that the outputs stand for, c of them. Raises ValueError where the rank does not fit
    the residual's width.
    """
    loss, classes, width = loss or Loss(), int(known.sum()), train.r.shape[1]
    rank = rank if basis is None else basis.shape[1]
    if (basis is not None and rank < 1) or not 0 <= rank <= width:
        raise ValueError(f"the residual's rank is {rank}; it must lie in 1..{width}, the width of the student")
    first = [_linear(train, val, classes, loss, decay) for decay in decays]
    place = _best([brier(val.p @ weight.T + bias, val.truth) for weight, bias in first])
    weight, bias = first[place]
    chosen = (decays[place], 0.0)
    basis_, out, gate = train.r.new_zeros(width, 0), train.r.new_zeros(classes, 0), train.r.new_zeros(())
    if rank:
        offsets = train.p @ weight.T + bias, val.p @ weight.T + bias
        start = start_factors(width, classes, rank, generator=generator)
        second = []
        for decay in decays:
            if basis is None:
                second.append(fit_factors(train, offsets[0], start, loss=loss, decay=decay))
            else:
                second.append(_fixed(train, offsets[0], basis.to(train.r), start[1], loss, decay))
        place = _best([brier(offsets[1] + g * (val.r @ u) @ w.T, val.truth) for u, w, g in second])
        (basis_, out, gate), chosen = second[place], (chosen[0], decays[place])
    several = train.truth.ndim == 2
    return Head(known=known, weight=weight, bias=bias, basis=basis_, out=out, gate=gate, several=several, decays=chosen)


def start_factors(
    width: int, classes: int, rank: int, *, map_start: float = 1.0, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Where a learned residual starts: a random orthonormal U (d q), W_o (c q) of norm `map_start`, the gate at 0."""
    basis = random_basis(width, rank, generator=generator)
    out = torch.randn(classes, rank, generator=generator, dtype=torch.float64)
    return basis, map_start * out / out.norm(), out.new_zeros(())


def random_basis(width: int, rank: int, *, generator: torch.Generator) -> Tensor:
    """(d q) float64, orthonormal columns of a random direction."""
    return torch.linalg.qr(torch.randn(width, rank, generator=generator, dtype=torch.float64)).Q


def fit_factors(
    train: Examples, offset: Tensor, start: tuple[Tensor, Tensor, Tensor], *, loss: Loss, decay: float
) -> tuple[Tensor, Tensor, Tensor]:
    """U (d q), W_o (c q) and the gate, learned jointly beside the offset (n c).

    The decay is that of the map alpha W_o U' as a whole, so that none of the three evades it.
    """
    basis, out, gate = (  # L-BFGS wants rows in order, and QR gives columns
        tensor.clone(memory_format=torch.contiguous_format).requires_grad_() for tensor in start
    )

    def objective() -> Tensor:
        map_ = gate * out @ basis.T
        return loss(offset + train.r @ map_.T, train.truth) + decay / 2 * map_.square().sum()

    minimise([basis, out, gate], objective)
    with torch.no_grad():
        frame, triangle = torch.linalg.qr(basis)
        return _gated(frame, gate * out @ triangle.T, out)


def _linear(train: Examples, val: Examples, classes: int, loss: Loss, decay: float) -> tuple[Tensor, Tensor]:
    """W_T (c e) and b (c,)."""
    weight = train.p.new_zeros(classes, train.p.shape[1], requires_grad=True)
    bias = train.p.new_zeros(classes, requires_grad=True)
    minimise(
        [weight, bias],
        lambda: loss(train.p @ weight.T + bias, train.truth) + decay / 2 * weight.square().sum(),
    )
    return weight.detach(), bias.detach()


def _fixed(
    train: Examples, offset: Tensor, basis: Tensor, start: Tensor, loss: Loss, decay: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As fit_factors, U given: in alpha W_o the problem is convex, and solved as such."""
    seen, map_ = train.r @ basis, torch.zeros_like(start, requires_grad=True)
    minimise([map_], lambda: loss(offset + seen @ map_.T, train.truth) + decay / 2 * map_.square().sum())
    return _gated(basis, map_.detach(), start)


def _gated(basis: Tensor, map_: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The residual's map (c q) as a gate and W_o of norm 1; where it is nothing, W_o is what it started as."""
    gate = map_.norm()
    return basis, map_ / gate if float(gate) > 0 else start.detach(), gate


def minimise(parameters: list[Tensor], objective: Callable[[], Tensor]) -> None:
    """L-BFGS with a strong Wolfe search, on all clips at once: no step is drawn, so a seed says everything."""
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=STEPS, tolerance_grad=1e-6, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective()
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]


def brier(logits: Tensor, truth: Tensor) -> float:
    """Mean over clips of sum_c (p_c - [c is true])^2; Brier 1950. Of several labels: over the labels that are known."""
    counted = truth >= 0
    if truth.ndim == 1:
        wanted = F.one_hot(truth[counted], logits.shape[1])
        return float((logits[counted].softmax(1) - wanted).square().sum(1).mean())
    return float((logits.sigmoid() - truth).square()[counted].mean())


def _best(scores: list[float]) -> int:
    """Where the lowest stands; of equals, the strongest decay."""
    return min(range(len(scores)), key=scores.__getitem__)


@torch.no_grad()
def reading(head: Head, p: Tensor, r: Tensor, *, generator: torch.Generator) -> dict[str, float]:
    """How much a head reads of either input, on clips that it was not fitted to: p (n e), r (n d).

    share_*: of the variance of the logits over clips (less their mean over classes where these compete, which changes
    nothing); changed_*: of the answers that turn into others where the input is that of another clip.
    """
    parts = dict(zip(("converted", "residual"), head.parts(p, r), strict=True))
    competing = {name: x if head.several else x - x.mean(1, keepdim=True) for name, x in parts.items()}
    variance = {name: float(x.var(0, correction=0).sum()) for name, x in competing.items()}
    whole, order = parts["converted"] + parts["residual"] + head.bias, torch.randperm(len(p), generator=generator)
    found = {f"share_{name}": value / max(sum(variance.values()), 1e-24) for name, value in variance.items()}
    for name, part in parts.items():
        same = _answers(head, whole) == _answers(head, whole - part + part[order])
        found[f"changed_{name}"] = 1 - float(same.double().mean())
    return found


def _answers(head: Head, logits: Tensor) -> Tensor:
    return logits > 0 if head.several else logits.argmax(1)


def alarms(head: Head, read: dict[str, float]) -> list[str]:
    """What is wrong with a fitted head's gate and inputs, in sentences; none where all is well. read: see `reading`."""
    found = []
    inputs = {"converted": head.weight.shape[1] > 0, "residual": head.basis.shape[1] > 0}
    if inputs["residual"] and abs(float(head.gate)) < GATE_FLOOR:
        found.append(f"the gate stayed at {float(head.gate):.1g}: the head does without the residual")
        inputs["residual"] = False
    for name, there in inputs.items():
        share, changed = read[f"share_{name}"], read[f"changed_{name}"]
        if there and (share < SHARE_FLOOR or changed == 0):
            what = {"converted": "converted tokens", "residual": "residual"}[name]
            found.append(
                f"the head ignores the {what}: {share:.1%} of the logits' variance comes from there, and those of "
                f"another clip change {changed:.1%} of the answers"
            )
    return found
