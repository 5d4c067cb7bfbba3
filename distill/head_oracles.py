"""Oracles of the compensated head: pooled students, ideally converted tokens and labels whose best accuracy is known.

Axes: n clips, k fields, d width of the student, e of the teacher, q missed fields, c classes.

product  the label is (sign g1 g2, sign g3). The teacher exposes g1 g2, which no linear head reads off the student, and
         not g3, which it does: conversion and residual each carry something that the other lacks.
linear   Gaussian classes in g; the teacher misses q of the fields that tell them apart. The student alone is optimal
         in the limit, so this tests the machinery only.

In both, further fields tell nothing: some the teacher shows, too, others are as strong in the residual as what matters,
so that its principal components are no answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from distill.head import random_basis


class Pooled(NamedTuple):
    """student (n d), converted by the best possible converter (n e), teacher (n e), labels (n,) int64."""

    student: Tensor
    converted: Tensor
    teacher: Tensor
    labels: Tensor


@dataclass
class ProductOracle:
    """x = A g + noise e, y = B (g1 g2, g4 ... gk). E[y | x] is known: with z = A' x / (1 + noise^2), E g = z, and
    E g1 g2 = z1 z2.

    fields: k, at least 3; 6 of them by default, one of which matters to the residual, two of which the teacher's
    product hides there, and three that both show linearly. noise: in deviations of a field; 0.3 gives the accuracies
    of `optimum`: 0.75 for both, 0.42 for what is converted, 0.45 for a linear head on the student.
    """

    fields: int = 6
    student_width: int = 24
    teacher_width: int = 16
    noise: float = 0.3
    seed: int = 0
    student_map: Tensor = field(init=False, repr=False)
    teacher_map: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        exposed = self.fields - 2
        if self.fields < 3 or self.student_width < self.fields or self.teacher_width < exposed:
            raise ValueError(
                f"fields={self.fields} must be at least 3, at most student_width={self.student_width}, and at most 2 "
                f"more than teacher_width={self.teacher_width}"
            )
        generator = torch.Generator().manual_seed(self.seed)
        self.student_map = random_basis(self.student_width, self.fields, generator=generator)
        self.teacher_map = random_basis(self.teacher_width, exposed, generator=generator)

    def sample(self, clips: int, generator: torch.Generator) -> Pooled:
        """New clips."""
        g = torch.randn(clips, self.fields, generator=generator, dtype=torch.float64)
        noise = torch.randn(clips, self.student_width, generator=generator, dtype=torch.float64)
        student = g @ self.student_map.T + self.noise * noise
        best = student @ self.student_map / (1 + self.noise**2)
        labels = 2 * (g[:, 0] * g[:, 1] > 0).long() + (g[:, 2] > 0).long()
        converted, teacher = (self._exposed(fields) @ self.teacher_map.T for fields in (best, g))
        return Pooled(student.float(), converted.float(), teacher.float(), labels)

    def _exposed(self, g: Tensor) -> Tensor:
        return torch.cat([g[:, :1] * g[:, 1:2], g[:, 3:]], dim=1)

    def optimum(self) -> dict[str, float]:
        """The best accuracy of a head on what is converted, of a linear one on the student, of one on both.

        A field's sign is told with probability 1/2 + arcsin(rho) / pi, rho its correlation with what is seen
        (Sheppard 1899); a product's where both are, or neither.
        """
        one = 0.5 + math.asin((1 + self.noise**2) ** -0.5) / math.pi
        product = one**2 + (1 - one) ** 2
        return {"converted": product / 2, "student": one / 2, "both": product * one}


@dataclass
class LinearOracle:
    """g ~ N(mean of the class, I) in exposed + missed fields, x = A (g, others), y = B (exposed fields).

    The student is free of noise, so that y is a linear function of it and the best converter says nothing beyond it
    (with noise, E[y | x] would tell of the class by what x holds of the missed fields). The class means of exposed and
    missed fields are uncorrelated over classes: the residual then holds the missed fields as they are, and W_T fitted
    to p alone is W_T of the joint optimum, so that stages lose nothing. Hence exposed + missed < classes.

    spread: deviation of the class means, in deviations within a class. others: as many fields, of deviations from 2 to
    0.5, that tell nothing and that the teacher misses. Every one costs a logistic regression (classes - 1) weights to
    find out: with 16 classes, 14 telling fields and 10 others, 12,000 clips leave it 0.009 below the optimum, on the
    whole student as well.
    """

    classes: int = 10
    exposed: int = 5
    missed: int = 4
    others: int = 6
    student_width: int = 24
    teacher_width: int = 12
    spread: float = 0.75
    seed: int = 0
    student_map: Tensor = field(init=False, repr=False)
    teacher_map: Tensor = field(init=False, repr=False)
    means: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        telling = self.exposed + self.missed
        if telling >= self.classes:
            raise ValueError(f"exposed + missed is {telling}; it must be below classes={self.classes}")
        if telling + self.others > self.student_width or self.exposed > self.teacher_width:
            raise ValueError(
                f"{telling + self.others} fields do not fit student_width={self.student_width}, or {self.exposed} not "
                f"teacher_width={self.teacher_width}"
            )
        generator = torch.Generator().manual_seed(self.seed)
        self.student_map = random_basis(self.student_width, telling + self.others, generator=generator)
        self.teacher_map = random_basis(self.teacher_width, self.exposed, generator=generator)
        drawn = torch.randn(self.classes, telling, generator=generator, dtype=torch.float64)
        self.means = self.spread * self.classes**0.5 * torch.linalg.qr(drawn - drawn.mean(0)).Q

    def sample(self, clips: int, generator: torch.Generator) -> Pooled:
        """New clips."""
        labels = torch.randint(self.classes, (clips,), generator=generator)
        g = self.means[labels] + torch.randn(clips, self.means.shape[1], generator=generator, dtype=torch.float64)
        others = torch.randn(clips, self.others, generator=generator, dtype=torch.float64)
        others = others * torch.logspace(1, -1, self.others, base=2, dtype=torch.float64)
        student = torch.cat([g, others], dim=1) @ self.student_map.T
        teacher = g[:, : self.exposed] @ self.teacher_map.T
        return Pooled(student.float(), teacher.float(), teacher.float(), labels)

    def optimum(self, clips: int = 100_000) -> dict[str, float]:
        """As of ProductOracle, on so many new clips: the student alone tells all that both tell."""
        pooled = self.sample(clips, torch.Generator().manual_seed(self.seed + 1))
        found = {
            name: float((self.bayes(pooled.student, fields=fields) == pooled.labels).double().mean())
            for name, fields in (("converted", self.exposed), ("student", None))
        }
        return found | {"both": found["student"]}

    def bayes(self, student: Tensor, *, fields: int | None = None) -> Tensor:
        """(n d) -> (n,) the likeliest class by the first `fields` fields (None: all that tell): the nearest mean.

        All of them are what p and a residual of rank `missed` carry together, so this is the rank-q optimum.
        """
        g = (student.double() @ self.student_map)[:, : self.means.shape[1]][:, :fields]
        return torch.cdist(g, self.means[:, :fields]).argmin(1)
