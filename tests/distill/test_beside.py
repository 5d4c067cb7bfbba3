"""What learns beside the converter for the sake of comparison: tuned MLPs, a large one, one on wrong pairs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from waves import CLIPS

from converters import Converter, create_converter
from distill import run
from distill.floors import CONTROL, LARGE, MAIN, MLP, Floors
from distill.large import ENOUGH, GROWTH, enlarged
from distill.pairs import WRONG, PairedReader, training_stream
from shards.ranks import Ranks
from shards.store import FeatureStore
from teachers.layout import TokenLayout

OPTIONS = {
    "perceiver": {"width": 16, "latents": 4, "heads": 2, "blocks": 1},
    "dsconv": {"width": 16, "blocks": 1},
    "mamba": {"width": 16, "blocks": 1},
    "tokenlearner": {"width": 16, "tokens": 4, "heads": 2, "blocks": 1},
}


def converter(store: FeatureStore, family: str = "perceiver", **words) -> Converter:
    layouts = {"student": store.layout("student"), "targets": {"teacher": store.layout("teacher")}}
    return create_converter(family, **layouts, options=OPTIONS.get(family, {}), **words)


def summary_of(tiny: list[str], *words: str) -> dict:
    assert run.main([*tiny, "run.name=one", *words]) == 0
    folder = next(word for word in tiny if word.startswith("run.dir=")).removeprefix("run.dir=")
    return json.loads((Path(folder) / "one" / "summary.json").read_text())


# --- the MLP's rate


def test_the_mlp_of_the_rate_that_is_best_on_val_stands_in_the_report(store: FeatureStore) -> None:
    made = Floors({"a": converter(store)}, store, asked=[MLP], seed=0, rates=[1.0, 0.3, 3.0], ranks=Ranks())
    assert list(made.trained) == ["a", "mlp", "mlp@0.3", "mlp@3"]
    assert [made.rate(label) for label in made.trained] == [1, 1, 0.3, 3]
    assert {made.queries(label, 9) for label in made.trained} == {9, 128}
    weights = [made.trained[label].state_dict() for label in ("mlp", "mlp@0.3", "mlp@3")]
    assert all(torch.equal(one, other) for one, other in zip(weights[0].values(), weights[2].values(), strict=True))
    assert set(made.part("a", dict.fromkeys(made.trained))) == {MAIN, "mlp", "mlp@0.3", "mlp@3"}, "all are saved"
    best = made.trained["mlp@3"]
    made.tune({"a": 0.9, "mlp": 0.1, "mlp@0.3": math.nan, "mlp@3": 0.2})
    assert made.tuned == {"mlp": 3} and made.trained["mlp"] is best
    assert list(made.candidates()) == ["a", "mlp"] and made.candidates()["mlp"][0].converter is best


def test_contestants_that_share_an_mlp_tune_it_once(store: FeatureStore) -> None:
    both = {"a": converter(store), "b": converter(store, seed=1), "c": converter(store, "dsconv")}
    made = Floors(both, store, asked=[MLP], seed=0, rates=[1.0, 3.0], ranks=Ranks())
    second = made.trained["c/mlp@3"]
    made.tune(dict.fromkeys(both, 1.0) | {"a/mlp": 0.5, "a/mlp@3": 0.2, "c/mlp": 0.1, "c/mlp@3": 0.3})
    assert made.tuned == {"a/mlp": 1, "c/mlp": 3} and made.trained["c/mlp"] is second


def test_a_run_says_which_rate_was_chosen(tiny: list[str]) -> None:
    words = ["evaluate.floors=[mlp]", "evaluate.references=[]", "evaluate.mlp_rates=[0.001,30]", "train.steps=30"]
    summary = summary_of(tiny, *words)
    assert summary["mlp_rate"] in (0.001, 30) and list(summary["floors"]) == ["mlp"]
    folder = Path(next(word for word in tiny if word.startswith("run.dir=")).removeprefix("run.dir=")) / "one"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    on_val = {line["converter"]: line["value"] for line in lines if "weights" in line and "converter" in line}
    assert set(on_val) == {"mlp", "mlp@30"}
    assert summary["mlp_rate"] == (0.001 if on_val["mlp"] >= on_val["mlp@30"] else 30)
    losses = {name: [line["value"] for line in lines if line["metric"] == f"loss_of_{name}"] for name in on_val}
    assert abs(losses["mlp"][-1] - losses["mlp"][5]) < abs(losses["mlp@30"][-1] - losses["mlp@30"][5]), "it moves less"


# --- large


@pytest.mark.parametrize("family", OPTIONS)
def test_a_large_one_is_of_the_same_family_and_many_times_the_size(store: FeatureStore, family: str) -> None:
    own = converter(store, family)
    made = Floors({"a": own}, store, asked=[LARGE], seed=0, ranks=Ranks())
    large = made.trained[LARGE]
    assert large.family == family and large.num_parameters() >= GROWTH * own.num_parameters()
    options, ours = (each.config()["options"] for each in (large, own))
    assert options["width"] % ours["width"] == 0 and options["blocks"] == 2 * ours["blocks"]
    assert torch.equal(
        large.skips["teacher"].state_dict()["maps.grid.weight"], own.skips["teacher"].maps["grid"].weight
    )


def test_a_large_one_that_is_not_so_large_says_it(store: FeatureStore, caplog: pytest.LogCaptureFixture) -> None:
    """Most of its parameters are the skip to a wide target, which does not grow."""
    own = create_converter(
        "dsconv", student=store.layout("student"), targets={"x": TokenLayout((2, 3, 3), 8192)}, options={"width": 4}
    )
    grown = enlarged(own, own.config()).num_parameters() / own.num_parameters()
    assert grown < GROWTH and f"large: dsconv has but {grown:.1f} times the parameters at 32 times" in caplog.text


def test_a_large_one_has_some_50_million_at_full_geometry() -> None:
    student, target = TokenLayout((8, 16, 16), 1024), TokenLayout((8, 14, 14), 768)
    own = create_converter("perceiver", student=student, targets={"videomae": target})
    assert ENOUGH <= enlarged(own, own.config()).num_parameters() < 1.4 * ENOUGH


def test_a_family_without_a_width_has_no_large_one(store: FeatureStore) -> None:
    with pytest.raises(ValueError, match="linear has no width that `large` could multiply"):
        Floors({"a": converter(store, "linear")}, store, asked=[LARGE], seed=0, ranks=Ranks())


def test_a_run_has_large_among_its_references(tiny: list[str]) -> None:
    summary = summary_of(tiny, "evaluate.floors=[ridge]", "evaluate.references=[large]", "train.steps=3")
    assert list(summary["references"]) == ["large"] and list(summary["floors"]) == ["ridge"]
    assert summary["equivalent_pixels"] == {}


# --- the control


def test_wrong_answers_are_those_of_other_groups(store: FeatureStore) -> None:
    """Of the same clips, in the order of the right stream."""
    words = {"targets": ["teacher"], "batch": 4, "seed": 0, "accumulation": 2, "ranks": Ranks()}
    plain, seen = training_stream(store, wrong=False, **words), set()
    with training_stream(store, wrong=True, **words) as paired:
        assert isinstance(paired, PairedReader)
        for batch, expected in zip(paired.steps(3, 9), plain.steps(3, 9), strict=True):
            assert batch["keys"] == expected["keys"] and torch.equal(batch["teacher"], expected["teacher"])
            for index, answer in zip(batch["indices"].tolist(), batch[WRONG]["teacher"], strict=True):
                whose = [n for n in range(CLIPS) if torch.allclose(store[n]["teacher"], answer, atol=1e-3)]
                assert len(whose) == 1 and store.groups[whose[0]] != store.groups[index]
                assert store.clips[whose[0]]["split"] == "train"
                seen.add(index)
    assert len(seen) > 8
    plain.close()


def test_a_converter_of_wrong_pairs_tells_nothing(tiny: list[str]) -> None:
    words = ["evaluate.floors=[ridge]", "evaluate.references=[]", "evaluate.controls=full", "train.steps=30"]
    floors = summary_of(tiny, *words)["floors"]
    assert set(floors) == {"ridge", CONTROL}
    assert floors["ridge"]["videomae"]["r2c"] > 0.5
    assert abs(floors[CONTROL]["videomae"]["r2c"]) < 0.2
