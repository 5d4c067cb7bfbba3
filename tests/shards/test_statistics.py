from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shards.disk import StoreError
from shards.statistics import STATISTICS_FILE, compute_statistics, load_statistics, save_statistics, summarise
from shards.store import FeatureStore


def tokens(clips: int = 7, *, offset: float = 0.0) -> torch.Tensor:
    return torch.randn(clips, 6, 5, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 6.0) + offset


def test_against_the_definition() -> None:
    x = tokens() + 10 * torch.randn(6, 5)
    found = summarise(compute_statistics(iter(x)))
    exact = x.double()
    assert torch.allclose(found["mean"].double(), exact.mean(0), atol=1e-6)
    assert torch.allclose(found["scale"].double(), (exact - exact.mean(0)).square().mean((0, 1)).sqrt(), rtol=1e-6)
    assert torch.allclose(found["global_mean"].double(), exact.mean((0, 1)), atol=1e-6)
    assert torch.allclose(found["global_scale"].double(), exact.flatten(0, 1).std(0, correction=0), rtol=1e-6)


def test_a_far_mean_does_not_cancel() -> None:
    near, far = (summarise(compute_statistics(tokens(offset=offset))) for offset in (0.0, 4096.0))
    assert torch.allclose(near["scale"], far["scale"], rtol=1e-3)


def test_dead_channels_are_floored() -> None:
    x = tokens()
    x[..., 0] = 3.0
    scale = summarise(compute_statistics(x))["scale"]
    assert scale[0] == pytest.approx(0.01 * float(scale[1:].sort().values[1]), rel=0.5) and scale.min() > 0


def test_of_some_positions() -> None:
    x = tokens()
    positions = compute_statistics(x)
    assert torch.allclose(
        summarise({name: value[:4] for name, value in positions.items()})["scale"],
        summarise(compute_statistics(x[:, :4]))["scale"],
    )


def test_without_clips() -> None:
    with pytest.raises(ValueError, match="at least one train clip"):
        compute_statistics([])


def test_file(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    statistics = compute_statistics(tokens())
    rows = torch.arange(6)
    save_statistics(tmp_path, "c", statistics, split="ab")
    first = (tmp_path / "c" / STATISTICS_FILE).read_bytes()
    save_statistics(tmp_path, "c", statistics, split="ab")
    assert first == (tmp_path / "c" / STATISTICS_FILE).read_bytes()
    assert torch.equal(load_statistics(tmp_path, "c", shape=(6, 5), rows=rows)["mean"], statistics["mean"])
    with pytest.raises(StoreError, match=r"c/stats.safetensors: mean must be finite float32 of shape \(7, 5\)"):
        load_statistics(tmp_path, "c", shape=(7, 5), rows=rows)
    statistics["deviation"][0, 0] = torch.nan
    save_statistics(tmp_path, "c", statistics, split="ab")
    with pytest.raises(StoreError, match="deviation must be finite"):
        load_statistics(tmp_path, "c", shape=(6, 5), rows=rows)


def test_a_store_has_them_for_its_train_clips(store: FeatureStore) -> None:
    train = torch.stack([store[index]["videomae"] for index in store.indices("train")])
    found = store.statistics("videomae")
    assert torch.allclose(found["mean"], train.mean(0), atol=1e-4)
    assert torch.allclose(found["scale"], (train - train.mean(0)).square().mean((0, 1)).sqrt(), rtol=1e-4)
