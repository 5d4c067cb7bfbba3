"""The frozen wrapper: what it checks, and how it runs its network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from teachers.backbone import Backbone
from teachers.layout import TokenLayout


class Probe(nn.Module):
    """Keeps its input, multiplies matrices so that autocast shows, gives `tokens` tokens of 2."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(2))
        self.tokens = tokens
        self.dtype: torch.dtype | None = None
        self.video = torch.empty(0)

    def forward(self, video: Tensor) -> Tensor:
        self.video = video
        result = torch.ones(len(video), self.tokens, 2) @ self.weight
        self.dtype = result.dtype
        return result


def backbone(tokens: int = 4, **changes: object) -> Backbone:
    arguments = {"frames": 2, "pixels": 8, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 1.0), **changes}
    layout = TokenLayout(grid=(1, 2, 2), dim=2)
    return Backbone(Probe(tokens), name="probe", layout=layout, origin={}, **arguments)  # type: ignore[arg-type]


def test_mean_and_deviation_are_applied_per_colour() -> None:
    wrapped = backbone()
    wrapped(torch.full((1, 2, 3, 8, 8), 0.6))
    probe: Any = wrapped.network
    seen = probe.video[0, 0, :, 0, 0]
    assert torch.allclose(seen, torch.tensor([1.0, 1.6, 0.3]), atol=1e-6)


def test_precision_is_the_backbones_own() -> None:
    video = torch.rand(1, 2, 3, 8, 8)
    half, full = backbone(autocast=torch.bfloat16), backbone()
    assert half(video).dtype == torch.float32 and half.network.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):  # someone else's
        assert full(video).dtype == torch.float32 and full.network.dtype == torch.float32


def test_no_gradient_reaches_the_video() -> None:
    assert not backbone()(torch.rand(1, 2, 3, 8, 8).requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.rand(1, 3, 2, 8, 8), r"probe: video is \(1, 3, 2, 8, 8\) but it takes \(b, 2, 3, 8, 8\)"),
        (torch.rand(2, 3, 8, 8), r"video is \(2, 3, 8, 8\)"),
        (torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8), "video is torch.uint8 but must be float"),
        (torch.full((1, 2, 3, 8, 8), 255.0), r"video spans \[255, 255\]"),
        (torch.full((1, 2, 3, 8, 8), -0.5), r"video spans \[-0.5, -0.5\]"),
        (torch.full((1, 2, 3, 8, 8), torch.nan), r"video spans \[nan, nan\]"),
    ],
)
def test_wrong_videos_are_refused(video: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbone()(video)


def test_a_network_that_breaks_its_layout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tokens \(1, 5, 2\) where its layout says \(1, 4, 2\)"):
        backbone(tokens=5)(torch.rand(1, 2, 3, 8, 8))
