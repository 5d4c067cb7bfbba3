from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.codec import (
    SMALLEST_SCALE,
    Calibration,
    Fp16,
    Int8,
    check_codec,
    encoded_spec,
    floor_deviation,
    load_tensors,
)
from shards.disk import StoreError
from shards.tensorfile import spec_of


def vit_like(clips: int = 4, tokens: int = 64, dim: int = 32, *, seed: int = 0) -> torch.Tensor:
    """Tokens with a massive, a far and a near-dead channel."""
    tokens_ = torch.randn(clips, tokens, dim, generator=torch.Generator().manual_seed(seed))
    tokens_[..., 0] *= 1000
    tokens_[..., 1] += 500
    tokens_[..., 2] *= 1e-6
    return tokens_


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 9),
    dim=st.integers(1, 9),
    seed=st.integers(0, 2**30),
    size=st.floats(1e-3, 1e3),
    far=st.floats(-1e3, 1e3),
)
def test_int8_errs_by_half_a_level(tokens: int, dim: int, seed: int, size: float, far: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean, deviation = torch.randn(dim, generator=generator) * far, torch.rand(dim, generator=generator) + 0.1
    codec = Int8("c", Calibration(mean, deviation))
    x = mean + deviation * size * torch.randn(tokens, dim, generator=generator)
    encoded = codec.encode(x)
    assert spec_of(encoded) == codec.spec((tokens, dim))
    level = ((x - mean) / deviation).abs().amax(-1, keepdim=True) / 127
    bound = deviation * (0.5 * level + 0.08 * level + SMALLEST_SCALE) + 1e-6 * x.abs()  # half a level, fp16 rounding
    assert ((codec.decode(encoded) - x).abs() <= bound).all()


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(st.integers(1, 5), st.integers(1, 5)), seed=st.integers(0, 2**30), size=st.floats(1e-2, 1e4))
def test_fp16_errs_by_its_rounding(shape: tuple[int, int], seed: int, size: float) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size
    decoded = Fp16("c").decode(Fp16("c").encode(x))
    assert decoded.dtype == torch.float32 and ((decoded - x).abs() <= x.abs() * 2**-11 + 1e-7).all()


def test_int8_on_massive_far_and_dead_channels() -> None:
    clips = vit_like()
    codec = Int8("student", Calibration.fit(list(clips), column="student"))
    error = (codec.decode(codec.encode(clips)) - clips).square().mean((0, 1)).sqrt()
    assert (error / floor_deviation(clips.std((0, 1)))).max() < 0.02
    assert error[2] / clips[..., 2].std() > 0.9  # the near-dead channel is lost, on purpose
    bits = sum(t.numel() * t.element_size() * 8 for t in codec.encode(clips).values()) / clips.numel()
    assert bits == 8 + 16 / 32


def test_batched_and_single_agree() -> None:
    clips = vit_like()
    codec = Int8("student", Calibration.fit(list(clips), column="student"))
    encoded = codec.encode(clips)
    out = torch.empty(clips.shape[1:])
    one = codec.decode({name: tensor[2] for name, tensor in encoded.items()}, out=out)
    assert torch.equal(codec.decode(encoded)[2], one) and one.data_ptr() == out.data_ptr()
    assert torch.equal(codec.encode(clips[2])["q"], encoded["q"][2])
    assert codec.decode(encoded, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_constant_tokens_survive() -> None:
    x = torch.full((3, 5), 7.0)
    codec = Int8("c", Calibration.fit([x], column="c"))
    assert torch.equal(codec.decode(codec.encode(x)), x)
    assert codec.calibration.deviation.min() > 0


def test_calibration_refuses_what_int8_cannot_hold() -> None:
    """Every token has one spike, each in another channel: no channel's deviation tells, and the scales are taken."""
    x = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0)) + 127 * torch.eye(1024)
    with pytest.raises(
        ValueError, match=r"column videomae: int8 errs by \d+\.\d% of its deviation on channel \d+ .*fp16"
    ):
        Calibration.fit([x, x], column="videomae")
    with pytest.raises(ValueError, match="column videomae: int8 needs at least one readable train clip"):
        Calibration.fit([], column="videomae")


def test_out_of_range_names_the_column() -> None:
    with pytest.raises(ValueError, match="column student: a token value of 70000 does not fit in fp16"):
        Fp16("student").encode(torch.tensor([[1.0, -70000.0]]))
    with pytest.raises(ValueError, match="column student: a token lies 1e.07 deviations"):
        Int8("student", Calibration(torch.zeros(1), torch.ones(1))).encode(torch.tensor([[1e7]]))
    with pytest.raises(ValueError, match="codec is 'int4'; there are int8, fp16"):
        check_codec("int4")


def test_calibration_file(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    calibration = Calibration.fit(list(vit_like()), column="c")
    calibration.save(tmp_path / "c")
    loaded = Calibration.load(tmp_path, column="c", dim=32)
    assert torch.equal(loaded.mean, calibration.mean) and torch.equal(loaded.deviation, calibration.deviation)
    with pytest.raises(StoreError, match="mean must be 33 finite float32 numbers"):
        Calibration.load(tmp_path, column="c", dim=33)
    with pytest.raises(StoreError, match=r"none.safetensors is missing"):
        load_tensors(tmp_path, "c", "none.safetensors")
    Calibration(torch.zeros(32), torch.zeros(32)).save(tmp_path / "c")
    with pytest.raises(StoreError, match="a deviation of 0 is not positive"):
        Calibration.load(tmp_path, column="c", dim=32)
    (tmp_path / "c" / "calibration.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(StoreError, match="calibration.safetensors is damaged"):
        Calibration.load(tmp_path, column="c", dim=32)


def test_specs() -> None:
    assert encoded_spec("fp16", (3, 4)) == {"tokens": (torch.float16, (3, 4))}
    assert encoded_spec("int8", (3, 4)) == {"q": (torch.int8, (3, 4)), "scale": (torch.float16, (3,))}
