"""The compensated head reaches what is known to be the best on tasks where conversion and residual both matter."""

from __future__ import annotations

import pytest
import torch

from distill.arms import Bench, run_arm, set_bench
from distill.head_oracles import LinearOracle, Pooled, ProductOracle


def bench_of(pooled: Pooled, train: int, val: int) -> Bench:
    clips = len(pooled.labels)
    return set_bench(
        student=pooled.student,
        converted=pooled.converted,
        labels=pooled.labels,
        num_classes=int(pooled.labels.max()) + 1,
        groups=[str(clip) for clip in range(clips)],
        splits={"train": range(train), "val": range(train, train + val), "test": range(train + val, clips)},
    )


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_product(seed: int) -> None:
    """10,000 clips. Neither the converted tokens nor the student suffice to a linear head; both together do."""
    bench = bench_of(ProductOracle(seed=seed).sample(10_000, generator(seed)), 7000, 1500)
    arms = ("converted", "student", "converted_supervised")
    found = {arm: run_arm(arm, bench, rank=2).numbers["accuracy"] for arm in arms}
    assert found["converted_supervised"] >= 0.72
    assert found["converted"] == pytest.approx(0.42, abs=0.04) and found["student"] == pytest.approx(0.45, abs=0.04)


def test_the_product_s_optimum_is_that_of_its_own_signs() -> None:
    oracle = ProductOracle()
    pooled = oracle.sample(50_000, generator(5))
    best = pooled.student.double() @ oracle.student_map
    first, second = pooled.labels // 2, pooled.labels % 2
    said = (best[:, 0] * best[:, 1] > 0).long(), (best[:, 2] > 0).long()
    optimum = oracle.optimum()
    assert float(((said[0] == first) & (said[1] == second)).double().mean()) == pytest.approx(
        optimum["both"], abs=0.008
    )
    assert float((said[0] == first).double().mean()) / 2 == pytest.approx(optimum["converted"], abs=0.005)
    assert float((said[1] == second).double().mean()) / 2 == pytest.approx(optimum["student"], abs=0.005)
    assert optimum == pytest.approx({"converted": 0.416, "student": 0.454, "both": 0.755}, abs=1e-3)


def test_the_product_s_conversion_is_the_best_there_is() -> None:
    """What it misses of the teacher is unrelated to the student's fields, and to their products."""
    oracle = ProductOracle()
    pooled = oracle.sample(50_000, generator(6))
    missed, z = (pooled.teacher - pooled.converted).double(), pooled.student.double() @ oracle.student_map
    products = torch.stack([z[:, a] * z[:, b] for a in range(6) for b in range(a, 6)], dim=1)
    seen = torch.cat([z, products - products.mean(0)], dim=1)
    assert (missed.T @ seen / len(z)).abs().max() < 0.03 < (pooled.teacher.double().T @ seen / len(z)).abs().max()


@pytest.mark.parametrize("seed", [0, 1])
def test_linear(seed: int) -> None:
    """Within a point of the rank-q optimum, on the same 8000 test clips; the missed fields are worth 20 points."""
    oracle = LinearOracle(seed=seed)
    pooled = oracle.sample(34_000, generator(seed))
    found = run_arm("converted_supervised", bench_of(pooled, 24_000, 2000), rank=oracle.missed).numbers["accuracy"]
    student, labels = pooled.student[26_000:], pooled.labels[26_000:]
    best, exposed = (
        float((oracle.bayes(student, fields=fields) == labels).double().mean()) for fields in (None, oracle.exposed)
    )
    assert found > best - 0.01 and exposed < best - 0.2
    optimum = oracle.optimum()
    assert optimum == pytest.approx({"converted": exposed, "student": best, "both": best}, abs=0.02)


def test_the_linear_residual_is_the_missed_fields() -> None:
    oracle = LinearOracle()
    means = oracle.means - oracle.means.mean(0)
    assert (means.T @ means)[: oracle.exposed, oracle.exposed :].abs().max() < 1e-9
    pooled = oracle.sample(100, generator(0))
    g = pooled.student.double() @ oracle.student_map
    shown = g[:, : oracle.exposed] @ oracle.teacher_map.T
    assert torch.allclose(pooled.converted.double(), shown, atol=1e-5) and torch.equal(pooled.converted, pooled.teacher)


def test_sizes_that_do_not_fit_are_said() -> None:
    with pytest.raises(ValueError, match=r"exposed \+ missed is 13; it must be below classes=10"):
        LinearOracle(missed=8)
    with pytest.raises(ValueError, match="15 fields do not fit student_width=14"):
        LinearOracle(student_width=14)
    with pytest.raises(ValueError, match="fields=2 must be at least 3"):
        ProductOracle(fields=2)
