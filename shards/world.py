"""A rendered world whose every factor is known: one kind of object that moves before a calm background.

A clip is a choice of factors (what the object is, how it moves, what surrounds it) and of details that mean nothing
(jitter, phases). Rendering is a pure function of the two, at any number of frames and pixels, and gives each pixel's
motion and the object's mask as well. All of a clip's span is seen: time runs from 0 to 1, x and y from the left and the
top of the picture, lengths are in sides of it. Factorised worlds of this kind: dSprites (Matthey et al., 2017), CATER
(Girdhar and Ramanan, 2020).

Axes: b clips, f frames, h w pixels, n copies of the object.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from shards.silhouettes import SILHOUETTES

VERSION = 1  # of the world; another look needs another number
FACTORS: dict[str, tuple[str, ...]] = {
    "shape": tuple(SILHOUETTES),
    "colour": ("red", "yellow", "green", "cyan", "blue", "magenta"),
    "texture": ("solid", "stripes", "checks"),
    "size": ("small", "medium", "large"),
    "count": ("one", "two", "three"),
    "position": ("top-left", "top-right", "bottom-left", "bottom-right"),  # at half time
    "direction": ("east", "southeast", "south", "southwest", "west", "northwest", "north", "northeast"),
    "speed": ("slow", "medium", "fast"),
    "rotation": ("none", "clockwise", "anticlockwise"),
    "scale": ("constant", "growing", "shrinking"),
    "pan": ("none", "left", "right", "up", "down"),  # where the background goes; the object is followed on the screen
    "occluder": ("none", "bar"),
    "background": ("gradient", "plaid", "blobs"),
    "flicker": ("none", "flicker"),
}
# Pairings (a, b, offset): value i of a never meets value i + offset of b in a clip that is not `unseen`.
HELD_OUT = (("shape", "colour", 0), ("shape", "direction", 1), ("texture", "direction", 5))
DETAILS = 17  # uniform numbers of a clip that no factor names

_RGB = ((0.9, 0.2, 0.2), (0.9, 0.8, 0.2), (0.25, 0.8, 0.25), (0.2, 0.8, 0.85), (0.3, 0.4, 0.95), (0.85, 0.3, 0.8))
_RADII = (0.13, 0.17, 0.22)
_CENTRES = ((0.36, 0.36), (0.64, 0.36), (0.36, 0.64), (0.64, 0.64))  # x, y
_SPEEDS = (0.14, 0.28, 0.5)  # sides in the whole span
_SPINS = (0.0, 2.2, -2.2)  # radians
_GROWTHS = (0.0, 0.7, -0.7)  # logarithm of the last size over the first
_PANS = ((0.0, 0.0), (-0.25, 0.0), (0.25, 0.0), (0.0, -0.25), (0.0, 0.25))
_SPREADS = (0.0, 0.24, 0.3)  # distance of the copies from their middle, by their number
_FAR = 9.0  # where copies stand that are not there


@dataclass(frozen=True)
class Scenes:
    """What is to be seen in b clips. factors: name -> (b,) int64, indices into FACTORS; details: (b, DETAILS)."""

    factors: dict[str, Tensor]
    details: Tensor

    def __len__(self) -> int:
        return len(self.details)

    def to(self, device: torch.device) -> Scenes:
        return Scenes({name: values.to(device) for name, values in self.factors.items()}, self.details.to(device))

    def names(self, clip: int) -> dict[str, str]:
        """Factor -> value of one clip, in words."""
        return {name: FACTORS[name][int(values[clip])] for name, values in self.factors.items()}


@dataclass(frozen=True)
class Rendered:
    """video (b f 3 h w) in [0, 1]; flow (b f 2 h w), x and y, sides of the picture per span; mask (b f h w) in [0, 1],
    the share of a pixel that shows the object."""

    video: Tensor
    flow: Tensor
    mask: Tensor


def check_factors(names: Mapping[str, object] | list[str]) -> None:
    """Raises ValueError where the world has no such factor."""
    for name in names:
        if name not in FACTORS:
            raise ValueError(f"the world has no factor {name!r}; it has {', '.join(FACTORS)}")


def clip_generator(seed: int, clip: int) -> torch.Generator:
    """The generator of one clip of world `seed`, whatever the other clips are."""
    digest = hashlib.sha256(f"world-{VERSION}/{seed}/{clip}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def is_unseen(factors: Mapping[str, Tensor]) -> Tensor:
    """(b,) bool: the clip holds one of the HELD_OUT pairings."""
    hits = [never.gather(1, factors[name].unsqueeze(1)) for name, never in impossible(factors).items()]
    return torch.cat(hits, dim=1).any(dim=1)


def draw_scenes(clips: int, *, generator: torch.Generator, unseen: bool | None = None) -> Scenes:
    """Independent uniform factors and details. unseen: with a held-out pairing (True), without (False), or either."""
    factors = {name: torch.empty(clips, dtype=torch.int64) for name in FACTORS}
    open_rows = torch.arange(clips)
    while len(open_rows):
        drawn = {
            name: torch.randint(len(values), (len(open_rows),), generator=generator) for name, values in FACTORS.items()
        }
        for name, values in drawn.items():
            factors[name][open_rows] = values
        if unseen is None:
            break
        open_rows = open_rows[is_unseen(drawn) != unseen]
    return Scenes(factors, torch.rand(clips, DETAILS, generator=generator))


def impossible(factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Factor -> (b, values) bool: the values that no clip has that is not `unseen`, given its other factors."""
    found = {}
    for a, b, offset in HELD_OUT:
        for name, other, shift in ((a, b, -offset), (b, a, offset)):
            values = torch.arange(len(FACTORS[name]), device=factors[other].device)
            partner = (factors[other] + shift) % len(FACTORS[b])
            meets = values == partner.unsqueeze(1)
            found[name] = found[name] | meets if name in found else meets
    return found


def render(scenes: Scenes, *, frames: int | Tensor, pixels: int, difficulty: float = 0.5) -> Rendered:
    """Frames on the device of `scenes.details`.

    frames: how many, at the centres of equal bins of the span; or the times to show, (b f) in [0, 1].
    difficulty: 0 to 1: smaller objects before a livelier background, stronger flicker, a wider occluder.
    """
    times = (torch.arange(frames) + 0.5).view(1, -1) / frames if isinstance(frames, int) else frames
    if times.shape[1] < 1 or pixels < 1 or not 0 <= difficulty <= 1:
        raise ValueError(
            f"the world renders at least 1 frame of 1 pixel at a difficulty in [0, 1], not {times.shape[1]} frames of "
            f"{pixels} at {difficulty}"
        )
    return _Renderer(scenes, times=times, pixels=pixels, difficulty=difficulty)()


class _Renderer:
    """One call of `render`. Quantities of a clip are (b 1 1 1), of a frame (b f 1 1), of a pixel (b f h w)."""

    def __init__(self, scenes: Scenes, *, times: Tensor, pixels: int, difficulty: float) -> None:
        self.factors, self.details = scenes.factors, scenes.details
        self.pixels, self.difficulty = pixels, difficulty
        device = self.details.device
        places = (torch.arange(pixels, device=device) + 0.5) / pixels
        self.x, self.y = places.view(1, 1, 1, -1), places.view(1, 1, -1, 1)
        self.time = (times.to(device) - 0.5)[:, :, None, None]  # 0 at half time

    def value(self, factor: str, table: tuple[float, ...] | tuple[tuple[float, ...], ...]) -> Tensor:
        """(b 1 1 1), or (k b 1 1 1) from a table of k-tuples."""
        chosen = torch.tensor(table, device=self.details.device)[self.factors[factor]]
        return chosen.view(-1, 1, 1, 1) if chosen.ndim == 1 else chosen.T.reshape(-1, len(self.details), 1, 1, 1)

    def detail(self, index: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return (low + (high - low) * self.details[:, index]).view(-1, 1, 1, 1)

    def __call__(self) -> Rendered:
        mask, tone, motion = self.object()
        background, drift = self.background()
        colour = self.value("colour", _RGB) * self.detail(9, 0.85, 1.05)
        video = torch.stack([background + mask * (tone * channel - background) for channel in colour], dim=2)
        flow = torch.stack([torch.where(mask > 0.5, a, b) for a, b in zip(motion, drift, strict=True)], dim=2)
        bar = self.bar()
        video = torch.lerp(video, video.new_tensor(0.12), bar.unsqueeze(2))
        flow, mask = flow * (bar < 0.5).unsqueeze(2), mask * (1 - bar)
        return Rendered((video * self.light().unsqueeze(2)).clamp(0, 1), flow, mask)

    def object(self) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Its mask, its tone, and its velocity (x, y), all (b f h w)."""
        heading = self.factors["direction"].view(-1, 1, 1, 1) * (math.pi / 4)
        heading = heading + self.detail(15, -0.15, 0.15)
        speed = self.value("speed", _SPEEDS) * self.detail(16, 0.9, 1.1)
        velocity = speed * heading.cos(), speed * heading.sin()
        x, y = (self.value("position", _CENTRES)[axis] + self.detail(axis, -0.06, 0.06) for axis in (0, 1))
        dx, dy = self.nearest(self.x - x - velocity[0] * self.time, self.y - y - velocity[1] * self.time)

        spin, growth = self.value("rotation", _SPINS), self.value("scale", _GROWTHS)
        angle = self.detail(2, 0, 2 * math.pi) + spin * self.time
        radius = self.value("size", _RADII) * (1.15 - 0.3 * self.difficulty) * (growth * self.time).exp()
        cos, sin = angle.cos() / radius, angle.sin() / radius
        u, v = dx * cos + dy * sin, dy * cos - dx * sin
        distance = torch.empty_like(u)  # from the silhouette's edge, in radii
        shape = self.factors["shape"]
        for index, silhouette in enumerate(SILHOUETTES.values()):
            rows = (shape == index).nonzero().squeeze(1)
            if len(rows):
                distance[rows] = silhouette(u[rows], v[rows])
        mask = (0.5 - distance * radius * self.pixels).clamp(0, 1)
        motion = velocity[0] - spin * dy + growth * dx, velocity[1] + spin * dx + growth * dy
        return mask, self.texture(u, v), motion

    def nearest(self, dx: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """Displacement of every pixel from the copy nearest to it: (b f 1 w), (b f h 1) -> two of (b f h w)."""
        count, turn = self.factors["count"].view(-1, 1, 1, 1), self.detail(3, 0, 2 * math.pi)
        spread, best = self.value("count", _SPREADS), None
        for copy in range(len(_SPREADS)):
            bearing = turn + copy * 2 * math.pi / (count + 1)
            away = torch.where(copy <= count, 0.0, _FAR)
            x, y = dx - spread * bearing.cos() - away, dy - spread * bearing.sin() - away
            square = x * x + y * y
            if best is None:
                best, near_x, near_y = square, x, y
            else:
                closer = square < best
                best, near_x, near_y = (
                    square.minimum(best),
                    torch.where(closer, x, near_x),
                    torch.where(closer, y, near_y),
                )
        return near_x, near_y

    def texture(self, u: Tensor, v: Tensor) -> Tensor:
        """Tone in the object's own coordinates: a shade that shows how it turns, and stripes or checks."""
        texture, phase = self.factors["texture"].view(-1, 1, 1, 1), self.detail(13, 0, 2 * math.pi)
        wave = torch.where(texture > 0, (7.0 * u + phase).sin(), 1.0)
        wave = torch.where(texture > 1, wave * (7.0 * v).sin(), wave)
        return (0.7 + 0.4 * v).clamp(0.3, 1) * (0.675 + 0.9 * wave).clamp(0.35, 1)

    def background(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Its tone (b f h w) and its velocity (b 1 1 1): two crossing waves that drift with the pan."""
        pan = self.value("pan", _PANS)
        kind = self.factors["background"].view(-1, 1, 1, 1)
        wavelength = self.value("background", (1.3, 0.24, 0.42)) * self.detail(7, 0.85, 1.15)
        tilt, wave = self.detail(6, 0.5, 1.07), 2 * math.pi / wavelength  # never along a pan: it would not be seen
        x, y = self.x - pan[0] * self.time, self.y - pan[1] * self.time
        one = (wave * (x * tilt.cos() + y * tilt.sin()) + self.detail(4, 0, 2 * math.pi)).sin()
        two = (wave * (y * tilt.cos() - x * tilt.sin()) + self.detail(5, 0, 2 * math.pi)).sin()
        pattern = torch.where(kind == 1, 0.5 * (one + two), torch.where(kind == 2, one * two, 0.7 * (one + 0.5 * two)))
        return self.detail(8, 0.4, 0.6) + (0.03 + 0.16 * self.difficulty) * pattern, (pan[0], pan[1])

    def bar(self) -> Tensor:
        """The occluder, dark and still, upright or level: how much of every pixel it hides, (b 1 h w)."""
        upright = self.detail(11) < 0.5
        along = torch.where(upright, self.x, self.y)
        half = 0.03 + 0.06 * self.difficulty
        hidden = ((half - (along - self.detail(10, 0.3, 0.7)).abs()) * self.pixels + 0.5).clamp(0, 1)
        return hidden * self.value("occluder", (0.0, 1.0))

    def light(self) -> Tensor:
        """(b f 1 1)"""
        wave = (2 * math.pi * (2.5 * self.time + self.detail(12))).sin()
        return 1 + self.value("flicker", (0.0, 1.0)) * (0.15 + 0.2 * self.difficulty) * wave
