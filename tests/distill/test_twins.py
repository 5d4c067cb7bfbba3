"""Deficient converters and their twins: who is whose, masks in scores, and differences."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from converters import Converter, create_converter
from distill.deficiency import Dials
from distill.evaluate import Candidate, score
from distill.floors import MAIN, Floors, plain
from distill.metrics import group_weights
from distill.twins import MASKS, Masked, deficiencies, differences, masked, with_masks
from shards.ranks import Ranks
from shards.store import FeatureStore

MASKING = Dials(kind="masking", strength=1.0, steps=10, ratio=0.5)


OPTIONS = {"width": 16, "blocks": 1, "states": 4, "samples": 4}


def made(store: FeatureStore, family: str = "mamba", **settings: Any) -> Converter:
    layouts = {"student": store.layout("student"), "targets": {"teacher": store.layout("teacher").keeping(["cls"])}}
    settings = {"options": OPTIONS if family == "mamba" else None} | settings
    return create_converter(family, **layouts, **settings)


def test_a_twin_is_a_contestant_or_trained_for_all_who_are_the_same(store: FeatureStore) -> None:
    more = {"options": OPTIONS | {"states": 2}}
    contestants = {
        "low": made(store, rank=2),
        "whole": made(store),
        "blind": made(store, mask_token=True),
        "wide": made(store, rank="full", **more),
        "wide too": made(store, **more),
        "alone": made(store, "linear", mask_token=True),
    }
    deficient = [name for name in contestants if name != "whole"]
    floors = Floors(contestants, store, asked=["ridge"], seed=0, ranks=Ranks(), deficient=deficient)
    wide, alone = "wide/twin", "alone/twin"
    assert floors.twins() == {"low": "whole", "blind": "whole", "wide": wide, "wide too": wide, "alone": alone}
    assert list(floors.trained) == [*contestants, wide, alone] and list(floors.candidates())[-3:] == [
        "ridge",
        wide,
        alone,
    ]
    assert floors.part("low", {"low": 1, "whole": 2, wide: 3}) == {MAIN: 1, "twin": 2}
    assert floors.part("whole", {"low": 1, "whole": 2}) == {MAIN: 2}
    twin, new = floors.trained[wide], made(store, **more)
    assert twin.rank is None and twin.mask_token is None and json.dumps(plain(twin)) == json.dumps(new.config())
    start = {key: value for key, value in new.state_dict().items() if key.startswith("branch.")}
    assert start and all(torch.equal(twin.state_dict()[key], value) for key, value in start.items()), "another draw"
    ridge = floors.candidates()["ridge"][0].converter.skips["teacher"].state_dict()
    assert all(torch.equal(twin.skips["teacher"].state_dict()[key], value) for key, value in ridge.items())


def test_a_lone_run_s_twin(store: FeatureStore) -> None:
    floors = Floors({MAIN: made(store)}, store, asked=[], seed=0, ranks=Ranks(), deficient=[MAIN])
    assert floors.twins() == {MAIN: "twin"} and list(floors.trained) == [MAIN, "twin"]
    assert Floors({MAIN: made(store)}, store, asked=[], seed=0, ranks=Ranks()).twins() == {}


def test_a_masked_candidate_does_not_see_what_is_hidden(store: FeatureStore) -> None:
    layout = store.layout("student")
    converter = made(store, "linear", mask_token=True)
    with torch.no_grad():
        for parameter in converter.parameters():
            parameter.fill_(0.3)
    mask = torch.arange(layout.num_tokens) % 2 == 0
    candidate, x = Masked(converter, mask), torch.randn(2, *layout.shape)
    other = x.clone()
    other[:, mask] = 7
    assert torch.equal(candidate(x)["teacher"], candidate(other)["teacher"])
    assert not torch.equal(candidate(x)["teacher"], converter(x)["teacher"]) and candidate.targets is converter.targets


def test_masks_are_averaged_and_paired_with_what_sees_all(store: FeatureStore) -> None:
    contestants = {"blind": made(store, "linear", mask_token=True), "whole": made(store, "linear")}
    floors = Floors(contestants, store, asked=[], seed=0, ranks=Ranks(), deficient=["blind"])
    with torch.no_grad():
        contestants["blind"].mask_token.fill_(0.5)  # type: ignore[union-attr]
        contestants["whole"].skips["teacher"].maps["grid"].weight.mul_(0.9)
    dials, test = {"blind": MASKING, "whole": None}, store.indices("test")
    candidates = {name: [Candidate(converter)] for name, converter in contestants.items()}
    hidden = with_masks(contestants, dials)
    scores = score(store, test, candidates | dict(hidden), ranks=Ranks())
    groups = [store.groups[index] for index in test]
    found = deficiencies(floors, dials, scores, groups=groups, resamples=50)["blind"]
    assert found is not None and list(hidden) == [masked("blind", number) for number in range(MASKS)]

    weights = torch.cat([torch.ones(1, len(test)), group_weights(groups, resamples=50)])
    table = {name: at["teacher"].resampled(weights)["r2c"] for name, at in scores.items()}
    on = torch.stack([table[name] for name in hidden])
    mask, change = found["targets"]["teacher"]["mask"], found["from_twin"]["teacher"]
    assert len({float(value) for value in on[:, 0]}) > 1, "the masks are the same"
    assert mask["on"] == pytest.approx(float(on[:, 0].mean())) and mask["deviation"] == pytest.approx(
        float(on[:, 0].std())
    )
    assert mask["off"] == pytest.approx(float(table["blind"][0])) and mask["masks"] == MASKS
    pairs = {
        "difference": (mask["difference"], on.mean(0) - table["blind"]),
        "r2c": (change["r2c"], table["blind"] - table["whole"]),
        "r2c_masked": (change["r2c_masked"], on.mean(0) - table["whole"]),
    }
    for name, (told, values) in pairs.items():
        assert told["value"] == pytest.approx(float(values[0])), name
        low, high = torch.quantile(values[1:], torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
        assert (told["low"], told["high"]) == pytest.approx((low, high)), name
    assert (found["kind"], found["amounts"], found["twin"]) == ("masking", {"mask_ratio": 0.5}, "whole")


def left(k: int, converted: float, half: float, jacobian: float | None, error: float | None) -> dict[str, Any]:
    return {
        "rank_recovery": {"k": k},
        "effective_rank": {"converted": converted, "of_half": {"converted": half}},
        "jacobian": {"value": jacobian, "standard_error": error},
    }


def test_differences_are_ours_less_the_twin_s() -> None:
    found = differences(left(3, 2.5, 2.0, 0.5, 0.3), left(7, 6.0, 5.0, 0.75, 0.4))
    assert found == {
        "k": {"value": -4},
        "effective_rank": {"value": -3.5, "of_half": -3.0},
        "jacobian": {"value": -0.25, "standard_error": 0.5},
    }
    unknown = differences(left(3, 2.5, 2.0, None, None), left(7, 6.0, 5.0, 0.75, 0.4))
    assert unknown["jacobian"] == {"value": None, "standard_error": None}
