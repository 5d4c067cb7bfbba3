"""How much of the bare forward rate precompute keeps: rendering, forward, encoding and writing shall overlap.

    python tests/benchmarks/precompute.py [--backbone videomae] [--clips 24] [--batch 1]

One process; the demo's videos; stand-in weights (their depth is two layers: a harder case than the published models,
whose forward takes longer and hides more).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from shards.decode import Refusal
from shards.extraction import extract
from shards.videos import find_clips
from shards.view import render_views
from teachers import create_backbone


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--backbone", default="videomae")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = create_backbone(arguments.backbone, weights="standin").to(device)
    request = (backbone.frames, backbone.pixels)
    with tempfile.TemporaryDirectory() as folder:
        clips = find_clips(source="demo", clips=arguments.clips, rendered_dir=Path(folder) / "demo").clips

        def render(clip):
            view, views, notes = render_views(clip, [request], clip_seconds=2.0)
            return {"view": asdict(view), "notes": notes}, views

        video = torch.stack([render(clips[0])[1][request]] * arguments.batch).to(device).float() / 255
        backbone(video)
        start = time.perf_counter()
        for _ in range(arguments.clips // arguments.batch):
            backbone(video).cpu()
        bare = time.perf_counter() - start
        start = time.perf_counter()
        extract(
            Path(folder) / "store",
            clips=clips,
            columns={"student": backbone},
            render=render,
            view={},
            refusal=Refusal,
            batch=arguments.batch,
            device=device,
            threads=arguments.threads,
        )
        whole = time.perf_counter() - start
    rates = f"bare forward {arguments.clips / bare:.2f} clips/s, precompute {arguments.clips / whole:.2f}"
    print(f"{rates}: {bare / whole:.2f}")


if __name__ == "__main__":
    main()
