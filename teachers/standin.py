"""Stand-ins: the real architectures at the real geometry, two layers deep, with seeded random weights.

They exist so that every part of the house runs without network or published weights. Their features mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

DEPTH = 2
CONFIGS: dict[str, dict[str, Any]] = {
    "vjepa2": {
        "crop_size": 256,
        "patch_size": 16,
        "tubelet_size": 2,
        "frames_per_clip": 64,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "num_hidden_layers": DEPTH,
        "pred_num_hidden_layers": 1,  # the predictor is never run
    },
    "videomae": {
        "image_size": 224,
        "patch_size": 16,
        "num_frames": 16,
        "tubelet_size": 2,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "num_hidden_layers": DEPTH,
        "use_mean_pooling": True,
    },
    "timesformer": {
        "image_size": 224,
        "patch_size": 16,
        "num_frames": 16,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "num_hidden_layers": DEPTH,
    },
    "vivit": {
        "image_size": 224,
        "num_frames": 32,
        "tubelet_size": [2, 16, 16],
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "num_hidden_layers": DEPTH,
    },
}
EMBEDDINGS = ("cls_token", "position_embeddings", "time_embeddings")
EMBEDDING_STD = 0.02

Model = TypeVar("Model", bound=nn.Module)


def build_seeded(build: Callable[[], Model], *, seed: int) -> Model:
    """Call `build` under a seed of its own; the global generators stay as they were.

    Some architectures start their embeddings of position and time at zero, to be learned. Left so, the network could
    not tell one place from another: they are drawn here, as published weights have them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        model = build()
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2] in EMBEDDINGS and not parameter.any():
                nn.init.normal_(parameter, std=EMBEDDING_STD)
    return model
