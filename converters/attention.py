"""Attention over tokens, and the blocks made of it.

Axes: b clips, q asking tokens, m tokens of a memory, w width, h heads, c channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converters.precision import without_autocast

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Watch = Callable[[Tensor], object]
ROWS = 64  # asking tokens that a watch is shown


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(c) + bias) v for (b h q c), (b h m c), (b h m c) and a bias (b 1 1 m).

    In bf16 on a CPU two matrix products by hand are 1.6-1.9x faster than the fused path; in fp32 the fused path is
    1.2-1.8x faster than by hand (256 x 2048 and 1568 x 256, five heads of 64, with backward).
    """
    bias = None if bias is None else bias.to(q.dtype)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        with without_autocast("cpu"):  # which would widen the logits for the softmax
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            return (logits if bias is None else logits + bias).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class Attention(nn.Module):
    """Pre-norm multi-head cross-attention of `asking` (b or 1, q, w) over `memory` (b m w); returns (b q w).

    Query and key maps start equal and orthogonal, so that at the start like attends to like: places to their
    neighbours. With independent maps all logits start near zero, attention is uniform, and every latent is the same
    mean token. attend: what the heads do, exactly by default (converters.approximation has others).
    """

    watch: Watch | None = None

    def __init__(self, width: int, heads: int, *, attend: Attend = attend) -> None:
        super().__init__()
        self.heads, self.attend = heads, attend
        self.norm, self.memory_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.keys_values = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        nn.init.orthogonal_(self.query.weight)
        with torch.no_grad():
            self.keys_values.weight[:width].copy_(self.query.weight)

    def forward(self, asking: Tensor, memory: Tensor, bias: Tensor | None = None) -> Tensor:
        """bias: (b 1 1 m), added to the logits: the logarithm of how many tokens a merged one stands for."""
        b = memory.shape[0]
        q = self.query(self.norm(asking)).expand(b, -1, -1)
        k, v = self.keys_values(self.memory_norm(memory)).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        if self.watch is not None:
            self.watch(some_logits(q, k, bias))
        return self.out(self.attend(q, k, v, bias).transpose(1, 2).flatten(2))


def some_logits(q: Tensor, k: Tensor, bias: Tensor | None = None, *, rows: int = ROWS) -> Tensor:
    """q k' / sqrt(c) + bias, float32, for at most `rows` evenly spaced asking tokens."""
    q = q[:, :, :: -(-q.shape[2] // rows)].float()
    logits = (q @ k.float().transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    return logits if bias is None else logits + bias


@contextmanager
def watched(module: nn.Module, watch: Watch) -> Iterator[None]:
    """Within it, `watch` is called with the logits (.. q m) of every softmax over m tokens in `module`: a module that
    takes one has an attribute `watch` and calls it where it is not None."""
    inside = [part for part in module.modules() if hasattr(part, "watch")]
    try:
        for part in inside:
            part.watch = watch
        yield
    finally:
        for part in inside:
            part.watch = None


class Block(nn.Module):
    """Pre-norm self-attention and perceptron."""

    def __init__(self, width: int, heads: int, *, attend: Attend = attend) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(width, heads, attend=attend), mlp(width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x + self.attention(x, x, bias)
        return x + self.mlp(x)


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
