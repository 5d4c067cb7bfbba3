"""Attention against a plain float64 reference, with and without a bias on its logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small import OPTIONS, draw, stir, tiny
from torch.overrides import TorchFunctionMode

from converters import FAMILIES
from converters.attention import Attention, Block, attend, some_logits, watched


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_attention_equals_a_float64_reference(dtype, tolerance, biased):
    q, k, v = draw(2, 3, 7, 8), draw(2, 3, 9, 8, seed=1), draw(2, 3, 9, 8, seed=2)
    bias = draw(2, 1, 1, 9, seed=3) if biased else None
    logits = torch.einsum("bhqc,bhmc->bhqm", q.double(), k.double()) / 8**0.5
    weights = (logits + (0 if bias is None else bias.double())).softmax(dim=-1)
    answer = attend(q.to(dtype), k.to(dtype), v.to(dtype), bias)
    assert answer.dtype == dtype
    torch.testing.assert_close(answer.double(), weights @ v.double(), atol=tolerance, rtol=tolerance)


def test_a_log_size_bias_counts_a_token_as_its_copies():
    attention, asking, memory = Attention(16, 2), draw(2, 3, 16), draw(2, 4, 16, seed=1)
    sizes = torch.tensor([1.0, 3.0, 2.0, 1.0])
    copies = memory.repeat_interleave(sizes.long(), dim=1)
    merged = attention(asking, memory, sizes.log().expand(2, 1, 1, 4))
    torch.testing.assert_close(merged, attention(asking, copies), atol=1e-5, rtol=1e-5)


def test_queries_and_keys_start_alike():
    attention = Attention(16, 2)
    assert torch.equal(attention.query.weight, attention.keys_values.weight[:16])
    torch.testing.assert_close(attention.query.weight @ attention.query.weight.T, torch.eye(16), atol=1e-5, rtol=1e-5)


def test_a_block_keeps_order_of_its_tokens():
    block, x = Block(16, 2), draw(1, 5, 16)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order], atol=1e-5, rtol=1e-5)


def test_some_logits_are_those_of_evenly_spaced_queries():
    q, k, bias = draw(2, 3, 130, 8), draw(2, 3, 9, 8, seed=1), draw(2, 1, 1, 9, seed=3)
    whole = torch.einsum("bhqc,bhmc->bhqm", q, k) / 8**0.5 + bias
    torch.testing.assert_close(some_logits(q, k, bias), whole[:, :, ::3])
    torch.testing.assert_close(some_logits(q, k, bias, rows=130), whole)


class Softmaxes(TorchFunctionMode):
    """Keeps the answers of every softmax and the number of fused attentions within it."""

    names = ("softmax", "_softmax", "log_softmax", "scaled_dot_product_attention", "multi_head_attention_forward")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        self.count += getattr(func, "__name__", "") in self.names
        return func(*args, **(kwargs or {}))


FURTHER = {"mamba": {"decode": "queries"}, "tokenlearner": {"compress": "tome"}}


@pytest.mark.parametrize("further", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_softmax_of_a_family_is_watched(family, further, tokens):
    """One that were not would escape the penalty on attention's entropy."""
    options = {**OPTIONS.get(family, {}), **(FURTHER.get(family, {}) if further else {})}
    converter, shown = stir(tiny(family, options=options)), []
    with Softmaxes() as softmaxes:
        converter(tokens)
    with watched(converter, lambda logits: shown.append(logits)):
        converter(tokens)
    assert len(shown) == softmaxes.count
    assert (softmaxes.count > 0) == (family in ("perceiver", "dsconv", "mamba", "tokenlearner"))
    assert all(logits.dtype == torch.float32 and logits.shape[-1] > 1 for logits in shown)
    assert all(part.watch is None for part in converter.modules() if hasattr(part, "watch"))
