"""The transformers backbones on tiny networks of the same classes: order, position, what is read, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted import brightest, plant
from tiny import TINY, build_tiny
from torch import Tensor

from teachers import create_backbone

TIME = "embeddings.time_embeddings"
OPTIONS: dict[str, dict[str, Any]] = {
    "vjepa2": {"frames": 8},
    "timesformer": {"frames": 8},
    "videomae": {},
    "vivit": {"pooled": False},
}


def own_answer(name: str, model: Any, video: Tensor, backbone: Any) -> Tensor:
    """What transformers says itself, reordered by hand."""
    normalised = (video - backbone.mean) / backbone.std
    with torch.no_grad():
        if name == "vjepa2":
            return model.get_vision_features(normalised)
        sequence = model(normalised).last_hidden_state
    if name == "timesformer":
        t, h, w = backbone.layout.grid
        return sequence[:, 1:].reshape(-1, h, w, t, 48).permute(0, 3, 1, 2, 4).flatten(1, 3)
    return sequence[:, 1:] if name == "vivit" else sequence


@pytest.mark.parametrize("name", TINY)
def test_every_cell_lights_its_token(name: str, tiny: Any) -> None:
    backbone = create_backbone(name, weights=str(tiny(name)[1]), options=OPTIONS[name])
    grid = backbone.layout.grid
    assert grid == (8 if name == "timesformer" else 4, 4, 4)
    cells = [(t, y, x) for t in range(grid[0]) for y in range(4) for x in range(4)]
    assert brightest(backbone(plant(backbone, grid, cells)), grid) == cells


@pytest.mark.parametrize(
    ("name", "size", "options", "grid"),
    [
        ("vjepa2", {"crop_size": 256}, {}, (8, 16, 16)),
        ("videomae", {"image_size": 224, "num_frames": 16}, {}, (8, 14, 14)),
        ("timesformer", {"image_size": 224, "num_frames": 16}, {}, (16, 14, 14)),
        ("vivit", {"image_size": 224, "num_frames": 32}, {"pooled": False}, (16, 14, 14)),
    ],
)
def test_a_bright_cell_lights_its_token_at_full_geometry(
    name: str, size: dict[str, int], options: dict[str, Any], grid: tuple[int, int, int], tiny: Any
) -> None:
    backbone = create_backbone(name, weights=str(tiny(name, **size)[1]), options=options)
    assert backbone.layout.grid == grid
    assert brightest(backbone(plant(backbone, grid, [(5, 2, 11)])), grid) == [(5, 2, 11)]


@pytest.mark.parametrize("name", TINY)
def test_a_saved_folder_equals_the_model_in_memory(name: str, tiny: Any) -> None:
    model, folder = tiny(name)
    backbone = create_backbone(name, weights=str(folder), options=OPTIONS[name])
    video = torch.rand(2, backbone.frames, 3, 64, 64)
    assert torch.equal(backbone(video), own_answer(name, model, video, backbone))


@pytest.mark.parametrize("name", TINY)
def test_bf16_is_close_to_fp32(name: str, tiny: Any) -> None:
    folder = str(tiny(name)[1])
    full = create_backbone(name, weights=folder, options=OPTIONS[name])
    half = create_backbone(name, weights=folder, options=OPTIONS[name], autocast=torch.bfloat16)
    video = torch.rand(2, full.frames, 3, 64, 64)
    exact, close = full(video), half(video)
    assert not torch.equal(exact, close)
    assert (exact - close).pow(2).mean() < 1e-3 * exact.var()


def test_timesformer_appends_its_cls(tiny: Any) -> None:
    model, folder = tiny("timesformer")
    plain = create_backbone("timesformer", weights=str(folder), options={"frames": 8})
    both = create_backbone("timesformer", weights=str(folder), special=("cls",), options={"frames": 8})
    assert both.layout.special == ("cls",) and both.layout.num_tokens == 8 * 4 * 4 + 1
    video = torch.rand(1, 8, 3, 64, 64)
    tokens = both(video)
    assert torch.equal(tokens[:, :-1], plain(video))
    with torch.no_grad():
        assert torch.equal(tokens[:, -1], model((video - both.mean) / both.std).last_hidden_state[:, 0])


def test_timesformer_of_8_frames_runs_on_16(tiny: Any) -> None:
    model, folder = tiny("timesformer")
    backbone = create_backbone("timesformer", weights=str(folder))
    assert backbone.layout.grid == (16, 4, 4)
    assert backbone.origin["note"] == "built for 8 frames; its time embeddings are resized to 16 (nearest)"
    native = create_backbone("timesformer", weights=str(folder), options={"frames": 8})
    assert native.origin["note"] == "time embeddings of 8 frames, as built"
    built = build_tiny("timesformer", num_frames=16)
    state = model.state_dict()
    state[TIME] = state[TIME].repeat_interleave(2, dim=1)
    built.load_state_dict(state)
    video = torch.rand(1, 16, 3, 64, 64)
    assert torch.equal(backbone(video), own_answer("timesformer", built, video, backbone))


@pytest.mark.parametrize("name", ["timesformer", "vivit"])
def test_an_untrained_network_knows_places(name: str, tiny: Any) -> None:
    """transformers starts these embeddings at zero, and a grey video would give one token many times."""
    backbone = create_backbone(name, weights=str(tiny(name)[1]), options=OPTIONS[name])
    tokens = backbone(torch.full((1, 8, 3, 64, 64), 0.4))[0]
    distances = torch.cdist(tokens, tokens) + torch.eye(len(tokens)) * 1e9
    assert distances.min() > 0.01 * tokens.norm(dim=-1).mean()


@pytest.mark.parametrize("use_mean_pooling", [True, False])
def test_videomae_gives_the_stream_before_any_norm(use_mean_pooling: bool, tiny: Any) -> None:
    model, folder = tiny("videomae", use_mean_pooling=use_mean_pooling)
    assert (model.layernorm is None) == use_mean_pooling
    backbone = create_backbone("videomae", weights=str(folder))
    video = torch.rand(1, 8, 3, 64, 64)
    with torch.no_grad():
        embedded = model.embeddings((video - backbone.mean) / backbone.std, None)
        stream = model.encoder(embedded).last_hidden_state
    assert torch.equal(backbone(video), stream)
    assert (stream.var(-1) - 1).abs().max() > 0.05  # a LayerNorm would have made it 1


def test_vivit_is_its_cls(tiny: Any) -> None:
    model, folder = tiny("vivit")
    pooled = create_backbone("vivit", weights=str(folder))
    assert pooled.layout.pooled and pooled.layout.shape == (1, 48)
    whole = create_backbone("vivit", weights=str(folder), special=("cls",), options={"pooled": False})
    video = torch.rand(2, 8, 3, 64, 64)
    with torch.no_grad():
        expected = model((video - pooled.mean) / pooled.std).last_hidden_state[:, :1]
    assert torch.equal(pooled(video), expected) and torch.equal(whole(video)[:, -1:], expected)


def test_geometry_follows_the_checkpoint(tiny: Any) -> None:
    folder = tiny("videomae", hidden_size=64, image_size=96, num_frames=4, tubelet_size=4)[1]
    backbone = create_backbone("videomae", weights=str(folder))
    assert (backbone.frames, backbone.pixels, backbone.layout.grid, backbone.layout.dim) == (4, 96, (1, 6, 6), 64)
    assert create_backbone("vjepa2", weights=str(tiny("vjepa2")[1])).layout.grid == (8, 4, 4)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("videomae", {"special": ("cls",)}, r"videomae cannot emit the special tokens \['cls'\]; it can emit \[\]"),
        ("vivit", {"special": ("cls",)}, "vivit cannot emit"),
        ("timesformer", {"special": ("clss",)}, r"\['clss'\]; it can emit \['cls'\]"),
        ("vjepa2", {"options": {"frames": 7}}, "vjepa2: 7 frames do not divide into tubelets of 2"),
    ],
)
def test_what_a_backbone_cannot_do_is_refused(name: str, arguments: Any, message: str, tiny: Any) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone(name, weights=str(tiny(name)[1]), **arguments)


def test_checkpoints_of_no_use_are_refused(tiny: Any) -> None:
    with pytest.raises(ValueError, match="space_only"):
        create_backbone("timesformer", weights=str(tiny("timesformer", attention_type="space_only")[1]))
    with pytest.raises(ValueError, match=r"videomae: its image is \[64, 96\] pixels"):
        create_backbone("videomae", weights=str(tiny("videomae", image_size=[64, 96])[1]))
