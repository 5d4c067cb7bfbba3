"""Gaussian fields as a student and a teacher see them: what every oracle rests on.

Axes: b clips, s student tokens, q target tokens, c independent fields, d student width, e teacher width;
f is c, or 1 where all fields are alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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

    def mean_reliability(self, shift: Place = (0.0, 0.0, 0.0), *, degree: int = 1, standardised: bool = False) -> float:
        """r(q) ** degree, mean over places and over fields by their power in the teacher: R2 of the best converter."""
        by_field = (self.reliability(shift) ** degree).mean(dim=1).expand(self.channels)
        power = self.readings(standardised).square().sum(dim=0)
        return float(by_field @ power / power.sum())

    def variance(self) -> Tensor:
        """Of the teacher's channels, (e,) float64."""
        return self.reading.double().square().sum(dim=1)

    def readings(self, standardised: bool) -> Tensor:
        """B, (e c) float64, of the teacher's channels or of those divided by their deviation."""
        reading = self.reading.double()
        return reading / self.variance().sqrt()[:, None] if standardised else reading

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
