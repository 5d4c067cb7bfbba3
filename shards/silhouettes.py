"""The shapes of the rendered world, as distances from their edge (Quilez, "2D distance functions").

A silhouette takes (u, v), coordinates in the object's own frame in radii, and gives a number below 0 inside, above 0
outside, about the distance in radii near the edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor


def disc(u: Tensor, v: Tensor) -> Tensor:
    return (u * u + v * v).sqrt() - 0.95


def square(u: Tensor, v: Tensor) -> Tensor:
    return u.abs().maximum(v.abs()) - 0.85


def triangle(u: Tensor, v: Tensor) -> Tensor:
    """Equilateral, its middle at the origin."""
    slanted = 0.5 * math.sqrt(3) * u.abs()
    return (slanted + 0.5 * v).maximum(-v) - 0.6


def star(u: Tensor, v: Tensor) -> Tensor:
    """Five points: a radius that swings with the angle."""
    radius = (u * u + v * v).sqrt()
    point = (5 * v.atan2(u)).cos()
    return radius - (0.72 + 0.36 * point)


def ring(u: Tensor, v: Tensor) -> Tensor:
    return ((u * u + v * v).sqrt() - 0.75).abs() - 0.27


def cross(u: Tensor, v: Tensor) -> Tensor:
    u, v = u.abs(), v.abs()
    return (u.maximum(v) - 1.05).maximum(u.minimum(v) - 0.33)


SILHOUETTES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": disc,
    "square": square,
    "triangle": triangle,
    "star": star,
    "ring": ring,
    "cross": cross,
}
