"""Oracles: synthetic students and teachers whose best possible conversion is known in closed form.

Axes: b clips, s student tokens, q target tokens, c independent fields, d student width, e teacher width.

All rest on c independent Gaussian fields g with a separable squared-exponential covariance over (t, y, x). The student
sees them with noise, x(p) = A g(p) + sigma * e; the teacher without, at its own places. The best estimate of a field is
kriging (Gaussian-process regression; Rasmussen and Williams 2006, eq. 2.23), of which the share
r(q) = K_qp (K_pp + sigma^2 I)^-1 K_pq / K_qq of the variance at place q is right. On product grids all of it factorises
over the axes, so it is exact at full geometry too. Fields may differ in length and in the power that the teacher gives
them; they stay independent, and means over fields below are weighted by that power.

    field      y(q) = B g(q)                                   R2 = mean r(q)
    nonlinear  y(q) = B h(g(q)), h a Hermite polynomial        R2 = mean r(q)^k; linear maps score 0 for k > 1
    routed     y(q) = B g(q + displacement of the clip)        R2 = mean r at displaced places: where to read depends
               on what stands, without noise, in the student's spare channels
    retrieval  y(q) = B g(q) + V m_k(q)                        the value m_k stands at the one student token that
               carries key k, anywhere in the clip: exact look-up on top of kriging
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from distill.fields import Fields, Place
from teachers.layout import TokenLayout


class Oracle(Protocol):
    """A task with a known optimum."""

    student: TokenLayout
    teacher: TokenLayout

    def sample(self, clips: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(student tokens (b s d), teacher tokens (b q e)) of new clips."""
        ...

    def bayes_r2(self, *, standardised: bool = False) -> float:
        """R2 of the best possible converter over all target places. standardised: every channel counts alike, as in the
        metrics."""
        ...


@dataclass
class FieldOracle(Fields):
    """y(q) = B g(q). With a decaying power it is the reduced-rank oracle, too."""

    def sample(self, clips: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        student, fields = super().sample(clips, generator)
        return student, fields @ self.reading.T

    def bayes_r2(self, rank: int | None = None, *, standardised: bool = False) -> float:
        """rank: of the best converter whose answers span so many channels at most: it keeps the leading components of
        what can be predicted, B diag(mean r) B' (Eckart and Young 1936)."""
        if rank is None:
            return self.mean_reliability(standardised=standardised)
        return float(self._predictable(standardised)[:rank].sum() / self.readings(standardised).square().sum())

    def shrunk_r2(self, taken: float) -> float:
        """Of the best answers, so much taken from every singular value (per token): where a nuclear norm leads."""
        values = self._predictable()
        left = (values.sqrt() - taken).clamp(min=0)
        return float((2 * left * values.sqrt() - left.square()).sum() / self.reading.double().square().sum())

    def _predictable(self, standardised: bool = False) -> Tensor:
        """Variances of the components of what can be predicted, falling."""
        mean, reading = self.reliability().mean(dim=1).expand(self.channels), self.readings(standardised)
        return torch.linalg.eigvalsh(reading * mean @ reading.T).flip(0).clamp(min=0)

    def bayes(self, student_tokens: Tensor) -> Tensor:
        """The best possible conversion itself, (b s d) -> (b q e)."""
        return (self.kriging(student_tokens) @ self.reading.T.double()).float()


@dataclass
class NonlinearOracle(Fields):
    """y(q) = B h(g(q)), h the sum of normalised Hermite polynomials of the given degrees, each of equal variance.

    The conditional mean of a Hermite polynomial of a Gaussian is that polynomial of its conditional law, of which the
    share r^k of the variance is right (Mehler's formula)."""

    degrees: tuple[int, ...] = (2,)

    def sample(self, clips: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        student, fields = super().sample(clips, generator)
        bent = sum(hermite(fields, degree) for degree in self.degrees) / len(self.degrees) ** 0.5
        return student, bent @ self.reading.T

    def bayes_r2(self, *, standardised: bool = False) -> float:
        found = [self.mean_reliability(degree=degree, standardised=standardised) for degree in self.degrees]
        return sum(found) / len(found)


@dataclass
class RoutedOracle(Fields):
    """y(q) = B g(q + displacement), the clip's displacement standing in three spare channels of every student token.

    reach: largest displacement per axis, as a fraction of the view: uniform in -reach .. reach."""

    noise: float = 0.3
    spare: int = 3
    reach: Place = (0.2, 0.2, 0.2)

    def sample(self, clips: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        unit = 2 * torch.rand(clips, 3, generator=generator) - 1
        student, fields = super().sample(clips, generator, shifts=unit * torch.tensor(self.reach))
        return student + 3**0.5 * (unit @ self.spare_directions.T)[:, None], fields @ self.reading.T

    def bayes_r2(self, draws: int = 256, *, standardised: bool = False) -> float:
        """Mean over displacements, by quasi-random draws: within 0.001."""
        points = torch.quasirandom.SobolEngine(3, scramble=True, seed=0).draw(draws).double() * 2 - 1
        shifts = (points * torch.tensor(self.reach, dtype=torch.float64)).tolist()
        return sum(self.mean_reliability((t, y, x), standardised=standardised) for t, y, x in shifts) / draws


@dataclass
class RetrievalOracle(Fields):
    """y(q) = B g(q) + V m_k(q): every clip has `keys` markers at random student tokens, each with its key (one of
    `keys` spare channels) and a value (the `width` spare channels beside them); place q asks for the key k(q)."""

    noise: float = 0.3
    keys: int = 8
    width: int = 8
    spare: int = field(default=0, init=False)
    asks: Tensor = field(init=False, repr=False)
    values: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.spare = self.keys + self.width
        super().__post_init__()
        generator = torch.Generator().manual_seed(self.seed + 1)
        self.asks = torch.randint(self.keys, (self.teacher.num_grid_tokens,), generator=generator)
        self.values = torch.randn(self.teacher.dim, self.width, generator=generator) / self.width**0.5

    def sample(self, clips: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        student, fields = super().sample(clips, generator)
        order = torch.rand(clips, self.student.num_grid_tokens, generator=generator).argsort(dim=1)[:, : self.keys]
        carried = torch.randn(clips, self.keys, self.width, generator=generator)
        marks = torch.cat([math.sqrt(self.keys) * torch.eye(self.keys).expand(clips, -1, -1), carried], dim=2)
        student = student.scatter_add(
            1, order[:, :, None].expand(-1, -1, self.student.dim), marks @ self.spare_directions.T
        )
        return student, fields @ self.reading.T + carried[:, self.asks] @ self.values.T

    def variance(self) -> Tensor:
        return super().variance() + self.values.double().square().sum(dim=1)

    def bayes_r2(self, *, standardised: bool = False) -> float:
        field_power = self.readings(standardised).square().sum()
        share = float(field_power / (len(self.reading) if standardised else self.variance().sum()))
        return share * self.mean_reliability(standardised=standardised) + 1 - share


def hermite(x: Tensor, degree: int) -> Tensor:
    """The probabilists' Hermite polynomial of a degree, scaled to variance 1 on a standard normal."""
    last, this = torch.zeros_like(x), torch.ones_like(x)
    for k in range(degree):
        last, this = this, x * this - k * last
    return this / math.sqrt(math.factorial(degree))
