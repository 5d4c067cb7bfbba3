"""A manifest that says other than its store: every entry that something can contradict, and none that is right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.claims import false_claims
from shards.manifest import Manifest
from shards.sources import Video
from shards.store import FeatureStore
from shards.verify import problems_of
from shards.videos import make_clips


@pytest.fixture
def root(tmp_path: Path, tiny) -> Path:
    """A clip that was refused, and a column for four clips."""
    tiny.extract(tmp_path / "store", render=tiny.broken(1))
    covers = {"vivit": {f"{number:06d}-abc" for number in (0, 1, 2, 5)}}
    tiny.extract(tmp_path / "store", columns={"vivit": tiny.backbone(3)}, covers=covers)
    return tmp_path / "store"


@pytest.fixture
def whole(tmp_path: Path, tiny) -> Path:
    """Every clip is there."""
    tiny.extract(tmp_path / "store")
    return tmp_path / "store"


def claims(root: Path, change: Callable[[dict[str, Any]], object]) -> list[str]:
    path = root / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    found = list(false_claims(root, Manifest.read(root)))
    assert list(problems_of(root))[: len(found)] == found
    return found


def coverage(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda d: d["columns"]["vivit"]["coverage"].update(values)


LIES = [
    (lambda d: d.update(labels=["jump", "runs"]), "labels lacks 'run', which clips have"),
    (lambda d: d["labels"].extend(["x", "y"]), "labels has 'x', 'y', which no clip has"),
    (lambda d: d["labels"].reverse(), "labels is not sorted, or has one twice: 'run', 'jump'"),
    (lambda d: d["refused"].update(clips=7), "refused.clips is 7, not 1"),
    (lambda d: d["refused"].update(first={"000001-abc": "x"}), "refused.first has clip '000001-abc' (x), which no"),
    (lambda d: d["refused"].update(first={"000002-abc": []}), "refused.first has clip '000002-abc' ([]), which no"),
    (lambda d: d["refused"].update(first=3), "refused.first is 3, not keys with reasons"),
    (coverage(clips=4), "columns.vivit.coverage.clips is 4, not 3"),
    (coverage(refused=5), "columns.vivit.coverage.refused is 5, not 1"),
    (coverage(uncovered=2), "columns.vivit.coverage.uncovered is 2, not 6 to 7"),
    (lambda d: d["digests"].update(split="0" * 64), "digests.split is 000000000000, but student/stats.safetensors is"),
    (lambda d: d["digests"].update(view="1" * 64), "digests.view is 111111111111, not "),
    (lambda d: d["view"].update(clip_seconds=3.0), "digests.view is "),
    (lambda d: d["view"].update(clip_seconds=float("nan")), "digests cannot be compared"),
    (lambda d: d["partition"].update(keys="2" * 64), "partition.keys is 222222222222, not "),
    (lambda d: d["partition"].update(clips=11), "partition.clips is 11, not 10"),
]


@pytest.mark.parametrize(("lie", "said"), LIES, ids=[said for _, said in LIES])
def test_a_lie_is_named(root: Path, lie, said: str) -> None:
    assert not claims(root, lambda d: None)
    found = claims(root, lie)
    assert found and all(sentence.startswith("manifest.json: ") for sentence in found) and said in found[0]


def test_all_at_once(root: Path) -> None:
    def lie(document: dict[str, Any]) -> None:
        document["labels"] = ["jumq", "run"]
        document["refused"] = {"clips": 7, "first": {}}
        document["columns"]["student"]["coverage"].update(refused=5, uncovered=3)
        document["digests"].update(split="0" * 64)

    fields = ("labels", "refused.clips", "student.coverage.refused", "student.coverage.uncovered", "digests.split")
    found = "\n".join(claims(root, lie))
    assert all(name in found for name in fields)


def test_digests_of_a_whole_store_are_computed_again(whole: Path) -> None:
    assert not claims(whole, lambda d: None)
    for name in ("split", "data"):
        sound = (whole / "manifest.json").read_text()
        found = claims(whole, lambda d, name=name: d["digests"].update({name: "0" * 64}))
        assert found[0].startswith(f"manifest.json: digests.{name} is 000000000000, not "), found
        (whole / "manifest.json").write_text(sound)


def test_what_is_unfinished_claims_nothing(root: Path) -> None:
    """A column of a pass that was killed may refuse more than the manifest counts."""

    def lie(document: dict[str, Any]) -> None:
        document["columns"]["vivit"]["coverage"] = {"complete": False}
        document["refused"] = {"clips": 0, "first": {}}

    assert not claims(root, lie)


@pytest.mark.parametrize("late", [False, True])
def test_spans_that_were_given_belong_to_the_data(tmp_path: Path, tiny, late: bool) -> None:
    """One clip has a span of its own; where that was cut at the video's end, the data's digest cannot be held to it."""
    videos = [Video(f"{n}.mp4", f"{n}.mp4", f"{n}", 10 + n, label="ab"[n % 2]) for n in range(6)]
    videos[2].start, videos[2].end = 1.0, 2.5
    found = make_clips(videos, [], clips_per_video=2)

    def render(clip: Any) -> Any:
        seen = {"start": clip.start or 0.0, "end": 2.25 if late else clip.end or 2.0}
        _, views = tiny.render(tiny.clips(1)[0])
        return {"source": clip.name, "size": clip.size, "view": seen}, views

    view = {"clip_seconds": 2.0, "clips_per_video": 2}
    tiny.extract(tmp_path, clips=found.clips, render=render, view=view)
    assert len(FeatureStore(tmp_path)) == 11 and not claims(tmp_path, lambda d: None)
    found = claims(tmp_path, lambda d: d["digests"].update(data="0" * 64))
    assert bool(found) != late and all("digests.data is 000000000000, not" in sentence for sentence in found)
