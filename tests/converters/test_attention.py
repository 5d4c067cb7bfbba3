"""Attention against a plain float64 reference, with and without a bias on its logits."""

from __future__ import annotations

import pytest
import torch
from small import draw

from converters.attention import Attention, Block, attend


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
