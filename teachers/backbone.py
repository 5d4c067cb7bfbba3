"""Backbone: the frozen wrapper around every video model.

Axes: b clips, t h w token grid, d width of a token; a video is (b, frames, 3, height, width).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from teachers.layout import TokenLayout


class Backbone(nn.Module):
    """A frozen video model: always in eval mode, without gradients, tokens in canonical order.

    network: takes the normalised video and returns tokens (b, tokens, dim) as the layout says: first the grid in
        (t h w) order, then the special tokens.
    frames, pixels: the input is frames x pixels x pixels.
    mean, std: per colour channel, subtracted and divided by, on values in [0, 1].
    origin: what identifies the function that this backbone computes. JSON-able, and the same on every machine:
        function, weights, checkpoint, revision, licence, options (JSON), note.
    autocast: None runs in fp32, torch.bfloat16 under torch.autocast.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        layout: TokenLayout,
        frames: int,
        pixels: int,
        mean: Sequence[float],
        std: Sequence[float],
        origin: dict[str, str | None],
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.layout = layout
        self.frames = frames
        self.pixels = pixels
        self.origin = origin
        self.autocast = autocast
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Stays in eval mode: a backbone is frozen, also inside a model that trains."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, video: Tensor) -> Tensor:
        """video (b, frames, 3, pixels, pixels), float in [0, 1] -> tokens (b, tokens, dim) float32."""
        self._check_video(video)
        normalised = (video.float() - self.mean) / self.std
        with torch.autocast(video.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            tokens = self.network(normalised)
        expected = (len(video), *self.layout.shape)
        if tuple(tokens.shape) != expected:
            raise ValueError(
                f"{self.name}: the network gave tokens {tuple(tokens.shape)} where its layout says {expected} "
                f"({self.layout.describe()}); the layout that its factory derived from the configuration is wrong"
            )
        return tokens.float()

    def _check_video(self, video: Tensor) -> None:
        expected = (self.frames, 3, self.pixels, self.pixels)
        if video.ndim != 5 or tuple(video.shape[1:]) != expected:
            raise ValueError(
                f"{self.name}: video is {tuple(video.shape)} but it takes (b, {', '.join(map(str, expected))}), "
                f"axes (b, frames, colour, height, width); render the view at {self.frames} x {self.pixels} pixels"
            )
        if not video.is_floating_point():
            raise ValueError(f"{self.name}: video is {video.dtype} but must be float in [0, 1]; divide uint8 by 255")
        low, high = (bound.item() for bound in video.aminmax()) if video.numel() else (0.0, 1.0)
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise ValueError(
                f"{self.name}: video spans [{low:g}, {high:g}] but must lie in [0, 1]; divide bytes by 255, and "
                "leave mean and deviation to the backbone"
            )
