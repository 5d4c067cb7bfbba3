"""Scans: linear recurrences over a sequence, as matrix products. Each has a plain float64 reference in its tests.

Axes: b clips, l places of the sequence, c chunks of k places, g groups, h heads, p channels of a head, d channels
(h p), n states.

Decays are exponentials of sums that are never positive and stand in float32 at least, so that no time step, however
long, overflows: a decay that is too small is 0. (Dividing two cumulative products, or exponentiating their logarithms
apart, gives NaN at ten times the usual steps.)
"""

from __future__ import annotations

import functools
import importlib
import itertools
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from converters.precision import without_autocast

CHUNK = 32  # on one core 23 ms at L 2048, d 512, n 16, 8 heads, forward + backward; chunks of 64: 29, of 128: 46
KERNEL_CHUNK = 64  # of mamba-ssm's kernel, which wants a power of two
log = logging.getLogger(__name__)


def ssd(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Mamba-2: h_l = exp(dt_l a) h_(l-1) + dt_l b_l x_l', y_l = c_l' h_l, from h = 0 before the first place.

    x (b l h p); dt (b l h), not negative; a (h), negative; b, c (b l g n), group j being that of the j-th run of h / g
    heads; y (b l h p). In matrix form: inside a chunk a masked product of c and b, between chunks one of decays (Dao
    and Gu, Transformers are SSMs, 2024, section 6). Where mamba-ssm is installed and the tensors lie on a GPU, its
    kernel answers. Times: tests/benchmarks/scan.py.
    """
    kernel = _kernel("ssd", x)
    if kernel is not None:
        return kernel(x, dt.float(), a.float(), b, c, KERNEL_CHUNK)
    length, groups = x.shape[1], b.shape[2]
    k = min(chunk, length)
    pad = -length % k
    if pad:  # steps of length 0: they neither decay nor write
        x, dt, b, c = (F.pad(part, (0, 0) * (part.ndim - 2) + (0, pad)) for part in (x, dt, b, c))
    wide = dt.float() if dt.dtype.itemsize < 4 else dt
    steps = wide.unflatten(1, (-1, k)).unflatten(-1, (groups, -1)).permute(0, 1, 3, 4, 2)
    x = (
        (x * wide.to(x.dtype)[..., None]).unflatten(1, (-1, k)).unflatten(3, (groups, -1)).transpose(2, 3)
    )  # (b c g k h p)
    b, c = (part.unflatten(1, (-1, k)).transpose(2, 3) for part in (b, c))  # (b c g k n)

    spent = (steps * a.to(wide.dtype).unflatten(0, (groups, -1))[..., None]).cumsum(dim=-1)  # (b c g h k)
    inside = (c @ b.transpose(-1, -2))[:, :, :, None] * _decays(spent, shift=0).to(x.dtype)  # (b c g h k k)
    y = (inside @ x.transpose(3, 4)).transpose(3, 4)
    if x.shape[1] > 1:
        last = spent[..., -1]
        left = (last[..., None] - spent).exp().transpose(-1, -2)[..., None].to(x.dtype)
        states = b.transpose(-1, -2) @ (x * left).flatten(-2)  # what each chunk adds, (b c g n (h p))
        states = states.unflatten(-1, x.shape[-2:]).permute(0, 2, 4, 1, 3, 5)  # (b g h c n p)
        between = _decays(last.permute(0, 2, 3, 1).cumsum(dim=-1), shift=1).to(x.dtype)
        carried = (between @ states.flatten(-2)).unflatten(-1, states.shape[-2:]).permute(0, 3, 1, 4, 2, 5)
        far = (c @ carried.flatten(-2)).unflatten(-1, x.shape[-2:])
        y = y + far * spent.exp().transpose(-1, -2)[..., None].to(x.dtype)
    return y.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :length]


def _decays(spent: Tensor, *, shift: int) -> Tensor:
    """exp(spent_(i - shift) - spent_j) for j <= i - shift and 0 elsewhere: (.. k) -> (.. k k).

    Masked before the exponential: above the diagonal the difference is positive, and its gradient would be NaN.
    """
    k = spent.shape[-1]
    ends = F.pad(spent, (shift, 0))[..., :k]
    future = torch.ones(k, k, dtype=torch.bool, device=spent.device).triu(1 - shift)
    return (ends[..., :, None] - spent[..., None, :]).masked_fill(future, -torch.inf).exp()


def selective(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, *, chunk: int = 32, block: int = 64) -> Tensor:
    """Mamba-1: as `ssd`, but every channel has its own step and every state its own rate (Gu and Dao, Mamba, 2023).

    x, dt (b l d); a (d n); b, c (b l g n), group j being that of the j-th run of d / g channels; y (b l d). Two levels:
    all chunks step together, then their states are carried over. `block` channels at a time, which bounds the memory:
    states live only inside, forward and backward.
    """
    kernel = _kernel("selective", x)
    if kernel is not None:
        u, step, write, read = (part.movedim(1, -1).contiguous() for part in (x, dt.to(x.dtype), b, c))
        return kernel(u, step, a.float(), write, read).movedim(-1, 1)
    with without_autocast(x.device.type):  # its backward, which calculates states again, knows of none
        return _selective(x, dt, a, b, c, chunk=chunk, block=block)


def _selective(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, *, chunk: int, block: int) -> Tensor:
    length, per_group = x.shape[1], x.shape[2] // b.shape[2]
    k = min(chunk, length)
    pad = -length % k
    if pad:
        x, dt, b, c = (F.pad(part, (0, 0) * (part.ndim - 2) + (0, pad)) for part in (x, dt, b, c))
    dtype = torch.promote_types(x.dtype, torch.float32)
    if torch.compiler.is_compiling():  # a graph keeps every step: as few as can be
        block = per_group
    width = max(size for size in range(1, min(block, per_group) + 1) if per_group % size == 0)
    x_, dt_, b_, c_ = (part.to(dtype).unflatten(1, (-1, k)).movedim(2, 0) for part in (x, dt, b, c))  # (k b c ..)
    answers = []
    for first in range(0, x.shape[2], width):
        group, channels = first // per_group, slice(first, first + width)
        parts = (x_[..., channels], dt_[..., channels], a[channels].to(dtype), b_[..., group, :], c_[..., group, :])
        answers.append(Selective.apply(*parts) if torch.is_grad_enabled() else _read(_states(*parts[:4])[0], parts[4]))
    return torch.cat(answers, dim=-1).movedim(0, 2).flatten(1, 2)[:, :length].to(x.dtype)


class Selective(torch.autograd.Function):
    """`selective` for one run of channels: x, dt (k b c d), a (d n), b, c (k b c n) -> y (k b c d).

    Only what was given is kept for the way back: states are 16 times larger and computed again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, dt, a, b, c)
        return _read(_states(x, dt, a, b)[0], c)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        x, dt, a, b, c = ctx.saved_tensors
        states, decay = _states(x, dt, a, b)
        later = torch.zeros_like(decay)  # the decay on the way back to each place is that of the place after it
        later[:-1] = decay[1:]
        later[-1, :, :-1] = decay[0, :, 1:]
        pull = _sweep(later, dy[..., None] * c[..., None, :], back=True)  # of the loss on each state
        dc = (dy[..., None, :] @ states).squeeze(-2)
        written = (x * dt)[..., None, :]
        db = (written @ pull).squeeze(-2)
        dwritten = _read(pull, b)
        # d/d(dt a) = pull * decay * the state before, and the latter two are the state less what was written to it.
        dexponent = pull.mul_(states.sub_(written.transpose(-1, -2) * b[..., None, :]))
        da = (dexponent * dt[..., None]).flatten(0, 2).sum(dim=0)
        ddt = dwritten * x + (dexponent * a).sum(dim=-1)
        return dwritten * dt, ddt, da, db, dc


def _states(x: Tensor, dt: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """All states and all decays, (k b c d n)."""
    decay = (dt[..., None] * a).exp_()
    return _sweep(decay.clone(), (x * dt)[..., None] * b[..., None, :]), decay


def _read(states: Tensor, c: Tensor) -> Tensor:
    return (states @ c[..., None]).squeeze(-1)


def _sweep(decay: Tensor, h: Tensor, *, back: bool = False) -> Tensor:
    """h_i += decay_i h_(i-1) along (k b c d n), chunks c one after the other; `back` from the last place to the first.

    Works in place and uses `decay` up: it ends as what of a chunk's first state survives to each of its places.
    """
    k, chunks = h.shape[0], h.shape[2]
    step = -1 if back else 1
    places = range(k)[::step]
    for last, here in itertools.pairwise(places):
        h[here].addcmul_(decay[here], h[last])
        decay[here] *= decay[last]
    end = places[-1]
    handed = torch.zeros_like(h[0])
    rounds = range(chunks)[::step]
    for last, here in itertools.pairwise(rounds):
        handed[:, here] = torch.addcmul(h[end][:, last], decay[end][:, last], handed[:, last])
    return h.addcmul_(decay, handed)


def s4d(x: Tensor, rate: Tensor, weight: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """S4D: y_l = sum over j of 2 Re(weight exp(rate j)) x_(l-j), the same at every place (Gu et al., S4D, 2022).

    x (b l d) real; rate (d n) complex, real parts negative: step times eigenvalue; weight (d n) complex; y (b l d).
    As products with one small Toeplitz matrix per channel, and states between chunks; six times faster than by FFT.
    """
    with without_autocast(x.device.type):  # there are no complex numbers of bf16
        return _s4d(x, rate, weight, chunk=chunk)


def _s4d(x: Tensor, rate: Tensor, weight: Tensor, *, chunk: int) -> Tensor:
    batch, length, _ = x.shape
    k = min(chunk, length)
    x = F.pad(x, (0, 0, 0, -length % k)).unflatten(1, (-1, k))  # (b c k d)
    chunks = x.shape[1]
    x = x.permute(3, 2, 1, 0).flatten(2).contiguous()  # (d k (c b))
    lags = torch.arange(k + 1, device=x.device)
    powers = (rate[..., None] * lags).exp()  # (d n k+1)
    answer = 2 * (weight[..., None] * powers)
    back = lags[:k, None] - lags[:k]
    toeplitz = answer[..., :k].real.sum(dim=1)[:, back.clamp(min=0)].tril()  # (d k k)
    y = toeplitz @ x
    if chunks > 1:
        write = _stacked(powers[..., :k].flip(-1), dim=1)  # (d 2n k)
        added = torch.complex(*(write @ x).chunk(2, dim=1)).unflatten(2, (chunks, batch))
        carried = [torch.zeros_like(added[:, :, 0])]
        for at in range(chunks - 1):
            carried.append(powers[..., k, None] * carried[-1] + added[:, :, at])
        states = _stacked(torch.stack(carried, dim=2).flatten(2), dim=1)  # (d 2n (c b))
        read = torch.cat([answer[..., 1:].real, -answer[..., 1:].imag], dim=1)
        y = y + read.transpose(1, 2) @ states
    return y.unflatten(2, (chunks, batch)).permute(3, 2, 1, 0).flatten(1, 2)[:, :length]


def _stacked(z: Tensor, *, dim: int) -> Tensor:
    return torch.cat([z.real, z.imag], dim=dim)


def long_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """y_l = sum over j of kernel_j x_(l-j), by FFT: (b l d), (l d) -> (b l d)."""
    length = x.shape[1]
    x, kernel = x.transpose(1, 2).contiguous(), kernel.T.contiguous()
    spectrum = torch.fft.rfft(x, 2 * length) * torch.fft.rfft(kernel, 2 * length)
    return torch.fft.irfft(spectrum, 2 * length)[..., :length].transpose(1, 2)


KERNELS = {  # scan -> (module, function, the module that must be there too for the function to run)
    "ssd": ("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined", "triton"),
    "selective": ("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn", "selective_scan_cuda"),
}


def _kernel(name: str, x: Tensor) -> Callable[..., Tensor] | None:
    """mamba-ssm's kernel for a scan of x, or None where it cannot run: no GPU, float64, or a graph is being traced."""
    if torch.compiler.is_compiling():
        return None
    if x.device.type != "cuda" or x.dtype == torch.float64:
        _say(name, f"in torch on {x.device.type}")
        return None
    function, missing = _installed(name)
    _say(name, "by mamba-ssm's kernel" if function else f"in torch on cuda: no kernel of mamba-ssm ({missing})")
    return function


@functools.cache
def _installed(name: str) -> tuple[Callable[..., Tensor] | None, str]:
    """The kernel, or None and why. (Newer releases of mamba-ssm come without the compiled part of Mamba-1's.)"""
    module, function, needed = KERNELS[name]
    try:
        importlib.import_module(needed)
        return getattr(importlib.import_module(module), function), ""
    except (ImportError, AttributeError) as error:
        return None, str(error)


@functools.cache
def _say(name: str, how: str) -> None:
    """Once per scan and path."""
    log.info("the %s scan runs %s", name, how)
