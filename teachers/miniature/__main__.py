"""Command: train a miniature backbone on the rendered world.

python -m teachers.miniature train NAME [--steps N] [--out FOLDER] [...]
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch

from shards.world import FACTORS, VERSION, check_factors, draw_scenes, impossible, render
from teachers.miniature.models import MEAN, MINIATURES, STD, Miniature
from teachers.miniature.objectives import OBJECTIVES, Lesson
from teachers.miniature.record import Record, write_weights
from teachers.miniature.training import Trainer

log = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Returns the exit status: 0 done, 1 the work failed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parser().parse_args(argv)
    try:
        record = train(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{record.model}: {record.steps} steps in {record.seconds / 60:.0f} min on {record.hardware}")
    print(f"weights and record in {arguments.out}; use them with backbones.weights={arguments.out}")
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m teachers.miniature", description="The miniature backbones.")
    commands = top.add_subparsers(dest="action", required=True)
    one = commands.add_parser("train", help="train one; the same command again goes on from its last checkpoint")
    one.add_argument("name", choices=list(MINIATURES))
    one.add_argument("--out", type=Path, default=Path("runs/miniature"), help="default: runs/miniature")
    one.add_argument("--steps", type=int, help="default: as its shipped weights had")
    one.add_argument("--batch", type=int, help="clips a step; default: as its shipped weights had")
    one.add_argument("--lr", type=float, help="peak rate; default: as its shipped weights had")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--difficulty", type=float, default=0.5, help="of the world, 0 to 1 (default: 0.5)")
    one.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    one.add_argument("--checkpoint-every", type=int, default=250, help="steps (default: 250)")
    return top


def train(arguments: argparse.Namespace) -> Record:
    """Trains one miniature, or goes on with it, and writes its weights and record to arguments.out."""
    name, device = arguments.name, torch.device(arguments.device)
    model = MINIATURES[name]
    check_factors(list(model.factors))
    for key in ("steps", "batch", "lr"):
        setattr(arguments, key, getattr(arguments, key) or getattr(model, key))
    settings = {"model": name, "world": VERSION, **{key: getattr(arguments, key) for key in SETTINGS}}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(arguments.seed)
        objective = OBJECTIVES[model.objective](model.network(), {key: len(FACTORS[key]) for key in model.factors})
    trainer = Trainer(objective, settings=settings, device=device)
    checkpoint = arguments.out / name / "checkpoint.safetensors"
    if checkpoint.exists():
        trainer.restore(checkpoint)
        log.info("%s goes on from step %d of %d", name, trainer.step, arguments.steps)
    log.info("%s: %d steps of %d clips on %s", name, arguments.steps, arguments.batch, hardware(device))

    def lesson(generator: torch.Generator, progress: float) -> Lesson:
        return teach(model, arguments, device=device, generator=generator, progress=progress)

    trainer.train(lesson, checkpoint=checkpoint, every=arguments.checkpoint_every)
    options = " ".join(f"--{key} {getattr(arguments, key):g}" for key in SETTINGS)
    made = {
        "command": f"python -m teachers.miniature train {name} {options}",
        "hardware": hardware(device),
        "seconds": round(trainer.seconds, 1),
    }
    losses = {term: round(value, 4) for term, value in trainer.losses().items()}
    return write_weights(arguments.out / name, trainer.average, settings | made | {"losses": losses})


SETTINGS = ("steps", "batch", "lr", "seed", "difficulty")


def teach(
    model: Miniature,
    arguments: argparse.Namespace,
    *,
    device: torch.device,
    generator: torch.Generator,
    progress: float,
) -> Lesson:
    """A batch of clips, none with a held-out pairing. Fewer frames than the model's are of any times."""
    scenes = draw_scenes(arguments.batch, generator=generator, unseen=False).to(device)
    frames: int | torch.Tensor = model.frames
    if model.taught_frames is not None:
        frames = torch.rand(arguments.batch, model.taught_frames, generator=generator)
    seen = render(scenes, frames=frames, pixels=model.pixels, difficulty=arguments.difficulty)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
    return Lesson((seen.video - mean) / std, seen.flow, seen.mask, scenes.factors, impossible(scenes.factors), progress)


def hardware(device: torch.device) -> str:
    """A class of machines, not a machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU thread(s), {torch.backends.cpu.get_cpu_capability()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
