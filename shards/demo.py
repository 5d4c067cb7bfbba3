"""The embedded demo: procedural clips, rendered with numpy, encoded as real video files in class folders.

A world is one main object over drifting gratings, with small objects passing by. The class says what the main object
is and how it moves; its colour, size, speed, direction, the background and the camera's pan are drawn independently.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from shards.rendered import encode, rendered_folder

SHAPES = ("disc", "square")
MOTIONS = ("slide", "orbit", "bounce", "pulse")
CLASSES = tuple(f"{shape}-{motion}" for shape in SHAPES for motion in MOTIONS)
VERSION = 1  # of the world; another look needs another number
FRAMES, RATE, HEIGHT, WIDTH = 32, 16, 256, 288
ENCODER = {"preset": "superfast", "crf": "20"}
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32) / HEIGHT  # the height is 1


def render_demo(root: str | Path, *, clips: int, seed: int) -> Path:
    """The folder of `clips` demo videos of world `seed` under `root`, rendered unless it is there."""
    marker = {"clips": clips, "seed": seed, "version": VERSION}
    name = f"demo-v{VERSION}-seed{seed}-{clips}"

    def write(folder: Path) -> None:
        for index in tqdm(range(clips), desc="render demo clips", unit="clip", delay=1):
            label = CLASSES[index % len(CLASSES)]
            (folder / label).mkdir(exist_ok=True)
            frames = render_clip(index, seed=seed)
            encode(folder / label / f"world-{index:04d}.mp4", frames, rate=RATE, options=ENCODER)

    return rendered_folder(Path(root) / name, write, marker=marker)


def render_clip(index: int, *, seed: int) -> np.ndarray:
    """Clip `index` of world `seed`: (f, h, w, 3) uint8, whatever the other clips are."""
    digest = hashlib.sha256(f"demo-{VERSION}/{seed}/{index}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    shape, motion = CLASSES[index % len(CLASSES)].split("-")
    background = _gratings(rng)
    pan = rng.uniform(-0.12, 0.12, 2)
    main = _Thing(rng, shape=shape, motion=motion, radius=rng.uniform(0.13, 0.22))
    others = [
        _Thing(rng, shape=str(rng.choice(SHAPES)), motion="slide", radius=rng.uniform(0.04, 0.08))
        for _ in range(rng.integers(1, 4))
    ]
    frames = np.empty((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    for frame in range(FRAMES):
        time = frame / RATE
        image = background(time, pan * time)
        for thing in (*others, main):
            thing.draw(image, time, pan * time)
        frames[frame] = (image * 255).clip(0, 255)
    return frames


def _gratings(rng: np.random.Generator):  # type: ignore[no-untyped-def]
    """Two drifting gratings in two colours: (time, camera) -> (h, w, 3) float32 in [0, 1]."""
    angles, waves = rng.uniform(0, np.pi, 2), rng.uniform(8, 40, 2)
    drift, colours = rng.uniform(-4, 4, 2), rng.uniform(0.1, 0.7, (2, 3)).astype(np.float32)
    ky, kx = waves * np.sin(angles), waves * np.cos(angles)
    phases = [np.float32(ky[i]) * Y + np.float32(kx[i]) * X for i in range(2)]
    sines, cosines = [np.sin(phase) for phase in phases], [np.cos(phase) for phase in phases]

    def background(time: float, camera: np.ndarray) -> np.ndarray:
        shift = drift * time + ky * camera[0] + kx * camera[1]
        sin, cos = np.sin(shift).astype(np.float32), np.cos(shift).astype(np.float32)
        mix = 0.5 + 0.25 * sum(sines[i] * cos[i] + cosines[i] * sin[i] for i in range(2))  # sin(phase + shift)
        return colours[1] + mix[..., None] * (colours[0] - colours[1])

    return background


class _Thing:
    """A textured object that moves."""

    def __init__(self, rng: np.random.Generator, *, shape: str, motion: str, radius: float) -> None:
        self.shape, self.motion, self.radius = shape, motion, radius
        self.colours = rng.uniform(0, 1, (2, 3)).astype(np.float32)
        self.stripes, self.spin = rng.uniform(20, 80), rng.uniform(-3, 3)
        self.centre = np.array([rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.8)])
        heading = rng.uniform(0, 2 * np.pi)
        self.direction, self.phase = np.array([np.sin(heading), np.cos(heading)]), heading
        self.speed = rng.choice([0.15, 0.3, 0.45])  # picture heights per second

    def draw(self, image: np.ndarray, time: float, camera: np.ndarray) -> None:
        """Paints over its bounding box."""
        place, radius, swing = self.centre - camera, self.radius, 0.22
        if self.motion == "slide":
            place = place + self.direction * self.speed * (time - 1)
        elif self.motion == "orbit":
            angle = self.phase + np.sign(self.spin) * self.speed / swing * 2 * time
            place = place + swing * np.array([np.sin(angle), np.cos(angle)])
        elif self.motion == "bounce":
            place = place + self.direction * swing * (2 * abs((self.speed * 2 * time + self.phase) % 2 - 1) - 1)
        else:
            radius *= 1 + 0.45 * np.sin(self.phase + self.speed * 14 * time)
        low = np.clip(((place - 1.5 * radius) * HEIGHT).astype(int), 0, None)
        high = np.clip(((place + 1.5 * radius) * HEIGHT).astype(int) + 1, 0, None)
        box = (slice(low[0], high[0]), slice(low[1], high[1]))
        y, x = Y[box] - np.float32(place[0]), X[box] - np.float32(place[1])
        cos, sin = np.cos(self.spin * time), np.sin(self.spin * time)
        u, v = np.float32(cos) * x + np.float32(sin) * y, np.float32(cos) * y - np.float32(sin) * x
        distance = np.hypot(u, v) if self.shape == "disc" else np.maximum(abs(u), abs(v)) * 1.13
        mask = np.clip((radius - distance) * HEIGHT, 0, 1)[..., None].astype(np.float32)
        stripes = (0.5 + 0.5 * np.sin(np.float32(self.stripes) * u))[..., None]
        image[box] += mask * (self.colours[0] * stripes + self.colours[1] * (1 - stripes) - image[box])
