"""What evaluation costs beside training: metrics and forward passes on test clips, as shares of a training epoch.

    python tests/benchmarks/evaluation.py --threads 1 [--target timesformer] [--queries 512] [--family perceiver]

Full geometry, random weights and tokens; every part once in each round, in turn, medians. 15 test clips stand for 70 of
train, as the split has them. A training step decodes `queries` tokens of 4 clips, as the recipes do (0: all of them);
evaluation decodes all.
"""

from __future__ import annotations

import argparse
import os

import torch
from steps import STUDENT, TARGETS, family
from timing import medians, training_step

from converters.resample import stratified
from distill.metrics import Alignment, Reference, Statistics

CLIPS = 4
TEST, TRAIN = 15, 70


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", default="timesformer", choices=list(TARGETS))
    parser.add_argument("--family", default="perceiver")
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    layout = TARGETS[given.target]
    converter = family(given.family, {given.target: layout}, {}, skip="linear")
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(CLIPS, *STUDENT.shape, generator=draw)
    ours, theirs = torch.randn(2, CLIPS, *layout.shape, generator=draw)
    statistics = Statistics(torch.randn(layout.shape), torch.rand(layout.dim) + 0.5, torch.randn(layout.dim))
    clips, reference = torch.arange(CLIPS), Reference.of(theirs, statistics)
    asked = {given.target: stratified(layout, given.queries, draw)} if layout.grid and given.queries else None

    def update() -> None:
        Alignment(statistics, num_clips=1000).update(clips, ours, reference)

    def forward() -> None:
        with torch.inference_mode():
            converter(tokens)

    times = medians(
        {
            "training step": training_step(converter, tokens, precision="fp32", asked=asked),
            "forward, all tokens": forward,
            "the teacher's side of the metrics": lambda: Reference.of(theirs, statistics),
            "the metrics of one converter": update,
        },
        given.rounds,
    )
    epoch = TRAIN * times["training step"]
    print(f"{given.family} to {given.target}, {given.threads} threads, load {os.getloadavg()}")
    print("\n| | ms a clip | of a training epoch |\n|---|---|---|")
    for name, value in times.items():
        share = TEST * value / epoch if name != "training step" else 1.0
        print(f"| {name} | {value / CLIPS:.1f} | {share:.3f} |")


if __name__ == "__main__":
    main()
