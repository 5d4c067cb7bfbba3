"""Mixers along a sequence: what a state-space block does between its two projections. One interface, four sources.

Axes: b clips, s tokens in the order of a path, g paths (each a run of channels that reads in its own order), d channels
of all paths, h heads, p channels of a head, n states, k controls.

A mixer takes values (b s d) and `controls` numbers per token and path, (b s g k), and returns (b s d), every channel
looking only back along its path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converters.branch import largest_divisor, undecayed
from converters.precision import without_autocast
from converters.scan import long_convolution, s4d, selective, ssd


class Mixer(Protocol):
    """A module of this shape: `controls` is k."""

    controls: int

    def __call__(self, values: Tensor, controls: Tensor) -> Tensor: ...


class Ssd(nn.Module):
    """Mamba-2: one step and one rate per head; which states are written and read depends on the token."""

    def __init__(self, inner: int, *, paths: int, states: int, length: int) -> None:
        super().__init__()
        head = largest_divisor(inner // paths, 64)
        self.states, self.heads = states, inner // head
        self.controls = 2 * states + self.heads // paths
        self.step = nn.Parameter(first_steps(self.heads))
        self.rate = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.through = nn.Parameter(torch.ones(self.heads))

    def forward(self, values: Tensor, controls: Tensor) -> Tensor:
        write, read, dt = controls.split([self.states, self.states, controls.shape[-1] - 2 * self.states], dim=-1)
        dt = F.softplus(dt.flatten(2).float() + self.step)
        x = values.unflatten(-1, (self.heads, -1))
        y = ssd(x, dt, -self.rate.float().exp(), write, read)
        return (y + x * self.through[:, None].to(x.dtype)).flatten(2)


class Selective(nn.Module):
    """Mamba-1: a step per channel, from a few numbers per token, and a rate per channel and state."""

    def __init__(self, inner: int, *, paths: int, states: int, length: int) -> None:
        super().__init__()
        self.states, self.rank = states, max(inner // paths // 16, 1)
        self.controls = 2 * states + self.rank
        self.spread = nn.Parameter(torch.randn(paths, self.rank, inner // paths) * self.rank**-0.5)
        self.step = nn.Parameter(first_steps(inner))
        self.rate = undecayed(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.through = nn.Parameter(torch.ones(inner))

    def forward(self, values: Tensor, controls: Tensor) -> Tensor:
        write, read, dt = controls.split([self.states, self.states, self.rank], dim=-1)
        with without_autocast(values.device.type):
            dt = torch.einsum("b s g r, g r p -> b s g p", dt.float(), self.spread.float()).flatten(2)
        y = selective(values, F.softplus(dt + self.step), -self.rate.float().exp(), write, read)
        return y + values * self.through.to(values.dtype)


class S4d(nn.Module):
    """S4D with the S4D-Lin start: a fixed linear recurrence per channel, the same at every token."""

    controls = 0

    def __init__(self, inner: int, *, paths: int, states: int, length: int) -> None:
        super().__init__()
        pairs = max(states // 2, 1)
        self.step = nn.Parameter(torch.empty(inner).uniform_(math.log(1e-3), math.log(1e-1)))
        self.rate = undecayed(torch.full((inner, pairs), 0.5).log())
        self.turn = undecayed((torch.pi * torch.arange(pairs, dtype=torch.float32)).repeat(inner, 1))
        self.read = nn.Parameter(torch.randn(inner, pairs, 2) * 0.5**0.5)
        self.through = nn.Parameter(torch.ones(inner))

    def forward(self, values: Tensor, controls: Tensor) -> Tensor:
        eigenvalue = torch.complex(-self.rate.float().exp(), self.turn.float())
        rate = eigenvalue * self.step.float().exp()[:, None]
        weight = torch.view_as_complex(self.read.float()) * (rate.exp() - 1) / eigenvalue  # zero-order hold, B = 1
        y = s4d(values.float(), rate, weight).to(values.dtype)
        return y + values * self.through.to(values.dtype)


class Hyena(nn.Module):
    """Hyena of order 2: values gated, convolved with a long filter, gated again by the block. (Poli et al., 2023.)

    The filter is a small network of the lag (with sines), under windows that fade at rates spread over the channels.
    """

    lags: Tensor
    window: Tensor

    def __init__(self, inner: int, *, paths: int, states: int, length: int) -> None:
        super().__init__()
        self.controls = inner // paths
        lag = torch.arange(length) / max(length, 1)
        bands = torch.arange(1, states + 1) * torch.pi
        waves = lag[:, None] * bands
        self.register_buffer("lags", torch.cat([waves.sin(), waves.cos()], dim=1), persistent=False)
        self.hidden, self.filter = nn.Linear(2 * states, 64), nn.Linear(64, inner)
        fade = torch.logspace(0.5, math.log10(max(length, 4)), inner // paths).repeat(paths)
        self.register_buffer("window", (-lag[:, None] * fade).exp(), persistent=False)
        self.through = nn.Parameter(torch.ones(inner))

    def forward(self, values: Tensor, controls: Tensor) -> Tensor:
        values = values * controls.flatten(2)
        with without_autocast(values.device.type):
            kernel = F.linear(torch.sin(self.hidden(self.lags)), self.filter.weight, self.filter.bias) * self.window
        y = long_convolution(values.float(), kernel).to(values.dtype)
        return y + values * self.through.to(values.dtype)


MIXERS: dict[str, Callable[..., Mixer]] = {"ssd": Ssd, "selective": Selective, "s4d": S4d, "hyena": Hyena}


def first_steps(count: int) -> Tensor:
    """Biases whose softplus is spread log-uniformly over 0.001 .. 0.1, as Mamba starts its steps."""
    steps = torch.empty(count).uniform_(math.log(1e-3), math.log(1e-1)).exp()
    return steps + (-torch.expm1(-steps)).log()
