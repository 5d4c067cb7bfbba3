"""Attention whose cost grows with the number of tokens, not with its square: Nystrom's and Performer's approximations.

Each may stand where converters.attention.attend stands: (b h q c), (b h m c), (b h m c) -> (b h q c), without a bias.
Both calculate in float32 at least, autocast or not: a pseudo-inverse amplifies rounding, and so do exponentials.
Axes: b clips, h heads, q asking tokens, m tokens of a memory, c channels of a head, g landmarks, f features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converters.attention import attend
from converters.precision import without_autocast

ITERATIONS = 6  # of the pseudo-inverse, as in the paper


class Nystrom(nn.Module):
    """Attention by way of `landmarks` tokens (see nystrom)."""

    def __init__(self, landmarks: int) -> None:
        super().__init__()
        self.landmarks = landmarks

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        assert bias is None
        return nystrom(q, k, v, self.landmarks)


class Performer(nn.Module):
    """Attention by way of random features (see performer); they are drawn once and saved with the weights."""

    projection: Tensor

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.register_buffer("projection", orthogonal_gaussian(features, channels))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        assert bias is None
        return performer(q, k, v, self.projection)


def nystrom(q: Tensor, k: Tensor, v: Tensor, landmarks: int) -> Tensor:
    """softmax(q g_k') pinv(softmax(g_q g_k')) softmax(g_q k') v, landmarks g being means of runs of tokens.

    Runs differ by at most one token in length, and a landmark counts as its run: nothing is lost where keys repeat run
    by run. With as many landmarks as tokens it is exact attention. Asking tokens and memory have the same number.
    Source: Xiong et al., Nystromformer (2021), without its convolution of v.
    """
    tokens = q.shape[-2]
    assert tokens == k.shape[-2]
    if landmarks >= tokens:
        return attend(q, k, v)
    with without_autocast(q.device.type):
        given, (q, k, v) = q.dtype, _wide(q, k, v)
        run = torch.arange(tokens, device=q.device) * landmarks // tokens
        member = F.one_hot(run, landmarks).to(q.dtype).T  # (g m)
        lengths = member.sum(dim=1)
        asking, memory = (member @ x / lengths[:, None] for x in (q, k))
        bias = lengths.log().expand(1, 1, 1, -1)
        core = (asking @ memory.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias).softmax(dim=-1)
        return attend(q, memory, pseudo_inverse(core) @ attend(asking, k, v), bias).to(given)


def pseudo_inverse(a: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Moore-Penrose inverse of matrices (... g g), each on its own: a third-order iteration (Xiong et al., eq. 11)."""
    largest = a.abs().sum(dim=-2).amax(dim=-1) * a.abs().sum(dim=-1).amax(dim=-1)
    z = a.transpose(-1, -2) / largest[..., None, None]
    one = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        az = a @ z
        z = 0.25 * z @ (13 * one - az @ (15 * one - az @ (7 * one - az)))
    return z


def performer(q: Tensor, k: Tensor, v: Tensor, projection: Tensor) -> Tensor:
    """Attention with exp(q k' / sqrt(c)) replaced by a product of positive random features (FAVOR+), unbiased.

    projection: (f c), rows of a standard normal distribution. Feature j of x is exp(x w_j - |x|^2 / 2); written as two
    softmaxes, the tokens' under each feature and the features' under each asking token, the same quotient has nothing
    that can overflow, and no denominator that can vanish. Source: Choromanski et al., Rethinking attention (2021).
    """
    with without_autocast(q.device.type):
        given, (q, k, v) = q.dtype, _wide(q, k, v)
        w = projection.to(q.dtype).T
        q, k = q * q.shape[-1] ** -0.25, k * k.shape[-1] ** -0.25
        keys = k @ w - k.square().sum(dim=-1, keepdim=True) / 2  # (b h m f)
        values = keys.softmax(dim=-2).transpose(-1, -2) @ v  # (b h f c)
        return ((q @ w + keys.logsumexp(dim=-2, keepdim=True)).softmax(dim=-1) @ values).to(given)


def orthogonal_gaussian(features: int, channels: int) -> Tensor:
    """Rows (f c) that are each standard normal, and at right angles within every run of c, which lowers the error."""
    runs = [nn.init.orthogonal_(torch.empty(channels, channels)) for _ in range(-(-features // channels))]
    return torch.cat(runs)[:features] * torch.randn(features, channels).norm(dim=1, keepdim=True)


def _wide(*parts: Tensor) -> list[Tensor]:
    return [part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
