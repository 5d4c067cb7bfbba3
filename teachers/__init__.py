"""Frozen video models under one interface: video in, tokens in canonical order out.

>>> from teachers import create_backbone
>>> student = create_backbone("vjepa2")          # weights="standin"; "pretrained", or a local folder
>>> student.layout.describe()
'8 x 16 x 16 = 2048 tokens of 1024'

Importing this package costs nothing: a backbone's module, and transformers or timm with it, is imported when the
backbone is created.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from teachers.backbone import Backbone

BACKBONES: dict[str, str] = {
    "vjepa2": "teachers.hf_video:vjepa2",
    "timm_frames": "teachers.timm_frames:timm_frames",
    "videomae": "teachers.hf_video:videomae",
    "timesformer": "teachers.hf_video:timesformer",
    "vivit": "teachers.hf_video:vivit",
    "pixels": "teachers.pixels:pixels",
    "miniature_student": "teachers.miniature:miniature_student",
    "miniature_masked": "teachers.miniature:miniature_masked",
    "miniature_motion": "teachers.miniature:miniature_motion",
    "miniature_frames": "teachers.miniature:miniature_frames",
    "miniature_pooled": "teachers.miniature:miniature_pooled",
}


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of the registered backbones that match a shell pattern, sorted."""
    return sorted(name for name in BACKBONES if fnmatchcase(name, pattern))


def backbone_options(name: str) -> list[str]:
    """What `options` of create_backbone may hold for this backbone. Imports neither transformers nor timm."""
    parameters = inspect.signature(_factory(name)).parameters.values()
    return sorted(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "special")


def create_backbone(
    name: str,
    *,
    weights: str = "standin",
    checkpoint: str | None = None,
    revision: str | None = None,
    licence: str | None = None,
    special: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    autocast: torch.dtype | None = None,
) -> Backbone:
    """A frozen backbone by name.

    weights: "standin" (the same architecture at the same geometry, two layers, seeded: machinery only),
        "pretrained" (published weights), "miniature" (of the miniature_ backbones: the learned weights that come with
        this package), or a local folder: one that `save_pretrained` or the training of a miniature wrote, or one that
        holds such a folder per backbone name.
    checkpoint, revision, licence: which published weights, at which commit, under which licence; the defaults
        stand beside each factory.
    special: tokens to emit after the grid, such as ("cls",) for timesformer.
    options: the factory's own keyword arguments, see backbone_options.
    autocast: torch.bfloat16 runs the network under autocast; None is fp32. Tokens are float32 either way.
    Raises ValueError on unknown names, and teachers.weights.WeightsNotFound on weights that cannot be had.
    """
    from teachers.weights import WeightSource

    factory = _factory(name)
    given, known = dict(options or {}), backbone_options(name)
    for option in given:
        if option not in known:
            raise ValueError(f'{name} has no option "{option}"; its options are {known}{_nearest(option, known)}')
    source = WeightSource(weights=weights, checkpoint=checkpoint, revision=revision, licence=licence)
    backbone = factory(source, special=tuple(special), **given)
    backbone.autocast = autocast
    return backbone


def _factory(name: str) -> Callable[..., Backbone]:
    if name not in BACKBONES:
        raise ValueError(f'no backbone "{name}"; there are {list_backbones()}{_nearest(name, list(BACKBONES))}')
    module, _, function = BACKBONES[name].partition(":")
    return getattr(import_module(module), function)


def _nearest(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""
