"""Any ViT of timm, run on every frame by itself.

Axes: b clips, t h w token grid, p prefix tokens, d width of a token; a video is (b, frames, 3, height, width).
"""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from teachers.backbone import Backbone
from teachers.layout import TokenLayout
from teachers.standin import DEPTH, build_seeded
from teachers.torchvision_schemas import make_torchvision_importable
from teachers.weights import (
    PRETRAINED,
    STANDIN,
    Published,
    WeightSource,
    digest_of_weights,
    network_errors,
    origin,
    unavailable,
)

MODULES = ("vision_transformer", "eva")  # timm's files of ViTs whose tokens are prefix + grid
PUBLISHED = Published("timm/vit_large_patch14_dinov2.lvd142m", None, "Apache-2.0")


def timm_frames(
    source: WeightSource,
    *,
    special: tuple[str, ...] = (),
    model: str = "vit_large_patch14_dinov2",
    frames: int = 8,
    pixels: int = 224,
    seed: int = 0,
) -> Backbone:
    """Per-frame ViT: 8 x 224 pixels -> (8 16 16) tokens of 1024 for ViT-L/14.

    Prefix tokens (CLS, registers) are dropped.
    model: timm's name of the architecture that a stand-in imitates; published and local weights bring their own.
    Positions are resized where the checkpoint was made for other pixels.
    """
    if special:
        raise ValueError(
            f"timm_frames cannot emit the special tokens {list(special)}: its prefix tokens belong to single frames; "
            "leave special empty"
        )
    with torch.random.fork_rng(devices=[]):  # timm draws random weights before it loads others
        network, weights, published = load(source, model=model, pixels=pixels, seed=seed)
    patch = network.patch_embed.patch_size[0]
    if frames < 1 or pixels % patch:
        raise ValueError(
            f"timm_frames: frames is {frames}, which must be positive, and pixels {pixels}, which must be a multiple "
            f"of the patch, {patch}"
        )
    grid = (frames, *network.patch_embed.grid_size)
    options = {"frames": frames, "pixels": pixels, **({"model": model, "seed": seed} if source.standin else {})}
    return Backbone(
        PerFrame(network, grid=grid),
        name="timm_frames",
        layout=TokenLayout(grid=grid, dim=network.embed_dim),
        frames=frames,
        pixels=pixels,
        mean=network.pretrained_cfg["mean"],
        std=network.pretrained_cfg["std"],
        origin=origin("teachers.timm_frames:timm_frames", weights=weights, published=published, options=options),
    )


class PerFrame(nn.Module):
    """video (b, t, 3, height, width) -> (b, (t h w), d), one frame at a time."""

    def __init__(self, model: Any, *, grid: tuple[int, int, int]) -> None:
        super().__init__()
        self.model, self.grid = model, grid

    def forward(self, video: Tensor) -> Tensor:
        t, h, w = self.grid
        sequence = self.model.forward_features(rearrange(video, "b t c y x -> (b t) c y x"))
        patches = sequence[:, self.model.num_prefix_tokens :]
        return rearrange(patches, "(b t) (h w) d -> b (t h w) d", t=t, h=h, w=w)


def load(source: WeightSource, *, model: str, pixels: int, seed: int) -> tuple[Any, str, Published | None]:
    """(model, weights, published) as `source` asks for. Raises WeightsNotFound."""
    make_torchvision_importable()
    import timm

    shape: dict[str, Any] = {"img_size": pixels, "num_classes": 0}
    if source.standin:
        architecture = check_architecture(model)
        # No layer scale: it starts at 1e-5 in some architectures and would silence the untrained blocks.
        network = build_seeded(
            lambda: timm.create_model(architecture, depth=DEPTH, init_values=None, **shape), seed=seed
        )
        return network, STANDIN, None
    if source.pretrained:
        published = source.published(PUBLISHED)
        address = f"{published.checkpoint}@{published.revision}" if published.revision else published.checkpoint
        try:
            return timm.create_model(f"hf-hub:{address}", pretrained=True, **shape), PRETRAINED, published
        except network_errors() as error:
            raise unavailable("timm_frames", published, error) from error
    folder = source.folder("timm_frames")
    check_architecture(str(json.loads((folder / "config.json").read_text()).get("architecture")))
    weights = f"local:{digest_of_weights(folder)}"
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **shape), weights, source.declared(PUBLISHED)


def check_architecture(model: str) -> str:
    """timm's name without the tag of its weights. Raises ValueError unless it is one of timm's plain ViTs."""
    import timm

    architecture = model.partition(".")[0]
    if not timm.models.is_model_in_modules(architecture, MODULES):
        close = get_close_matches(architecture, timm.list_models("vit*"), n=1)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        raise ValueError(f'timm_frames: model "{model}" is not one of timm\'s plain ViTs{hint}')
    return architecture
