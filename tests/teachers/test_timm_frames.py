"""Per-frame ViTs of timm, on a tiny architecture."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import brightest, plant

from teachers import create_backbone

SMALL: dict[str, Any] = {"model": "vit_tiny_patch16_224", "frames": 3, "pixels": 64}


def test_every_cell_lights_its_token() -> None:
    backbone = create_backbone("timm_frames", options=SMALL)
    cells = list(product(range(3), range(4), range(4)))
    assert backbone.layout.grid == (3, 4, 4) and backbone.layout.dim == 192
    assert brightest(backbone(plant(backbone, (3, 4, 4), cells)), (3, 4, 4)) == cells


def test_prefix_tokens_are_dropped() -> None:
    backbone = create_backbone("timm_frames", options={**SMALL, "model": "vit_small_patch14_reg4_dinov2", "pixels": 56})
    model: Any = backbone.network.model
    assert model.num_prefix_tokens == 5 and backbone.layout.grid == (3, 4, 4)
    video = torch.rand(1, 3, 3, 56, 56)
    with torch.no_grad():
        frame = model.forward_features(((video - backbone.mean) / backbone.std)[:, 1])
    assert torch.allclose(backbone(video)[:, 16:32], frame[:, 5:], atol=1e-5)


def test_a_saved_folder_equals_the_model_in_memory(tmp_path: Path) -> None:
    first = create_backbone("timm_frames", options=SMALL)
    from timm.models import save_for_hf

    model: Any = first.network.model
    save_for_hf(model, str(tmp_path), model_args={"depth": 2}, safe_serialization=True)
    before = torch.random.get_rng_state()
    second = create_backbone("timm_frames", weights=str(tmp_path), options={"frames": 3, "pixels": 64})
    assert torch.equal(torch.random.get_rng_state(), before)
    video = torch.rand(1, 3, 3, 64, 64)
    assert torch.equal(first(video), second(video))
    assert str(second.origin["weights"]).startswith("local:")


def test_a_folder_of_another_architecture_is_refused(tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("test_resnet", num_classes=0), str(tmp_path), safe_serialization=True)
    with pytest.raises(ValueError, match='model "test_resnet" is not one of'):
        create_backbone("timm_frames", weights=str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"options": {**SMALL, "model": "vit_tinny_patch16_224"}},
            r'"vit_tinny_patch16_224" is not .*did you mean "vit_t',
        ),
        ({"options": {**SMALL, "model": "resnet18"}}, '"resnet18" is not one of'),
        ({"options": {**SMALL, "pixels": 60}}, "pixels 60, which must be a multiple of the patch, 16"),
        ({"options": {**SMALL, "frames": 0}}, "frames is 0"),
        ({"special": ("cls",)}, r"special tokens \['cls'\]"),
    ],
)
def test_what_it_cannot_do_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone("timm_frames", **arguments)
