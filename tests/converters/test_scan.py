"""Every scan against a sequential float64 reference: values and gradients, all lengths, small and large steps."""

from __future__ import annotations

import logging
import types

import pytest
import torch
import torch.nn.functional as F
from small import draw

from converters import scan
from converters.scan import long_convolution, s4d, selective, ssd

LENGTHS = [1, 7, 16, 50, 64]  # in chunks of 16: shorter, equal, with and without a rest
STEPS = [0.01, 1.0, 10.0, 1000.0]


def sequential(x, dt, a, b, c):
    """h = exp(dt a) h + dt b x, y = c h, one place after the other; x, dt (b l d), a (d n), b, c (b l d n)."""
    h, answers = torch.zeros_like(b[:, 0]), []
    for at in range(x.shape[1]):
        h = (dt[:, at, :, None] * a).exp() * h + (dt[:, at] * x[:, at])[..., None] * b[:, at]
        answers.append((c[:, at] * h).sum(dim=-1))
    return torch.stack(answers, dim=1)


def inputs(kind: str, length: int, step: float, dtype=torch.float64, *, batch=2, groups=2, heads=4, p=3, n=5):
    d = heads * p
    x, b, c = draw(batch, length, d), draw(batch, length, groups, n, seed=1), draw(batch, length, groups, n, seed=2)
    dt = F.softplus(draw(batch, length, heads if kind == "ssd" else d, seed=3)) * step
    a = -draw(heads if kind == "ssd" else d * n, seed=4).exp()
    x, a = (x.unflatten(-1, (heads, p)), a) if kind == "ssd" else (x, a.unflatten(0, (d, n)))
    return [part.to(dtype).requires_grad_() for part in (x, dt, a, b, c)]


def reference(kind: str, x, dt, a, b, c):
    groups = b.shape[2]
    if kind == "ssd":
        heads, p = x.shape[2:]
        b, c = (part.repeat_interleave(heads // groups * p, dim=2) for part in (b, c))
        a = a.repeat_interleave(p)[:, None].expand(-1, b.shape[-1])
        return sequential(x.flatten(2), dt.repeat_interleave(p, dim=2), a, b, c).unflatten(-1, (heads, p))
    b, c = (part.repeat_interleave(x.shape[2] // groups, dim=2) for part in (b, c))
    return sequential(x, dt, a, b, c)


SCANS = {"ssd": ssd, "selective": selective}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", SCANS)
def test_values_and_gradients_equal_the_reference(kind, length, step):
    given = inputs(kind, length, step)
    options = {} if kind == "ssd" else {"block": 4}
    answer, true = SCANS[kind](*given, chunk=16, **options), reference(kind, *given)
    torch.testing.assert_close(answer, true, atol=1e-9 * max(step, 1), rtol=1e-9)
    pull = draw(*answer.shape, seed=9).double()
    ours, theirs = (torch.autograd.grad((y * pull).sum(), given) for y in (answer, true))
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, right, atol=1e-8 * max(step, 1), rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", SCANS)
def test_short_floats_are_close_and_finite(kind, step, dtype):
    given = inputs(kind, 200, step, dtype)
    answer, true = SCANS[kind](*given), reference(kind, *(part.detach().double() for part in given))
    assert answer.dtype == dtype
    assert (answer - true).norm() <= (1e-5 if dtype == torch.float32 else 0.02) * true.norm()
    answer.float().square().sum().backward()
    assert all(part.grad.isfinite().all() for part in given)


@pytest.mark.parametrize("kind", SCANS)
def test_without_gradients_the_answer_is_the_same(kind):
    given = inputs(kind, 50, 1.0, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(SCANS[kind](*given), SCANS[kind](*given).detach())
    torch.testing.assert_close(SCANS[kind](*given).detach(), SCANS[kind](*(part.detach() for part in given)))


@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("length", LENGTHS)
def test_s4d_is_a_linear_recurrence(length, size):
    rate = torch.complex(-draw(3, 4).exp() * size, draw(3, 4, seed=1) * size).to(torch.complex128).requires_grad_()
    weight = torch.complex(draw(3, 4, seed=2), draw(3, 4, seed=3)).to(torch.complex128).requires_grad_()
    x = draw(2, length, 3, seed=4).double().requires_grad_()
    h, answers = torch.zeros(2, 3, 4, dtype=torch.complex128), []
    for at in range(length):
        h = rate.exp() * h + x[:, at, :, None]
        answers.append(2 * (weight * h).real.sum(dim=-1))
    answer, true = s4d(x, rate, weight, chunk=16), torch.stack(answers, dim=1)
    torch.testing.assert_close(answer, true, atol=1e-9, rtol=1e-9)
    pull = draw(*answer.shape, seed=9).double()
    ours, theirs = (torch.autograd.grad((y * pull).sum(), (x, rate, weight)) for y in (answer, true))
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, right, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_long_convolution_is_a_sum_over_the_past(length):
    x, kernel = draw(2, length, 3).double().requires_grad_(), draw(length, 3, seed=1).double().requires_grad_()
    true = torch.stack([(kernel[: at + 1].flip(0) * x[:, : at + 1]).sum(dim=1) for at in range(length)], dim=1)
    answer = long_convolution(x, kernel)
    torch.testing.assert_close(answer, true)
    ours, theirs = (torch.autograd.grad(y.square().sum(), (x, kernel)) for y in (answer, true))
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, right)


def test_the_log_says_once_which_path_runs(caplog):
    scan._say.cache_clear()
    with caplog.at_level(logging.INFO, logger="converters.scan"):
        for _ in range(3):
            ssd(*inputs("ssd", 7, 1.0))
            selective(*inputs("selective", 7, 1.0))
    assert [record.getMessage() for record in caplog.records] == [
        "the ssd scan runs in torch on cpu",
        "the selective scan runs in torch on cpu",
    ]


def test_a_missing_or_broken_mamba_ssm_is_no_error(monkeypatch):
    scan._installed.cache_clear()
    assert scan._installed("ssd")[0] is None
    monkeypatch.setattr(scan.importlib, "import_module", lambda _name: types.SimpleNamespace())
    scan._installed.cache_clear()
    assert scan._installed("selective")[0] is None
    scan._installed.cache_clear()


def test_a_kernel_without_its_compiled_part_is_not_taken(monkeypatch):
    """Newer releases of mamba-ssm import, and fail when Mamba-1's function is called."""

    def installed(name):
        if name == "selective_scan_cuda":
            raise ImportError(name)
        return types.SimpleNamespace(selective_scan_fn=print, mamba_chunk_scan_combined=print)

    monkeypatch.setattr(scan.importlib, "import_module", installed)
    scan._installed.cache_clear()
    assert scan._installed("selective") == (None, "selective_scan_cuda")
    assert scan._installed("ssd") == (print, "")
    scan._installed.cache_clear()


@pytest.mark.parametrize("kind", SCANS)
def test_the_kernels_get_their_own_layout(kind, monkeypatch):
    """mamba-ssm's argument order and axes, with a sequential stand-in that reads them as its documentation says."""

    def combined(x, dt, A, B, C, chunk_size):
        assert dt.dtype == A.dtype == torch.float32
        assert chunk_size >= 16
        return reference("ssd", x, dt, A, B, C)

    def interface(u, delta, A, B, C):
        assert all(part.stride(-1) == 1 for part in (u, delta, B, C))
        x, dt, b, c = (part.movedim(-1, 1) for part in (u, delta, B, C))
        return reference("selective", x, dt, A, b, c).movedim(1, -1)

    given = inputs(kind, 20, 1.0, torch.float32)
    plain = SCANS[kind](*given)
    monkeypatch.setattr(scan, "_kernel", lambda name, _x: {"ssd": combined, "selective": interface}[name])
    torch.testing.assert_close(SCANS[kind](*given), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("p", [16, 56])  # channels of a head: 56 is the default's
@pytest.mark.parametrize("kind", SCANS)
def test_the_kernels_of_mamba_ssm_agree(kind, p):
    pytest.importorskip("mamba_ssm")
    given = [part.detach().cuda().requires_grad_() for part in inputs(kind, 200, 0.1, torch.float32, p=p, n=16)]
    if scan._kernel(kind, given[0]) is None:
        pytest.skip(scan._installed(kind)[1])
    answer, true = SCANS[kind](*given), reference(kind, *(part.double() for part in given))
    assert (answer - true).norm() <= 5e-3 * true.norm()  # the kernels multiply in tf32
    ours, theirs = (torch.autograd.grad(y.square().sum(), given) for y in (answer, true))
    for mine, right in zip(ours, theirs, strict=True):
        assert (mine - right).norm() <= 2e-2 * right.norm()
