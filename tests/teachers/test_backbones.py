"""Every registered backbone at its full geometry, with stand-in weights.

Here they only pass through their layers' shapes, on the meta device; order and position are proven in seconds on narrow
networks (test_hf_video, test_timm_frames). With `-m slow` the stand-ins themselves run.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch
from planted import brightest, plant

from teachers import BACKBONES, create_backbone
from teachers.backbone import Backbone
from teachers.torchvision_schemas import make_torchvision_importable

GEOMETRY = {
    "vjepa2": (16, 256, (8, 16, 16), 1024),
    "timm_frames": (8, 224, (8, 16, 16), 1024),
    "videomae": (16, 224, (8, 14, 14), 768),
    "timesformer": (16, 224, (16, 14, 14), 768),
    "vivit": (32, 224, None, 768),
    "pixels": (16, 224, (8, 14, 14), 96),
    "miniature_student": (8, 48, (2, 8, 8), 128),
    "miniature_masked": (8, 48, (2, 6, 6), 128),
    "miniature_motion": (16, 48, (4, 6, 6), 128),
    "miniature_frames": (8, 48, (8, 6, 6), 128),
    "miniature_pooled": (8, 48, None, 128),
}
CELL = (5, 2, 11)  # no two coordinates alike, so no two orders agree; narrow networks try every cell

backbone_of = cache(create_backbone)


@pytest.fixture(scope="module", autouse=True)
def quick_and_released() -> object:
    """transformers fills VideoMAE's table of positions in a Python loop, two seconds a time: once is enough."""
    make_torchvision_importable()
    from transformers.models.videomae import modeling_videomae

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            modeling_videomae, "get_sinusoid_encoding_table", cache(modeling_videomae.get_sinusoid_encoding_table)
        )
        yield
    backbone_of.cache_clear()


def test_every_backbone_is_tested() -> None:
    assert set(GEOMETRY) == set(BACKBONES)


@pytest.mark.parametrize("name", BACKBONES)
def test_contract(name: str) -> None:
    backbone = backbone_of(name)
    frames, pixels, grid, dim = GEOMETRY[name]
    assert (backbone.name, backbone.frames, backbone.pixels) == (name, frames, pixels)
    assert (backbone.layout.grid, backbone.layout.dim) == (grid, dim)
    assert shape_of_tokens(backbone) == (2, *backbone.layout.shape)
    assert not backbone.train().training and not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    origin = json.loads(json.dumps(backbone.origin))
    assert origin["function"] == BACKBONES[name] and origin["weights"] == (None if name == "pixels" else "standin")
    assert all(value is None or isinstance(value, str) for value in origin.values())


def shape_of_tokens(backbone: Backbone) -> tuple[int, ...]:
    """Of two clips, without computing them."""
    network = backbone.network
    tensors = {name: t.to("meta") for name, t in [*network.named_parameters(), *network.named_buffers()]}
    video = torch.empty(2, backbone.frames, 3, backbone.pixels, backbone.pixels, device="meta")
    return tuple(torch.func.functional_call(network, tensors, (video,)).shape)


@pytest.mark.parametrize("name", sorted(set(BACKBONES) - {"pixels"}))
def test_a_standin_is_a_function_of_its_seed_alone(name: str) -> None:
    first, before = backbone_of(name), torch.random.get_rng_state()
    again, other = create_backbone(name), create_backbone(name, options={"seed": 1})
    assert torch.equal(torch.random.get_rng_state(), before)
    states = [backbone.state_dict() for backbone in (first, again, other)]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])
    assert again.origin == first.origin != other.origin


def costly(name: str) -> Any:
    return pytest.param(name, marks=[] if name.startswith("miniature") else pytest.mark.slow)


@pytest.mark.parametrize("name", [costly(name) for name in BACKBONES if name != "pixels"])
def test_a_bright_cell_lights_its_token(name: str) -> None:
    frames, _, grid, _ = GEOMETRY[name]
    backbone = backbone_of(name)
    side = 6 if name.startswith("miniature") else 14
    planted = grid or (frames // 2, side, side)
    cell = tuple(place % side for place, side in zip(CELL, planted, strict=True))
    tokens = backbone(plant(backbone, planted, [cell]))
    assert tokens.isfinite().all() and tokens.dtype == torch.float32
    if grid is None:
        assert (tokens[1] - tokens[0]).norm() > 1e-4 * tokens[0].norm()  # one cell of 3136
    else:
        assert brightest(tokens, grid) == [cell]


def test_a_bright_cell_lights_its_pixels() -> None:
    backbone = backbone_of("pixels")
    assert brightest(backbone(plant(backbone, (8, 14, 14), [CELL])), (8, 14, 14)) == [CELL]
