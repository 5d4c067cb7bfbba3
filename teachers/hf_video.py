"""VideoMAE, TimeSformer, ViViT and V-JEPA 2 from transformers.

Geometry is read from the model's configuration, so a checkpoint of another size is a matter of a recipe, not of code.

Axes: b clips, t h w token grid, d width of a token; a video is (b, frames, 3, height, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from teachers.backbone import Backbone
from teachers.hf_model import HALF, IMAGENET, Family, Loaded, load
from teachers.layout import TokenLayout
from teachers.weights import Published, WeightSource, origin

VJEPA2 = Family(
    name="vjepa2",
    model="VJEPA2Model",
    order="t h w",
    cls=False,
    published=Published("facebook/vjepa2-vitl-fpc64-256", "b3c1679b7c34d3255ef3547f27c7b226aefab26f", "MIT"),
    normalisation=IMAGENET,
    call={"skip_predictor": True},
    idle=("predictor.",),
)
VIDEOMAE = Family(
    name="videomae",
    model="VideoMAEModel",
    order="t h w",
    cls=False,
    published=Published("MCG-NJU/videomae-base", "dc740ceda42fce44faed2ea03c6d447db72f6af9", "CC-BY-NC-4.0"),
    normalisation=IMAGENET,
    idle=("layernorm.",),
)
TIMESFORMER = Family(
    name="timesformer",
    model="TimesformerModel",
    order="h w t",
    cls=True,
    published=Published(
        "facebook/timesformer-base-finetuned-k400", "8aaf40ea7d3d282dcb0a5dea01a198320d15d6c0", "CC-BY-NC-4.0"
    ),
    normalisation=((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
)
VIVIT = Family(
    name="vivit",
    model="VivitModel",
    order="t h w",
    cls=True,
    published=Published("google/vivit-b-16x2-kinetics400", "8a7171a57f79b9aaa58bc8d977c002a0ea0f0d42", "MIT"),
    normalisation=HALF,
    build={"add_pooling_layer": False},
)


def vjepa2(source: WeightSource, *, special: tuple[str, ...] = (), frames: int = 16, seed: int = 0) -> Backbone:
    """V-JEPA 2's encoder: 16 x 256 pixels -> (8 16 16) tokens of 1024 for ViT-L. Positions are rotary."""
    loaded = load(VJEPA2, source, seed=seed)
    config = loaded.model.config
    patch = (config.tubelet_size, config.patch_size)
    return wrap(VJEPA2, loaded, frames=frames, pixels=config.crop_size, patch=patch, special=special)


def videomae(source: WeightSource, *, special: tuple[str, ...] = (), seed: int = 0) -> Backbone:
    """VideoMAE's encoder: 16 x 224 pixels -> (8 14 14) tokens of 768 for ViT-B.

    The stream before any final norm, whatever the configuration says: the published head takes its mean and only
    then normalises.
    """
    loaded = load(VIDEOMAE, source, seed=seed)
    loaded.model.layernorm = None
    config = loaded.model.config
    patch = (config.tubelet_size, config.patch_size)
    return wrap(
        VIDEOMAE,
        loaded,
        frames=config.num_frames,
        pixels=config.image_size,
        patch=patch,
        special=special,
        note="stream before the final norm",
    )


def timesformer(source: WeightSource, *, special: tuple[str, ...] = (), frames: int = 16, seed: int = 0) -> Backbone:
    """TimeSformer: 16 x 224 pixels -> (16 14 14) tokens of 768 for the base model; special=("cls",) appends its CLS.

    No 16-frame checkpoint at 224 pixels is published: the time embeddings of the 8-frame one are resized to
    `frames`, and the backbone's origin says so.
    """
    loaded = load(TIMESFORMER, source, seed=seed, standin={"num_frames": frames})
    config = loaded.model.config
    if config.attention_type == "space_only":
        raise ValueError(
            'timesformer: attention_type is "space_only", which knows no time; take a checkpoint with '
            '"divided_space_time" or "joint_space_time"'
        )
    note = resize_time(loaded.model, frames=frames)
    patch = (1, config.patch_size)
    return wrap(TIMESFORMER, loaded, frames=frames, pixels=config.image_size, patch=patch, special=special, note=note)


def vivit(source: WeightSource, *, special: tuple[str, ...] = (), pooled: bool = True, seed: int = 0) -> Backbone:
    """ViViT: 32 x 224 pixels -> its CLS alone, one token of 768 for the base model, which is what its head reads.

    pooled=False gives its whole sequence instead, (16 14 14) tokens; special=("cls",) then appends the CLS.
    """
    loaded = load(VIVIT, source, seed=seed)
    config = loaded.model.config
    depth, *side = config.tubelet_size
    return wrap(
        VIVIT,
        loaded,
        frames=config.num_frames,
        pixels=config.image_size,
        patch=(depth, side),
        special=special,
        pooled=pooled,
    )


class CanonicalTokens(nn.Module):
    """What a model emits -> the grid in (t h w) order, then the special tokens; or the CLS alone when pooled."""

    def __init__(self, model: nn.Module, *, family: Family, layout: TokenLayout, grid: tuple[int, int, int]) -> None:
        super().__init__()
        self.model, self.family, self.layout, self.grid = model, family, layout, grid

    def forward(self, video: Tensor) -> Tensor:
        sequence = self.model(video, **self.family.call).last_hidden_state
        cls, patches = sequence.tensor_split([int(self.family.cls)], dim=1)
        if self.layout.pooled:
            return cls
        t, h, w = self.grid
        tokens = rearrange(patches, f"b ({self.family.order}) d -> b (t h w) d", t=t, h=h, w=w)
        return torch.cat([tokens, cls], dim=1) if self.layout.special else tokens


def wrap(
    family: Family,
    loaded: Loaded,
    *,
    frames: int,
    pixels: int | Sequence[int],
    patch: tuple[int, int | Sequence[int]],
    special: tuple[str, ...],
    pooled: bool = False,
    note: str | None = None,
) -> Backbone:
    """A loaded model as a Backbone; its layout follows from the sizes of input and patch (frames, pixels)."""
    depth, patch_side, side = patch[0], square(family, "patch", patch[1]), square(family, "image", pixels)
    if frames < 1 or frames % depth:
        raise ValueError(
            f"{family.name}: {frames} frames do not divide into tubelets of {depth}; set frames to a multiple of it"
        )
    available = ["cls"] if family.cls and not pooled else []
    if not set(special) <= set(available):
        raise ValueError(f"{family.name} cannot emit the special tokens {list(special)}; it can emit {available}")
    grid = (frames // depth, side // patch_side, side // patch_side)
    layout = TokenLayout(grid=None if pooled else grid, dim=loaded.model.config.hidden_size, special=special)
    mean, std = loaded.normalisation
    return Backbone(
        CanonicalTokens(loaded.model, family=family, layout=layout, grid=grid),
        name=family.name,
        layout=layout,
        frames=frames,
        pixels=side,
        mean=mean,
        std=std,
        origin=origin(
            f"teachers.hf_video:{family.name}",
            weights=loaded.weights,
            published=loaded.published,
            options={**loaded.options, "frames": frames, "pooled": pooled},
            note=note,
        ),
    )


def square(family: Family, what: str, size: int | Sequence[int]) -> int:
    """The side of a square given as one number or as (height, width)."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"{family.name}: its {what} is {size} pixels, but views are square; take a square checkpoint")
    return sides.pop()


def resize_time(model: Any, *, frames: int) -> str:
    """Give a TimeSformer `frames` frames, in place; says what was done.

    Its blocks divide their sequence by config.num_frames, so the configuration has to follow. The nearest embedding
    is repeated, as the authors' code does.
    """
    embeddings = model.embeddings
    built = embeddings.time_embeddings.shape[1]
    model.config.num_frames = frames
    if built == frames:
        return f"time embeddings of {frames} frames, as built"
    resized = functional.interpolate(embeddings.time_embeddings.detach().mT, size=frames, mode="nearest").mT
    embeddings.time_embeddings = nn.Parameter(resized.contiguous())
    return f"built for {built} frames; its time embeddings are resized to {frames} (nearest)"
