"""Tiny networks of the real classes."""

from __future__ import annotations

from typing import Any

from teachers.standin import build_seeded
from teachers.torchvision_schemas import make_torchvision_importable

SIZES = {"hidden_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
VIT = {**SIZES, "image_size": 64, "num_frames": 8, "intermediate_size": 96}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "vjepa2": (
        "VJEPA2Model",
        {**SIZES, "crop_size": 64, "pred_hidden_size": 48, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1},
    ),
    "videomae": ("VideoMAEModel", {**VIT, "use_mean_pooling": True}),
    "timesformer": ("TimesformerModel", VIT),
    "vivit": ("VivitModel", {**VIT, "tubelet_size": [2, 16, 16]}),
}


def build_tiny(name: str, **changes: Any) -> Any:
    make_torchvision_importable()
    import transformers

    model, config = TINY[name]
    model_class = getattr(transformers, model)
    return build_seeded(lambda: model_class(model_class.config_class(**{**config, **changes})), seed=1).eval()
