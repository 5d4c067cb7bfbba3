"""From sums over clips to the numbers of summary.json: gains paired by group, intervals, marks."""

from __future__ import annotations

import json

import pytest
import torch
from threads import together

from converters import create_converter
from distill.evaluate import Candidate, at, few_clips, finite, paired_gain, score, space_digest, summarise
from distill.fit import set_normalisers
from distill.metrics import (
    CENTRED,
    METRICS,
    MINIMUM_GROUPS,
    SIMILARITIES,
    Alignment,
    Statistics,
    group_weights,
    interval,
)
from shards.ranks import Ranks
from shards.store import FeatureStore

TOKENS, WIDTH = 6, 5
STATISTICS = Statistics(torch.zeros(TOKENS, WIDTH), torch.ones(WIDTH), torch.zeros(WIDTH))


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def alignment(noise: torch.Tensor, teacher: torch.Tensor) -> Alignment:
    found = Alignment(STATISTICS, num_clips=len(teacher), cka_positions=2)
    found.update(torch.arange(len(teacher)), teacher + noise, teacher)
    return found


@pytest.fixture
def teacher() -> torch.Tensor:
    return normal(20, TOKENS, WIDTH, seed=0)


def test_scores_stand_in_the_order_of_the_clips(store: FeatureStore) -> None:
    """Groups are joined to scores by place: any order of clips, any tokens, every candidate."""
    indices = [17, 3, 8, 21, 4]
    layouts = {"student": store.layout("student"), "targets": {"teacher": store.layout("teacher")}}
    converter = set_normalisers(create_converter("constant", **layouts), store)  # type: ignore[arg-type]
    positions = torch.tensor([0, 5, 8])
    scores = score(store, indices, {"mean": [Candidate(converter)]}, ranks=Ranks(), positions={"teacher": positions})
    stats = store.statistics("teacher")
    tokens = torch.stack([store[index]["teacher"] for index in indices])
    energy = ((tokens - stats["mean"]) / stats["scale"])[:, positions].double().square().sum((1, 2))
    found = scores["mean"]["teacher"]
    assert torch.allclose(found.clips[:, CENTRED], energy, rtol=1e-5)
    assert found.compute()["r2c"] == pytest.approx(0, abs=1e-6)


def test_two_ranks_tell_what_one_tells(store: FeatureStore) -> None:
    """All metrics, each rank over its own clips: a sum that was left out would halve them."""
    layouts = {"student": store.layout("student"), "targets": {"teacher": store.layout("teacher")}}
    converter = set_normalisers(create_converter("linear", **layouts), store)  # type: ignore[arg-type]
    indices = list(range(len(store)))

    def told(ranks: Ranks) -> dict[str, float]:
        scores = score(store, indices, {"x": [Candidate(converter)]}, ranks=ranks, cka_positions=4)
        return scores["x"]["teacher"].compute()

    alone = told(Ranks())
    assert set(alone) == set(METRICS) and sum(value == value for value in alone.values()) >= 8
    for each in together(2, told):
        assert each == pytest.approx(alone, abs=1e-6, nan_ok=True)


def test_space_digest_follows_the_statistics_of_the_targets(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = space_digest(store, ["teacher"])
    assert digest == space_digest(store, ["teacher"]) != space_digest(store, ["student"])
    found = {name: tensor.clone() for name, tensor in store.statistics("teacher").items()}
    found["scale"][1] *= 2
    monkeypatch.setattr(store, "statistics", lambda name: found)
    assert space_digest(store, ["teacher"]) != digest


def test_gain_is_the_difference_of_r2c_on_the_same_resamples(teacher: torch.Tensor) -> None:
    """By hand: each resample scores both converters on the same groups."""
    groups = [f"g{clip // 2}" for clip in range(20)]
    noises = [scale * normal(20, TOKENS, WIDTH, seed=1) for scale in (0.5, 0.6)]
    weights = group_weights(groups, resamples=300)
    found = paired_gain(*(alignment(noise, teacher) for noise in noises), weights)
    errors = [noise.double().square().sum((1, 2)) for noise in noises]
    spread = teacher.double().square().sum((1, 2))
    assert found["value"] == pytest.approx(float((errors[1].sum() - errors[0].sum()) / spread.sum()), abs=1e-6)
    differences = (weights @ errors[1] - weights @ errors[0]) / (weights @ spread)
    low, high = differences.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-6)


def test_pairing_sees_what_unpaired_intervals_hide(teacher: torch.Tensor) -> None:
    """Clips differ a lot in difficulty, the converters by little everywhere: intervals overlap, the gain is sure."""
    groups = [f"g{clip}" for clip in range(20)]
    hard = torch.logspace(-1, 0, 20)[:, None, None] * normal(20, TOKENS, WIDTH, seed=2)
    ours, other = alignment(hard, teacher), alignment(1.02 * hard, teacher)
    weights = group_weights(groups, resamples=1000)
    summary = summarise(
        {"converter": {"x": ours}, "ridge": {"x": other}}, converter="converter", groups=groups, resamples=1000
    )
    gain = summary["gain"]["x"]
    assert gain == paired_gain(ours, other, weights) == summary["above"]["ridge"]["x"]
    assert 0 < gain["low"] < gain["value"] < gain["high"]
    low, _ = summary["intervals"]["x"]["r2c"]
    assert low < summary["floors"]["ridge"]["x"]["r2c"]
    same = paired_gain(ours, ours, weights)
    assert same == {"value": 0, "low": 0, "high": 0}


def test_intervals_are_wider_where_clips_share_groups(teacher: torch.Tensor) -> None:
    """20 clips in 5 groups that are alike within are no 20 clips."""
    hard = (torch.arange(20) // 4 + 1)[:, None, None] * 0.2 * normal(20, TOKENS, WIDTH, seed=3)
    widths = []
    for size in (1, 4):
        groups = [f"g{clip // size}" for clip in range(20)]
        scores = {"converter": {"x": alignment(hard, teacher)}}
        low, high = summarise(scores, converter="converter", groups=groups, resamples=2000)["intervals"]["x"]["r2c"]
        widths.append(high - low)
    assert widths[1] > 1.3 * widths[0]


def test_summary_has_every_metric_and_is_json(teacher: torch.Tensor) -> None:
    scores = {
        name: {"x": alignment(noise * normal(3, TOKENS, WIDTH, seed=4), teacher[:3])}
        for name, noise in (("mean", 1.0), ("converter", 0.1))
    }
    summary = summarise(scores, converter="converter", groups=["a", "b", "b"], resamples=50)
    assert set(summary["targets"]["x"]) == set(METRICS) and set(summary["floors"]) == {"mean"}
    assert summary["targets"]["x"]["cka"] is None  # three clips are too few
    assert set(summary["intervals"]["x"]) == set(METRICS) - set(SIMILARITIES)
    assert summary["gain"] == {} and summary["references"] == {} and summary["lead"] == {}
    assert {summary["marks"]["x"][name] for name in ("r2c", "rank_recovery")} == {"3 test clips, 8 needed"}
    json.dumps(summary, allow_nan=False)


def test_the_lead_is_that_over_each_rival_on_the_same_clips(teacher: torch.Tensor) -> None:
    near, far = (alignment(noise * normal(20, TOKENS, WIDTH, seed=4), teacher) for noise in (0.1, 0.5))
    groups = [f"g{clip}" for clip in range(20)]
    found = summarise({"a": {"x": near}}, converter="a", groups=groups, resamples=50, rivals={"b": {"x": far}})
    weights = group_weights(groups, resamples=50)
    assert found["lead"] == {"b": {"x": paired_gain(near, far, weights)}}
    assert found["lead"]["b"]["x"]["low"] > 0 and "b" not in found["floors"]


def test_what_stands_beside_is_compared_on_the_same_clips(teacher: torch.Tensor) -> None:
    """Every floor and reference, but for one that was scored on some of the clips only."""
    ours, floor, whole = (alignment(noise * normal(20, TOKENS, WIDTH, seed=4), teacher) for noise in (0.3, 0.5, 0.1))
    part = alignment(0.1 * normal(10, TOKENS, WIDTH, seed=4), teacher[:10])
    groups, beside = [f"g{clip}" for clip in range(20)], {"whole": {"x": whole}, "part": {"x": part}}
    scores = {"converter": {"x": ours}, "pixels": {"x": floor, "y": floor}}
    found = summarise(scores, converter="converter", groups=groups, resamples=50, references=beside)
    assert set(found["floors"]) == {"pixels"} and set(found["references"]) == {"whole", "part"}
    weights = group_weights(groups, resamples=50)
    pairs = {"pixels": {"x": paired_gain(ours, floor, weights)}, "whole": {"x": paired_gain(ours, whole, weights)}}
    assert found["above"] == pairs | {"part": {}}
    assert found["above"]["pixels"]["x"]["low"] > 0 > found["above"]["whole"]["x"]["high"]


@pytest.mark.parametrize(("groups", "low", "high"), [(3, 0.70, 0.80), (5, 0.80, 0.87), (8, 0.86, 0.90)])
def test_intervals_of_few_groups_are_too_narrow(groups: int, low: float, high: float) -> None:
    """Why numbers of fewer than MINIMUM_GROUPS are marked: how often a 95% interval holds the true difference, 0."""
    assert groups < MINIMUM_GROUPS
    assert low < coverage(groups) < high < 0.9001 < coverage(MINIMUM_GROUPS)


def coverage(groups: int, repeats: int = 2000) -> float:
    weights = group_weights([str(group) for group in range(groups)], resamples=1000) / groups
    means = normal(repeats, groups, seed=groups).double() @ weights.T
    ends = [interval(row) for row in means]
    return sum(low <= 0 <= high for low, high in ends) / repeats


def test_marks() -> None:
    assert few_clips(100, 10, width=10) == {}
    assert few_clips(99, 10, width=10) == {
        "knn": "99 test clips, 100 needed",
        "procrustes": "99 test clips, 100 needed",
        "probe_agreement": "99 test clips, 100 needed",
    }
    few = dict.fromkeys((*METRICS, "rank_recovery"), "7 test clips, 8 needed")
    assert few_clips(7, 7, width=2) == few | {
        "knn": "7 test clips, 100 needed",
        "probe_agreement": "7 test clips, 100 needed",
        "procrustes": "7 test clips, 20 needed",
    }
    assert few_clips(20, 9, width=1)["r2c"] == "9 test groups, too few for an interval"
    assert finite({"a": float("nan"), "b": float("inf"), "c": 0.5}) == {"a": None, "b": None, "c": 0.5}


def test_statistics_at_some_tokens() -> None:
    statistics = Statistics(normal(TOKENS, WIDTH, seed=5), torch.ones(WIDTH), torch.zeros(WIDTH))
    assert at(statistics, None) is statistics
    assert torch.equal(at(statistics, torch.tensor([1, 4])).mean, statistics.mean[[1, 4]])
