"""recipe=oracle: the store that is drawn, the optimum in the metrics' units, and regret in summary and table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distill import run
from distill.deficiency import Dials
from distill.fields import falling
from distill.oracle_store import KINDS, make_oracle, oracle_features, reached
from distill.oracles import FieldOracle, NonlinearOracle, RetrievalOracle
from shards import FeatureStore, precompute
from shards.ranks import Ranks

ASKED: dict[str, Any] = {
    **{"kind": "field", "size": "tiny", "noise": 0.5, "decay": None, "degrees": [2], "reach": 0.1},
    **{"val": 4, "test": 6},
}
TINY = ["recipe=oracle", "oracle.val=20", "oracle.test=40", "evaluate.floors=[mean,ridge]", "evaluate.bootstrap=200"]
TINY += ["converter.options={width: 96, heads: 1, latents: 32}", "train.batch=8", "train.validate_every=400"]


def draw(path: Path, *, clips: int, **changed: Any) -> FeatureStore:
    asked = ASKED | changed
    told: list[str] = []
    options = {"seed": 3, "codec": "fp16", "target": "teacher", "floors": ["ridge"], "ranks": Ranks()}
    features = oracle_features(asked, path=str(path), clips=clips, say=told.append, **options)
    assert features.layouts["teacher"].grid == (4, 7, 7)
    return features.extract()


def test_the_store_holds_what_the_oracle_draws_and_more_clips_change_none(tmp_path: Path) -> None:
    few, many = draw(tmp_path / "few", clips=60), draw(tmp_path / "many", clips=70)
    assert [len(few.indices(split)) for split in ("train", "val", "test")] == [60, 4, 6]
    for split in ("train", "val", "test"):
        for a, b in zip(few.indices(split), many.indices(split), strict=False):
            for column in ("student", "teacher"):
                assert torch.equal(few[a][column], many[b][column])
    firsts = [many[many.indices(split)[0]]["student"] for split in ("train", "val", "test")]
    assert not any(torch.equal(firsts[0], other) for other in firsts[1:]), "no split holds another's clips"
    oracle = make_oracle(ASKED, seed=3)
    assert isinstance(oracle, FieldOracle)
    student = torch.stack([many[index]["student"] for index in many.indices("train")])
    teacher = torch.stack([many[index]["teacher"] for index in many.indices("train")])
    assert float(student.var(0).mean()) == pytest.approx(16 / 64 + 0.25, rel=0.1)
    error = (oracle.bayes(student) - teacher).square().sum() / teacher.square().sum()
    assert 1 - float(error) == pytest.approx(oracle.bayes_r2(), abs=0.01), "each student belongs to its teacher"
    assert not torch.equal(student[0], student[50]), "chunks differ"


def test_another_oracles_store_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "store", clips=10)
    before = (tmp_path / "store" / "manifest.json").read_text()
    draw(tmp_path / "store", clips=10)
    assert (tmp_path / "store" / "manifest.json").read_text() == before
    for other in ({"noise": 0.6}, {"test": 7}):
        with pytest.raises(ValueError, match="made otherwise"):
            draw(tmp_path / "store", clips=10, **other)


def test_every_kind_is_made_as_asked() -> None:
    for kind, expected in KINDS.items():
        oracle = make_oracle(ASKED | {"kind": kind}, seed=1)
        assert isinstance(oracle, expected) and oracle.noise == 0.5 and oracle.seed == 1
    assert make_oracle(ASKED | {"kind": "routed"}, seed=0).reach == (0.1, 0.1, 0.1)  # type: ignore[attr-defined]
    assert make_oracle(ASKED | {"kind": "nonlinear", "degrees": [1, 2]}, seed=0).degrees == (1, 2)  # type: ignore[attr-defined]
    medium = make_oracle(ASKED | {"size": "medium"}, seed=0)
    assert medium.channels == 128 and medium.decay == 1.0  # type: ignore[attr-defined]
    assert make_oracle(ASKED | {"size": "medium", "decay": 0.5}, seed=0).decay == 0.5  # type: ignore[attr-defined]


VARIED: dict[str, Any] = {"channels": 12, "factors": falling(2.0, 0.5, 12), "decay": 1.5, "noise": 0.6}


@pytest.mark.parametrize("make", [FieldOracle, RetrievalOracle, NonlinearOracle])
def test_the_standardised_optimum_weighs_every_channel_alike(make: Any) -> None:
    """Channel by channel: the mean of each one's own R2."""
    oracle = make(**VARIED) if make is not NonlinearOracle else make(**VARIED, degrees=(1, 2))
    fields = oracle.reliability().mean(dim=1)
    if make is NonlinearOracle:
        fields = (fields + oracle.reliability().square().mean(dim=1)) / 2
    known = oracle.reading.double().square() @ fields
    if make is RetrievalOracle:
        known = known + oracle.values.double().square().sum(1)
    expected = float((known / oracle.variance()).mean())
    assert oracle.bayes_r2(standardised=True) == pytest.approx(expected, rel=1e-9)
    assert abs(oracle.bayes_r2() - expected) > 1e-3
    _, teacher = oracle.sample(300, torch.Generator().manual_seed(1))
    assert torch.allclose(teacher.double().square().mean((0, 1)), oracle.variance(), rtol=0.25)


def test_the_standardised_optimum_of_a_rank_is_that_of_samples() -> None:
    oracle = FieldOracle(**VARIED)
    student, teacher = oracle.sample(200, torch.Generator().manual_seed(2))
    best, truth = (tokens.double() / oracle.variance().sqrt() for tokens in (oracle.bayes(student), teacher))
    rows = best.flatten(0, 1)
    leading = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -3:]
    r2 = 1 - float((best @ leading @ leading.T - truth).square().sum() / truth.square().sum())
    assert oracle.bayes_r2(3, standardised=True) == pytest.approx(r2, abs=0.01)
    assert oracle.bayes_r2(12, standardised=True) == pytest.approx(oracle.bayes_r2(standardised=True))


def test_regret_by_hand() -> None:
    oracle = FieldOracle()
    bayes = oracle.bayes_r2(standardised=True)
    summary = {
        "targets": {"teacher": {"r2": 0.5}},
        "intervals": {"teacher": {"r2": [0.4, None]}},
        "floors": {"mean": {"teacher": {"r2": 0.0}}, "twin": {"teacher": {"r2": bayes}}},
    }
    found = reached(summary, oracle, dials=Dials("low_rank", 1.0, 9, rank=3))
    own = oracle.bayes_r2(3, standardised=True)
    assert found["bayes_r2"] == own < found["bayes_r2_of_any_rank"] == bayes
    assert found["regret"]["teacher"] == {"value": 0.5 / (1 - own), "low": None, "high": 0.6 / (1 - own)}
    assert reached(summary, oracle, dials=None)["bayes_r2"] == bayes
    assert found["floors"] == {"mean": {"teacher": 1 / (1 - bayes)}, "twin": {"teacher": 1.0}}


def test_a_run_gets_where_no_linear_map_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The gate of quality through the command: linear maps score 0 on squares."""
    monkeypatch.chdir(tmp_path)
    words = [*TINY, "oracle=nonlinear", "data.clips=400", "train.steps=160", "train.lr=6e-3", "run.name=run"]
    assert run.main(words) == 0
    summary = json.loads((tmp_path / "runs/oracle/run/summary.json").read_text())
    told = summary["oracle"]
    assert told["bayes_r2"] == pytest.approx(0.942, abs=1e-3)
    assert told["floors"]["ridge"]["teacher"] == pytest.approx(17.3, abs=1)
    regret = told["regret"]["teacher"]
    assert 1 < regret["low"] < regret["value"] < regret["high"] < 0.75 * told["floors"]["ridge"]["teacher"]
    assert summary["references"] == {"bayes": {"teacher": dict.fromkeys(("r2c", "r2"), told["bayes_r2"])}}
    assert regret["value"] == pytest.approx((1 - summary["targets"]["teacher"]["r2"]) / (1 - told["bayes_r2"]))
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "regret" in line)
    assert line.startswith("perceiver: regret (1 - R2) / (1 - R2 of Bayes, 0.942) is ") and "ridge 17." in line
    assert "bayes (reference)" in out and "perceiver is better than mean, ridge" in out
    assert "stand-ins" not in out and "features: as they are in features/oracle/" in out


def test_a_hard_rank_is_held_against_eckart_and_young(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*TINY, "oracle=reduced_rank", "deficiency.rank=3", "data.clips=100", "train.steps=4", "run.name=run"]
    assert run.main(words) == 0
    told = json.loads((tmp_path / "runs/oracle/run/summary.json").read_text())["oracle"]
    oracle = FieldOracle(decay=1.5)
    assert told["bayes_r2"] == pytest.approx(oracle.bayes_r2(3, standardised=True))
    assert told["bayes_r2_of_any_rank"] == pytest.approx(oracle.bayes_r2(standardised=True))
    assert 1 < told["regret"]["teacher"]["value"] < 2 and told["floors"]["twin"]["teacher"] > 1


def test_what_an_oracle_lacks_is_said_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["recipe=oracle", "evaluate.floors=[pixels,ridge]", "data=demo"]) == 2
    assert "data=demo and oracle.kind=field: data=oracle and an oracle need each other" in capsys.readouterr().err
    assert run.main(["recipe=oracle", "evaluate.floors=[pixels,ridge]"]) == 2
    assert "an oracle has none; set evaluate.floors=[ridge]" in capsys.readouterr().err
    assert precompute.main(["recipe=oracle"]) == 1
    assert "the run itself draws its tokens" in capsys.readouterr().err
