"""Does rendering bound the training of the miniatures: its share of a step, each at its shipped batch.

python tests/benchmarks/rendering.py [--models NAME ...] [--rounds 5] [--device cpu]
"""

from __future__ import annotations

import argparse

import torch
from timing import medians
from tqdm import tqdm

from distill.table import format_table
from shards.world import FACTORS
from teachers.miniature.__main__ import teach
from teachers.miniature.models import MINIATURES
from teachers.miniature.objectives import OBJECTIVES, Lesson


def row(name: str, rounds: int, device: torch.device) -> list[str]:
    """Name, clips a step, rendered clips/s, ms of rendering, ms of the rest of a step, share of rendering."""
    model = MINIATURES[name]
    objective = OBJECTIVES[model.objective](model.network(), {key: len(FACTORS[key]) for key in model.factors})
    objective.to(device)
    generator = torch.Generator().manual_seed(0)
    arguments = argparse.Namespace(batch=model.batch, difficulty=0.5)

    def render() -> Lesson:
        lesson = teach(model, arguments, device=device, generator=generator, progress=0.5)
        lesson.video.sum().item()  # waits for the device
        return lesson

    lesson = render()

    def learn() -> None:
        objective(lesson, generator)[0].backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0).item()  # waits for the device

    times = medians({"render": render, "learn": learn}, rounds)
    rendering, learning = times["render"], times["learn"]
    share = rendering / (rendering + learning)
    return [
        name,
        str(model.batch),
        f"{1000 * model.batch / rendering:.0f}",
        f"{rendering:.0f}",
        f"{learning:.0f}",
        f"{100 * share:.0f}%",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MINIATURES), choices=list(MINIATURES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    rows = [row(name, asked.rounds, torch.device(asked.device)) for name in tqdm(asked.models)]
    head = ["model", "clips a step", "clips/s rendered", "ms rendering", "ms forward and backward", "share"]
    print(format_table(head, rows))


if __name__ == "__main__":
    main()
