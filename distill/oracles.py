"""Oracles: synthetic students and teachers whose best possible conversion is known in closed form.

Axes: b clips, s student tokens, q target tokens, c independent fields, d student width, e teacher width;
f is c, or 1 where all fields are alike.

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
from typing import Any, Protocol

import torch
from torch import Tensor

from teachers.layout import TokenLayout

# The tiny geometry: a student of 4 x 8 x 8 tokens, a teacher of 4 x 7 x 7 on the centre 224 of 256 pixels.
TINY_STUDENT = TokenLayout(grid=(4, 8, 8), dim=64)
TINY_TEACHER = TokenLayout(grid=(4, 7, 7), dim=48, extent=((0.0, 1.0), (1 / 16, 15 / 16), (1 / 16, 15 / 16)))
Place = tuple[float, float, float]


def falling(first: float, last: float, count: int) -> tuple[float, ...]:
    """`count` factors from first to last, in equal ratios."""
    return tuple(first * (last / first) ** (at / max(count - 1, 1)) for at in range(count))


# The medium geometry: many fields, the strong ones long and the weak ones short, so that few latents cannot hold all.
MEDIUM: dict[str, Any] = {
    "student": TokenLayout(grid=(4, 8, 8), dim=256),
    "teacher": TokenLayout(grid=(4, 7, 7), dim=192, extent=TINY_TEACHER.extent),
    "channels": 128,
    "factors": falling(1.5, 0.5, 128),
    "decay": 1.0,
}


class Oracle(Protocol):
    """A task with a known optimum."""

    student: TokenLayout
    teacher: TokenLayout

    def sample(self, clips: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(student tokens (b s d), teacher tokens (b q e)) of new clips."""
        ...

    def bayes_r2(self) -> float:
        """R2 of the best possible converter over all target places."""
        ...


@dataclass
class Fields:
    """The fields behind every oracle, and how student and teacher read them.

    channels: c, at most both widths. lengths: of the covariance on (t, y, x), as fractions of the view. noise: sigma,
    in deviations of a field. spare: channels of the student that carry no field and no noise. seed: of the mixing map A
    (d c) with orthonormal columns, of the spare directions beside them, and of B (e c). factors: of each field's
    lengths; empty: 1 for all. decay: field number n has a power in the teacher that falls as n ** -decay.
    """

    student: TokenLayout = TINY_STUDENT
    teacher: TokenLayout = TINY_TEACHER
    channels: int = 16
    lengths: Place = (0.35, 0.18, 0.18)
    noise: float = 1.0
    spare: int = 0
    seed: int = 0
    factors: tuple[float, ...] = ()
    decay: float = 0.0
    mixing: Tensor = field(init=False, repr=False)
    spare_directions: Tensor = field(init=False, repr=False)
    reading: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.student.grid is None or self.teacher.grid is None:
            raise ValueError("an oracle needs grids on both sides; pooled layouts have no places")
        if not 1 <= self.channels <= min(self.student.dim - self.spare, self.teacher.dim):
            most = min(self.student.dim - self.spare, self.teacher.dim)
            raise ValueError(f"channels={self.channels} must lie in 1..{most}")
        if len(self.factors) not in (0, self.channels) or not all(factor > 0 for factor in self.factors):
            raise ValueError(f"factors={self.factors} must be {self.channels} numbers above 0, or none")
        generator = torch.Generator().manual_seed(self.seed)
        square = torch.randn(self.student.dim, self.student.dim, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(square).Q.float()
        self.mixing = basis[:, : self.channels]
        self.spare_directions = basis[:, self.channels : self.channels + self.spare]
        self.reading = torch.randn(self.teacher.dim, self.channels, generator=generator) / self.channels**0.5
        power = torch.arange(1, self.channels + 1).float() ** -self.decay
        self.reading = self.reading * (power / power.mean()).sqrt()

    def sample(self, clips: int, generator: torch.Generator, *, shifts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(noisy student tokens (b s d), fields at the target's places (b q c)); shifts: of these places, (b 3)."""
        roots = [self._roots(axis, None if shifts is None else shifts[:, axis]) for axis in range(3)]
        white = torch.randn(clips, self.channels, *(root.shape[-1] for root in roots), generator=generator)
        for axis, root in enumerate(roots):
            white = white.movedim(2 + axis, 2)
            if root.shape[1] == 1:  # one product for all fields of a clip
                white = torch.einsum("bmn, bcn... -> bc...m", root[:, 0].expand(clips, -1, -1), white)
            else:
                white = torch.einsum("bcmn, bcn... -> bc...m", root.expand(clips, -1, -1, -1), white)
            white = white.movedim(-1, 2 + axis)
        (st, sy, sx), (tt, ty, tx) = self.student.grid, self.teacher.grid  # type: ignore[misc]
        seen = white[:, :, :st, :sy, :sx].flatten(2).transpose(1, 2)
        asked = white[:, :, -tt:, -ty:, -tx:].flatten(2).transpose(1, 2)
        noise = torch.randn(clips, self.student.num_tokens, self.student.dim, generator=generator)
        noise = noise - noise @ self.spare_directions @ self.spare_directions.T
        return seen @ self.mixing.T + self.noise * noise, asked

    def reliability(self, shift: Place = (0.0, 0.0, 0.0)) -> Tensor:
        """r(q), (f q) float64: the best possible R2 of each field at each target place, all places shifted."""
        values, crosses = [], []
        for axis in range(3):
            places, wanted = axis_places(self.student, axis), axis_places(self.teacher, axis) + shift[axis]
            length = self._lengths(axis)
            eigenvalues, eigenvectors = torch.linalg.eigh(covariance(places, places, length))
            values.append(eigenvalues.clamp(min=0))
            crosses.append((covariance(wanted, places, length) @ eigenvectors).square())
        t, y, x = values
        precision = 1 / (t[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :] + self.noise**2)
        return torch.einsum("fai, fbj, fck, fijk -> fabc", *crosses, precision).flatten(1)

    def mean_reliability(self, shift: Place = (0.0, 0.0, 0.0), *, degree: int = 1) -> float:
        """r(q) ** degree, mean over places and over fields by their power in the teacher: R2 of the best converter."""
        by_field = (self.reliability(shift) ** degree).mean(dim=1).expand(self.channels)
        power = self.reading.double().square().sum(dim=0)
        return float(by_field @ power / power.sum())

    def kriging(self, student_tokens: Tensor) -> Tensor:
        """Best estimate of the fields at the target's places: (b s d) -> (b q c) float64. Dense: for small grids."""
        kernel, cross = torch.ones(1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
        for axis in range(3):
            places, wanted = axis_places(self.student, axis), axis_places(self.teacher, axis)
            kernel = kron(kernel, covariance(places, places, self._lengths(axis)))
            cross = kron(cross, covariance(wanted, places, self._lengths(axis)))
        noisy = kernel + self.noise**2 * torch.eye(kernel.shape[-1], dtype=torch.float64)
        # Cholesky, not LU: MKL's batched LU fails on some processors when several threads share it
        smoother = torch.cholesky_solve(cross.mT, torch.linalg.cholesky(noisy)).mT.expand(self.channels, -1, -1)
        return torch.einsum("cqs, bsc -> bqc", smoother, student_tokens.double() @ self.mixing.double())

    def _lengths(self, axis: int) -> Tensor:
        """(f 1 1) float64"""
        return self.lengths[axis] * torch.tensor(self.factors or (1.0,), dtype=torch.float64)[:, None, None]

    def _roots(self, axis: int, shifts: Tensor | None) -> Tensor:
        """Square roots of the covariance over an axis' places, student's and then teacher's: (1 or b, f, n, n)."""
        own, other = axis_places(self.student, axis), axis_places(self.teacher, axis)
        moved = other[None] if shifts is None else other[None] + shifts[:, None].double()
        places = torch.cat([own.expand(len(moved), -1), moved], dim=1)[:, None]
        values, vectors = torch.linalg.eigh(covariance(places, places, self._lengths(axis)))
        return (vectors * values.clamp(min=0).sqrt()[..., None, :]).float()


@dataclass
class FieldOracle(Fields):
    """y(q) = B g(q). With a decaying power it is the reduced-rank oracle, too."""

    def sample(self, clips: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        student, fields = super().sample(clips, generator)
        return student, fields @ self.reading.T

    def bayes_r2(self, rank: int | None = None) -> float:
        """rank: of the best converter whose answers span so many channels at most: it keeps the leading components of
        what can be predicted, B diag(mean r) B' (Eckart and Young 1936)."""
        if rank is None:
            return self.mean_reliability()
        return float(self._predictable()[:rank].sum() / self.reading.double().square().sum())

    def shrunk_r2(self, taken: float) -> float:
        """Of the best answers, so much taken from every singular value (per token): where a nuclear norm leads."""
        values = self._predictable()
        left = (values.sqrt() - taken).clamp(min=0)
        return float((2 * left * values.sqrt() - left.square()).sum() / self.reading.double().square().sum())

    def _predictable(self) -> Tensor:
        """Variances of the components of what can be predicted, falling."""
        mean, reading = self.reliability().mean(dim=1).expand(self.channels), self.reading.double()
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

    def bayes_r2(self) -> float:
        return sum(self.mean_reliability(degree=degree) for degree in self.degrees) / len(self.degrees)


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

    def bayes_r2(self, draws: int = 256) -> float:
        """Mean over displacements, by quasi-random draws: within 0.001."""
        points = torch.quasirandom.SobolEngine(3, scramble=True, seed=0).draw(draws).double() * 2 - 1
        shifts = (points * torch.tensor(self.reach, dtype=torch.float64)).tolist()
        return sum(self.mean_reliability((t, y, x)) for t, y, x in shifts) / draws


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

    def bayes_r2(self) -> float:
        field_power, value_power = self.reading.square().sum(), self.values.square().sum()
        share = float(field_power / (field_power + value_power))
        return share * self.mean_reliability() + 1 - share


def hermite(x: Tensor, degree: int) -> Tensor:
    """The probabilists' Hermite polynomial of a degree, scaled to variance 1 on a standard normal."""
    last, this = torch.zeros_like(x), torch.ones_like(x)
    for k in range(degree):
        last, this = this, x * this - k * last
    return this / math.sqrt(math.factorial(degree))


def axis_places(layout: TokenLayout, axis: int) -> Tensor:
    """Centres of a grid's cells on one axis, float64."""
    assert layout.grid is not None
    (low, high), cells = layout.extent[axis], layout.grid[axis]
    return low + (torch.arange(cells, dtype=torch.float64) + 0.5) / cells * (high - low)


def covariance(a: Tensor, b: Tensor, length: float | Tensor) -> Tensor:
    """Squared-exponential covariance between two sets of places on one axis: (.. m), (.. n) -> (.. m n)."""
    return torch.exp(-0.5 * ((a[..., :, None] - b[..., None, :]) / length).square())


def kron(a: Tensor, b: Tensor) -> Tensor:
    """Kronecker product of each matrix in (.. m n) with its counterpart in (.. k l)."""
    product = a[..., :, None, :, None] * b[..., None, :, None, :]
    return product.flatten(-2).flatten(-3, -2)
