"""Labels of clips by name, from the data into a store and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shards import FeatureStore
from shards.agreement import describe_clips
from shards.disk import StoreError
from shards.task import Task, factor_problem
from shards.videos import Clip, data_digest

SPEEDS = ("slow", "fast", None)


def with_speeds(clips: list) -> list:
    """Every third clip has no speed."""
    speeds = [SPEEDS[number % 3] for number in range(len(clips))]
    return [
        replace(clip, factors={"speed": speed, "hue": "red"} if speed else {})
        for clip, speed in zip(clips, speeds, strict=True)
    ]


def test_values_are_sorted_and_what_is_missing_is_none_of_them() -> None:
    assert Task.of(["b", None, "a", "b"]) == Task(["a", "b"], [1, -1, 0, 1])
    assert Task.of([None]) == Task([], [-1])


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "factor. names the factor ''"), ("a b", "'a b'"), ("a\n", r"'a\n'"), ("label", "factor.label: no factor")],
)
def test_names_that_no_factor_has(name: str, message: str) -> None:
    assert message in str(factor_problem(name))
    assert factor_problem("hand-size_2") is None


def test_a_store_has_the_label_and_every_factor_as_a_task(tmp_path: Path, tiny) -> None:
    tiny.extract(tmp_path, clips=with_speeds(tiny.clips()), render=tiny.broken(1))
    store = FeatureStore(tmp_path)
    assert list(store.tasks) == ["label", "hue", "speed"]
    assert store.tasks["label"] == Task(store.labels, store.label_indices)
    assert store.tasks["speed"] == Task(["fast", "slow"], [1, -1, 1, 0, -1, 1, 0, -1, 1])  # without clip 1
    assert store.tasks["hue"] == Task(["red"], [0, -1, 0, 0, -1, 0, 0, -1, 0])
    assert store.clips[0]["factors"] == {"speed": "slow", "hue": "red"} and "factors" not in store.clips[1]


def test_a_store_without_any_label_has_no_task(tmp_path: Path, tiny) -> None:
    bare = [replace(clip, label=None) for clip in tiny.clips()]
    tiny.extract(tmp_path / "bare", clips=bare)
    assert FeatureStore(tmp_path / "bare").tasks == {}
    tiny.extract(tmp_path / "factors", clips=with_speeds(bare))
    assert list(FeatureStore(tmp_path / "factors").tasks) == ["hue", "speed"]


@pytest.mark.parametrize("factors", [["speed"], {"speed": 3}, {"a b": "x"}, {"label": "x"}, None])
def test_a_record_with_other_factors_than_a_writer_puts_there(tmp_path: Path, tiny, factors: object) -> None:
    def render(clip):
        fields, views = tiny.render(clip)
        return fields | ({"factors": factors} if clip.number == 2 else {}), views

    with pytest.raises(StoreError, match='clips/00000.tar, clip "000002-abc": its record is'):
        tiny.extract(tmp_path, render=render, columns={"student": tiny.backbone()})


def test_digests_see_factors_and_are_what_they_were_without(tiny) -> None:
    """The literal digests are those of the version before there were factors: old stores are found again."""
    assert describe_clips(tiny.clips()) == {
        "split": "3dd83bbe69ec8048ca033ef6042537c18b5125884a6c7d9b418f56cb701a9a97",
        "data": "4b9990a3ef913b61b43abd3b4d32ada3c560fd545e44bb5695744ba997beee0f",
    }
    clips = [
        Clip("000000-a", "/x/a.mp4", "run", "g", "train", 0.5, 2.5, (0, 1), "a.mp4", 7),
        Clip("000001-b", "/x/b.mp4", None, "b.mp4", "test", None, None, (0, 1), "b.mp4", 8),
    ]
    assert data_digest(clips) == "c1f242f518ab348177c5ad2fb1fba7c40e1e3f5b0069e5e91154fe6767e22121"
    some, other = ([replace(clips[0], factors=factors), clips[1]] for factors in ({"a": "x"}, {"a": "y"}))
    turned = [replace(clips[0], factors=dict(order)) for order in ([("a", "x"), ("b", "y")], [("b", "y"), ("a", "x")])]
    for function in (data_digest, describe_clips):
        assert len({str(function(chosen)) for chosen in (clips, some, other)}) == 3
        assert function(turned[:1]) == function(turned[1:])
    assert describe_clips(some)["split"] == describe_clips(clips)["split"]
