"""What int8 costs on tokens like a video transformer's: bytes, relative error, worst channel, cosine.

    python tests/benchmarks/codec.py [--clips 8]

Tokens at full geometry: channels of very different sizes (log-normal), a few massive and far ones, near-dead ones, and
tokens whose size differs by a factor of three.
"""

from __future__ import annotations

import argparse

import torch

from shards.codec import CALIBRATION_CLIPS, Calibration, Int8
from shards.tensorfile import sizes
from teachers.layout import TokenLayout

LAYOUTS = {
    "student": TokenLayout((8, 16, 16), 1024),
    "videomae": TokenLayout((8, 14, 14), 768),
    "timesformer": TokenLayout((16, 14, 14), 768, special=("cls",)),
    "vivit": TokenLayout(None, 768),
}


def outlier_tokens(layout: TokenLayout, clip: int, *, channels: int = 7) -> torch.Tensor:
    """Tokens (q d) of one clip. channels: seed of what is the same in all clips, the channels' sizes and offsets."""
    shared, own = torch.Generator().manual_seed(channels), torch.Generator().manual_seed(1000 + clip)
    size = torch.randn(layout.dim, generator=shared).mul(0.7).exp()
    offset = torch.randn(layout.dim, generator=shared) * size
    size[:4] *= torch.tensor([100.0, 30.0, 1e-3, 1e-5])
    offset[4:6] += torch.tensor([500.0, -200.0])
    loud = torch.empty(layout.num_tokens, 1).uniform_(0.6, 1.8, generator=own)
    return offset + size * loud * torch.randn(layout.shape, generator=own)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--clips", type=int, default=8)
    arguments = parser.parse_args()
    total = 0
    for name, layout in LAYOUTS.items():
        train = [outlier_tokens(layout, clip) for clip in range(CALIBRATION_CLIPS)]
        codec = Int8(name, Calibration.fit(train, column=name))
        mean, deviation = codec.calibration.mean, codec.calibration.deviation
        held = torch.stack([outlier_tokens(layout, 10_000 + clip) for clip in range(arguments.clips)])
        true, stored = ((x - mean) / deviation for x in (held, codec.decode(codec.encode(held))))
        error = (stored - true).double().square().mean((0, 1)).sqrt()
        relative = float((stored - true).norm() / true.norm())
        cosine = float(torch.cosine_similarity(stored, true, dim=-1).double().mean())
        size = sum(sizes(codec.spec(layout.shape)).values())
        total += size
        worst = f"worst channel {float(error.max()):.3%} of its deviation"
        print(f"{name:12s} {size / 1e6:6.3f} MB  relative error {relative:.3%}  {worst}  cosine {cosine:.6f}")
    print(f"{'a clip':12s} {total / 1e6:6.3f} MB")


if __name__ == "__main__":
    main()
