"""Oracles: synthetic students and teachers whose best possible conversion is known in closed form.

Axes: b clips, s student tokens, q target tokens, c independent fields, d student width, e teacher width.

*Field.* c independent Gaussian fields g with a separable squared-exponential covariance over (t, y, x). The student
sees them with noise, x(p) = A g(p) + sigma * e; the teacher without, y(q) = B g(q), at its own places. The optimum is
kriging (Gaussian-process regression; Rasmussen and Williams 2006, eq. 2.23): its R2 at a target place q is
r(q) = K_qp (K_pp + sigma^2 I)^-1 K_pq / K_qq. On product grids all of it factorises over the axes, so it is exact at
full geometry too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from teachers.layout import TokenLayout

# The tiny geometry: a student of 4 x 8 x 8 tokens, a teacher of 4 x 7 x 7 on the centre 224 of 256 pixels.
TINY_STUDENT = TokenLayout(grid=(4, 8, 8), dim=64)
TINY_TEACHER = TokenLayout(grid=(4, 7, 7), dim=48, extent=((0.0, 1.0), (1 / 16, 15 / 16), (1 / 16, 15 / 16)))


@dataclass
class FieldOracle:
    """The field oracle between two grids.

    channels: c, at most both widths. lengths: of the covariance on (t, y, x), as fractions of the view. noise: sigma,
    in deviations of a field. seed: of the two mixing maps A (d c), with orthonormal columns, and B (e c).
    """

    student: TokenLayout = TINY_STUDENT
    teacher: TokenLayout = TINY_TEACHER
    channels: int = 16
    lengths: tuple[float, float, float] = (0.35, 0.18, 0.18)
    noise: float = 1.0
    seed: int = 0
    mixing: Tensor = field(init=False, repr=False)
    reading: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.student.grid is None or self.teacher.grid is None:
            raise ValueError("a field oracle needs grids on both sides; pooled layouts have no places")
        if not 1 <= self.channels <= min(self.student.dim, self.teacher.dim):
            raise ValueError(f"channels={self.channels} must lie in 1..{min(self.student.dim, self.teacher.dim)}")
        generator = torch.Generator().manual_seed(self.seed)
        square = torch.randn(self.student.dim, self.student.dim, generator=generator, dtype=torch.float64)
        self.mixing = torch.linalg.qr(square).Q[:, : self.channels].float()
        self.reading = torch.randn(self.teacher.dim, self.channels, generator=generator) / self.channels**0.5
        self._roots = [self._root(axis) for axis in range(3)]

    def sample(self, clips: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(student tokens (b s d), teacher tokens (b q e)) of new clips."""
        sizes = [len(root) for root in self._roots]
        white = torch.randn(clips, self.channels, *sizes, generator=generator)
        fields = torch.einsum("ti, yj, xk, bcijk -> bctyx", *self._roots, white)
        (st, sy, sx), (tt, ty, tx) = self.student.grid, self.teacher.grid  # type: ignore[misc]
        seen = fields[:, :, :st, :sy, :sx].flatten(2).transpose(1, 2)
        asked = fields[:, :, -tt:, -ty:, -tx:].flatten(2).transpose(1, 2)
        noise = torch.randn(clips, self.student.num_tokens, self.student.dim, generator=generator)
        return seen @ self.mixing.T + self.noise * noise, asked @ self.reading.T

    def reliability(self) -> Tensor:
        """r(q), (q,) float64: the best possible R2 of a field at each target place."""
        vectors, values, crosses = [], [], []
        for axis in range(3):
            places, wanted = axis_places(self.student, axis), axis_places(self.teacher, axis)
            eigenvalues, eigenvectors = torch.linalg.eigh(covariance(places, places, self.lengths[axis]))
            vectors.append(eigenvectors)
            values.append(eigenvalues.clamp(min=0))
            crosses.append((covariance(wanted, places, self.lengths[axis]) @ eigenvectors).square())
        t, y, x = values
        precision = 1 / (t[:, None, None] * y[None, :, None] * x[None, None, :] + self.noise**2)
        return torch.einsum("ai, bj, ck, ijk -> abc", *crosses, precision).flatten()

    def bayes_r2(self) -> float:
        """R2 of the best possible converter, over all target places. All channels share it: they are mixtures of
        fields of one law."""
        return float(self.reliability().mean())

    def bayes(self, student_tokens: Tensor) -> Tensor:
        """The best possible conversion itself: (b s d) -> (b q e), by kriging. Dense: for small grids."""
        kernel, cross = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        for axis in range(3):
            places, wanted = axis_places(self.student, axis), axis_places(self.teacher, axis)
            kernel = torch.kron(kernel, covariance(places, places, self.lengths[axis]))
            cross = torch.kron(cross, covariance(wanted, places, self.lengths[axis]))
        noisy = kernel + self.noise**2 * torch.eye(len(kernel), dtype=torch.float64)
        smoother = torch.linalg.solve(noisy, cross.T).T
        fields = student_tokens.double() @ self.mixing.double()
        return (smoother @ fields @ self.reading.T.double()).float()

    def _root(self, axis: int) -> Tensor:
        """A square root of the covariance over the student's places of an axis followed by the teacher's."""
        places = torch.cat([axis_places(self.student, axis), axis_places(self.teacher, axis)])
        values, vectors = torch.linalg.eigh(covariance(places, places, self.lengths[axis]))
        return (vectors * values.clamp(min=0).sqrt()).float()


def axis_places(layout: TokenLayout, axis: int) -> Tensor:
    """Centres of a grid's cells on one axis, float64."""
    assert layout.grid is not None
    (low, high), cells = layout.extent[axis], layout.grid[axis]
    return low + (torch.arange(cells, dtype=torch.float64) + 0.5) / cells * (high - low)


def covariance(a: Tensor, b: Tensor, length: float) -> Tensor:
    """Squared-exponential covariance between two sets of places on one axis."""
    return torch.exp(-0.5 * ((a[:, None] - b[None, :]) / length).square())
