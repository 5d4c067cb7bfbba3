"""Every registered backbone at its full geometry, with stand-in weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from planted import brightest, plant
from torch import Tensor

from teachers import BACKBONES, create_backbone
from teachers.backbone import Backbone

GEOMETRY = {
    "vjepa2": (16, 256, (8, 16, 16), 1024),
    "timm_frames": (8, 224, (8, 16, 16), 1024),
    "videomae": (16, 224, (8, 14, 14), 768),
    "timesformer": (16, 224, (16, 14, 14), 768),
    "vivit": (32, 224, None, 768),
    "pixels": (16, 224, (8, 14, 14), 96),
}
CELL = (5, 2, 11)  # no two coordinates alike, so no two orders agree; tiny networks try every cell


@dataclass(frozen=True)
class Seen:
    backbone: Backbone
    tokens: Tensor


@cache
def seen(name: str) -> Seen:
    """The backbone with its tokens of two clips, computed once for all tests."""
    backbone = create_backbone(name)
    return Seen(backbone, backbone(plant(backbone, GEOMETRY[name][2] or (16, 14, 14), [CELL])))


@pytest.fixture(scope="module", autouse=True)
def release() -> object:
    yield
    seen.cache_clear()


def test_every_backbone_is_tested() -> None:
    assert set(GEOMETRY) == set(BACKBONES)


@pytest.mark.parametrize("name", BACKBONES)
def test_contract(name: str) -> None:
    backbone, tokens = seen(name).backbone, seen(name).tokens
    frames, pixels, grid, dim = GEOMETRY[name]
    assert (backbone.name, backbone.frames, backbone.pixels) == (name, frames, pixels)
    assert (backbone.layout.grid, backbone.layout.dim) == (grid, dim)
    assert tokens.shape == (2, *backbone.layout.shape) and tokens.dtype == torch.float32
    assert tokens.isfinite().all() and not tokens.requires_grad
    assert not backbone.train().training and not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    origin = json.loads(json.dumps(backbone.origin))
    assert origin["function"] == BACKBONES[name] and origin["weights"] == (None if name == "pixels" else "standin")
    assert all(value is None or isinstance(value, str) for value in origin.values())


@pytest.mark.parametrize("name", sorted(set(BACKBONES) - {"vivit"}))
def test_a_bright_cell_lights_its_token(name: str) -> None:
    grid = GEOMETRY[name][2]
    assert grid is not None
    assert brightest(seen(name).tokens, grid) == [CELL]


@pytest.mark.parametrize("name", sorted(set(BACKBONES) - {"pixels"}))
def test_a_standin_is_a_function_of_its_seed_alone(name: str) -> None:
    before = torch.random.get_rng_state()
    again, other = create_backbone(name), create_backbone(name, options={"seed": 1})
    assert torch.equal(torch.random.get_rng_state(), before)
    first, second, third = (b.state_dict() for b in (seen(name).backbone, again, other))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], third[key]) for key in first)
    assert again.origin == seen(name).backbone.origin != other.origin


def test_a_pooled_standin_answers_to_what_it_sees() -> None:
    tokens = seen("vivit").tokens
    assert (tokens[1] - tokens[0]).norm() > 1e-4 * tokens[0].norm()  # one cell of 3136
