"""What a user would take instead of a family, each as a branch from student tokens (b s d) to target tokens (b q e).

All at 3-4 M parameters at full geometry (the perceiver at width 320 has 3.3), 256 latents where there are latents, and
no dropout. Packages are imported only where a peer of theirs is made: transformers and timm come with the extra
"train"; perceiver-pytorch is for the benchmark alone: pip install --no-deps --target DIR perceiver-pytorch, and DIR on
the path.
Axes: b clips, t frames, s student tokens, l latents, q target tokens, w width, h heads.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt

import torch
import torch.nn.functional as F
from skeletons import sines
from torch import Tensor, nn

from converters.converter import Converter
from converters.linear import LinearSkip
from converters.resample import Queries
from teachers.layout import TokenLayout
from teachers.torchvision_schemas import make_torchvision_importable

HEAD = 64  # channels
LATENTS = 256


class TransformersPerceiver(nn.Module):
    """transformers' PerceiverModel with its basic decoder and one trained query per target token."""

    def __init__(self, student: TokenLayout, target: TokenLayout, *, width: int = 320, latents: int = LATENTS) -> None:
        super().__init__()
        make_torchvision_importable()
        from transformers import PerceiverConfig, PerceiverModel
        from transformers.models.perceiver.modeling_perceiver import PerceiverBasicDecoder

        heads = heads_of(width)
        config = PerceiverConfig(
            num_latents=latents,
            d_latents=width,
            d_model=student.dim,
            num_blocks=1,
            num_self_attends_per_block=2,
            num_self_attention_heads=heads,
            num_cross_attention_heads=heads,
            cross_attention_shape_for_attention="q",  # "kv" would take the student's width for all heads
            attention_probs_dropout_prob=0.0,
        )
        decoder = PerceiverBasicDecoder(
            config,
            output_num_channels=target.dim,
            output_index_dims=target.num_tokens,
            num_channels=width,
            num_heads=heads,
            trainable_position_encoding_kwargs={"num_channels": width, "index_dims": target.num_tokens},
        )
        self.model = PerceiverModel(config, decoder=decoder)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(inputs=x).logits


class LucidrainsPerceiver(nn.Module):
    """perceiver-pytorch's PerceiverIO as it comes, one cross-attention head of 64 channels; places are added to the
    tokens, and queries start as places, or it could not tell one token from another."""

    def __init__(self, student: TokenLayout, target: TokenLayout, *, width: int = 320, latents: int = LATENTS) -> None:
        super().__init__()
        from perceiver_pytorch import PerceiverIO

        self.queries = nn.Parameter(padded_sines(target, width))
        self.register_buffer("places", padded_sines(student, student.dim))
        self.model = PerceiverIO(
            depth=1,
            dim=student.dim,
            queries_dim=width,
            logits_dim=target.dim,
            num_latents=latents,
            latent_dim=width,
            latent_heads=heads_of(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + self.places.to(x.dtype), queries=self.queries)


class TimmAttentionPool(nn.Module):
    """timm's AttentionPoolLatent with one latent per target token, between two projections."""

    def __init__(self, student: TokenLayout, target: TokenLayout, *, width: int = 384) -> None:
        super().__init__()
        make_torchvision_importable()
        from timm.layers import AttentionPoolLatent

        self.project = nn.Linear(student.dim, width)
        self.pool = AttentionPoolLatent(
            width, num_heads=heads_of(width), latent_len=target.num_tokens, pool_type="", norm_layer=nn.LayerNorm
        )
        self.out = nn.Linear(width, target.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.pool(self.project(x)))


class ConvolutionTranslator(nn.Module):
    """After Theia's light translator (Shang et al., Theia, 2024): on every frame's grid two 3 x 3 convolutions, each
    after a LayerNorm over channels and cells and followed by a ReLU, then a LayerNorm and a linear map.

    The first is unpadded, which makes 14 cells of 16, as theirs makes 16 of 14 by a transposed one. Frames map one to
    one; towards a finer time axis they are repeated.
    """

    def __init__(self, student: TokenLayout, target: TokenLayout, *, width: int = 256) -> None:
        super().__init__()
        assert student.grid is not None
        if target.grid is None or target.grid[1:] != (student.grid[1] - 2, student.grid[2] - 2):
            raise ValueError(
                f"the target is {target.describe()}; an unpadded 3 x 3 reaches a grid smaller by two cells"
            )
        if target.grid[0] % student.grid[0]:
            raise ValueError(f"the target has {target.grid[0]} frames, the student {student.grid[0]}; give a multiple")
        self.grid, self.repeats = student.grid, target.grid[0] // student.grid[0]
        rows, columns = target.grid[1:]
        self.convolve = nn.Sequential(
            nn.LayerNorm([student.dim, *student.grid[1:]]),
            nn.Conv2d(student.dim, width, 3),
            nn.ReLU(),
            nn.LayerNorm([width, rows, columns]),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.LayerNorm([width, rows, columns]),
        )
        self.out = nn.Linear(width, target.dim)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.unflatten(1, self.grid).flatten(0, 1).permute(0, 3, 1, 2)  # (b*t d y x)
        y = self.convolve(frames).flatten(2).transpose(1, 2)  # (b*t y*x w)
        y = self.out(y).unflatten(0, (len(x), -1))
        return y.repeat_interleave(self.repeats, dim=1).flatten(1, 2)


class FlamingoResampler(nn.Module):
    """After Flamingo's resampler (Alayrac et al., 2022, appendix A.1.1): one latent per target token; in every layer
    latents attend to the tokens and the latents together, then a perceptron of four widths; a norm at the end."""

    def __init__(self, student: TokenLayout, target: TokenLayout, *, width: int = 320, layers: int = 2) -> None:
        super().__init__()
        self.project = nn.Linear(student.dim, width)
        self.latents = nn.Parameter(0.02 * torch.randn(target.num_tokens, width))
        self.layers = nn.ModuleList(FlamingoLayer(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, target.dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        latents = self.latents.to(x.dtype).expand(len(x), -1, -1)
        for layer in self.layers:
            latents = layer(latents, x)
        return self.out(self.norm(latents))


class FlamingoLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = heads_of(width)
        self.latents_norm, self.tokens_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.keys_values = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width, bias=False),
            nn.GELU(),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, latents: Tensor, x: Tensor) -> Tensor:
        """latents (b l w), x (b s w) -> (b l w)."""
        asking = self.latents_norm(latents)
        k, v = self.keys_values(torch.cat([self.tokens_norm(x), asking], dim=1)).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query(asking), k, v))
        read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        latents = latents + self.out(read)
        return latents + self.mlp(latents)


PEERS: dict[str, Callable[..., nn.Module]] = {
    "transformers Perceiver": TransformersPerceiver,
    "perceiver-pytorch": LucidrainsPerceiver,
    "Theia-style convolution": ConvolutionTranslator,
    "timm AttentionPoolLatent": TimmAttentionPool,
    "Flamingo-style resampler": FlamingoResampler,
}


class Alone(nn.Module):
    """A peer as the branch of a converter to one target."""

    def __init__(self, name: str, peer: nn.Module) -> None:
        super().__init__()
        self.name, self.peer = name, peer

    def forward(self, x: Tensor, queries: dict[str, Queries]) -> dict[str, Tensor]:
        return {self.name: self.peer(x)}


def peer_converter(peer: nn.Module, *, student: TokenLayout, targets: dict[str, TokenLayout], skip: str) -> Converter:
    """A converter around a peer to one target. Its last layer is not zero: it starts beside its skip, not at it."""
    ((name, layout),) = targets.items()
    skips = {name: LinearSkip(student, layout)} if skip == "linear" else {}
    return Converter(student=student, targets=targets, family="peer", branch=Alone(name, peer), skips=skips)


def padded_sines(layout: TokenLayout, d: int) -> Tensor:
    """Sines of places (q d), the last channels 0 where 6 does not divide d."""
    return F.pad(sines(layout, d // 6 * 6), (0, d % 6))


def heads_of(width: int) -> int:
    """One per 64 channels; for the widths of tests, some that divide it."""
    return (
        width // HEAD
        if width >= HEAD and width % HEAD == 0
        else max(heads for heads in range(1, isqrt(width) + 1) if width % heads == 0)
    )
