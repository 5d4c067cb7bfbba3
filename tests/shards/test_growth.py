"""A store that grows: columns for a part of the clips, new clips, pooled columns; and what is refused by name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shards import derive
from shards.column import CLIPS
from shards.disk import StoreError
from shards.extension import after_those_of, choose_part
from shards.reader import BatchReader
from shards.store import FeatureStore
from shards.videos import Clip


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def keys(*numbers: int) -> set[str]:
    return {f"{number:06d}-abc" for number in numbers}


def test_a_column_for_a_part_of_the_clips(tmp_path: Path, tiny) -> None:
    """The teacher runs on its part alone, decodes nothing else, joins with what is there, and is finished."""
    tiny.extract(tmp_path, columns={"student": tiny.backbone(0)}, render=tiny.broken(1))
    part, teacher, seen = keys(0, 1, 4, 5, 8), tiny.backbone(1, poison=5), []

    def render(clip):
        seen.append(clip.number)
        return tiny.render(clip)

    def add() -> None:
        tiny.extract(tmp_path, columns={"videomae": teacher}, covers={"videomae": part}, render=render, batch=2)

    add()
    assert teacher.calls == 5 and sorted(seen) == [0, 4, 5, 8]
    joined = FeatureStore(tmp_path, ["student", "videomae"])
    assert joined.keys == sorted(keys(0, 4, 8)) and joined.uncovered == keys(2, 3, 6, 7, 9)
    assert set(joined.refused) == keys(1, 5)
    coverage = {"complete": True, "clips": 3, "refused": 2, "uncovered": 5}
    assert joined.columns["videomae"].coverage == coverage
    assert len(FeatureStore(tmp_path, ["student"])) == 9
    for index in range(3):
        whole = FeatureStore(tmp_path, ["student"])
        place = whole.keys.index(joined.keys[index])
        assert torch.equal(joined[index]["student"], whole[place]["student"])
    with BatchReader(joined, columns=["student", "videomae"], indices=joined.indices("train"), batch=2, seed=0) as read:
        assert set(read.batch(0)["keys"]) <= keys(0, 8)
    before = contents(tmp_path)
    add()
    assert contents(tmp_path) == before and teacher.calls == 5
    with pytest.raises(ValueError, match=r"videomae/0000\d.json leaves out \d of [24] clips where \d shall be"):
        tiny.extract(tmp_path, columns={"videomae": teacher}, covers={"videomae": keys(0, 1)})


def test_a_part_is_the_same_at_once_and_later(tmp_path: Path, tiny) -> None:
    both = {"student": tiny.backbone(0), "videomae": tiny.backbone(1)}
    tiny.extract(tmp_path / "once", columns=both, covers={"videomae": keys(2, 3, 9)})
    tiny.extract(tmp_path / "later", columns={"student": tiny.backbone(0)})
    tiny.extract(tmp_path / "later", columns={"videomae": tiny.backbone(1)}, covers={"videomae": keys(2, 3, 9)})
    assert contents(tmp_path / "once") == contents(tmp_path / "later")


def test_conversion_fills_the_rest(tmp_path: Path, tiny) -> None:
    """A teacher on few clips, a function of the student on all of them."""
    tiny.extract(tmp_path, columns={"student": tiny.backbone(0)})
    tiny.extract(tmp_path, columns={"videomae": tiny.backbone(1)}, covers={"videomae": keys(0, 3)})
    layout = tiny.backbone(0).layout
    derive.derive(
        tmp_path,
        column="converted",
        source="student",
        function=lambda x: x + 1,
        layout=layout,
        origin={"function": "f"},
    )
    assert len(FeatureStore(tmp_path, ["converted"])) == 10 and len(FeatureStore(tmp_path)) == 2
    derive.derive(
        tmp_path, column="half", source="videomae", function=lambda x: x + 1, layout=layout, origin={"function": "f"}
    )
    assert FeatureStore(tmp_path, ["half"]).uncovered == keys(1, 2, 4, 5, 6, 7, 8, 9)


def test_new_clips(tmp_path: Path, tiny, capsys) -> None:
    """Ten clips become thirteen: the last shard is filled up, statistics and labels follow, other columns wait."""
    tiny.extract(tmp_path, render=tiny.broken(9))
    assert derive.main([str(tmp_path), "student", "--column", "pooled"]) == 0
    before = contents(tmp_path)
    clips = [*tiny.clips(), *(replace(clip, label="sit") for clip in tiny.clips(13)[10:])]
    with pytest.raises(ValueError, match="clips: there 10, here 13"):
        tiny.extract(tmp_path, clips=clips)
    assert contents(tmp_path) == before
    student = {"student": tiny.backbone(0)}
    tiny.extract(tmp_path, clips=clips, columns=student, extend=True)
    assert student["student"].calls == 1 + 3  # clip 8 shares its shard with the new ones; 9 stays refused
    store = FeatureStore(tmp_path)
    assert list(store.columns) == ["student"] and len(store) == 12 and store.labels == ["jump", "run", "sit"]
    after = contents(tmp_path)
    for name in ("00000.tar", "00001.tar", "calibration.safetensors"):
        assert after[f"student/{name}"] == before[f"student/{name}"]
    fresh = FeatureStore(tmp_path).statistics("student")["mean"]
    train = torch.stack([store[index]["student"] for index in store.indices("train")])
    assert torch.allclose(fresh, train.mean(0), atol=1e-3)
    with pytest.raises(StoreError, match="column 'videomae' is incomplete"):
        FeatureStore(tmp_path, ["videomae"])
    tiny.extract(tmp_path, clips=clips, columns={"videomae": tiny.backbone(1)})
    assert derive.main([str(tmp_path), "student", "--column", "pooled"]) == 0
    joined = FeatureStore(tmp_path)
    assert len(joined) == 12 and set(joined.columns) == {"student", "videomae", "pooled"}
    assert torch.allclose(joined[11]["pooled"][0], joined[11]["student"].mean(0), atol=0.05)


def test_an_extension_that_was_killed_goes_on(tmp_path: Path, tiny) -> None:
    clips = tiny.clips(19)
    for name in ("whole", "killed"):
        tiny.extract(tmp_path / name)
    tiny.extract(tmp_path / "whole", clips=clips, extend=True)
    for stop_after in (0, 1, 5):
        columns = {"student": tiny.backbone(0), "videomae": tiny.backbone(1, stop_after=stop_after)}
        with pytest.raises(KeyboardInterrupt):
            tiny.extract(tmp_path / "killed", clips=clips, columns=columns, extend=True)
    tiny.extract(tmp_path / "killed", clips=clips)  # the manifest has the new clips by then
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_only_the_end_is_new(tmp_path: Path, tiny) -> None:
    tiny.extract(tmp_path)
    clips = tiny.clips(13)
    clips[3] = replace(clips[3], label="sit")
    with pytest.raises(ValueError, match="data digest"):
        tiny.extract(tmp_path, clips=clips, extend=True)
    with pytest.raises(ValueError, match="clips: there 10, here 9"):
        tiny.extract(tmp_path, clips=tiny.clips(9), extend=True)


def clip(number: int, name: str) -> Clip:
    return Clip(f"{number:06d}-{name}", name, None, name, "train", None, None, (0, 1), name, 1)


def test_new_clips_come_after_the_old_ones(tmp_path: Path, tiny) -> None:
    """As a folder lists them they stand between the old ones; a start that was killed does not change their numbers."""
    names = ["b", "d", "f"]
    old = [TinyNamed(number, name) for number, name in enumerate(names)]
    tiny.extract(tmp_path, clips=old, clips_per_shard=2)
    found = [clip(number, name) for number, name in enumerate("abcdefg")]
    keyed = [each.key for each in after_those_of(tmp_path, found)]
    assert keyed == [f"{number:06d}-{name}" for number, name in enumerate("bdfaceg")]
    everything = [TinyNamed(number, name) for number, name in enumerate("bdfaceg")]
    tiny.extract(tmp_path, clips=everything, extend=True, clips_per_shard=2)
    (tmp_path / CLIPS / "00002.json").unlink()  # holds c and e
    assert [each.key for each in after_those_of(tmp_path, found)] == keyed


class TinyNamed:
    """A clip with a name of its own."""

    label, factors, start, end = None, {}, None, None

    def __init__(self, number: int, name: str) -> None:
        self.number, self.key = number, f"{number:06d}-{name}"
        self.source = self.group = name
        self.split = "train" if number < 2 else "test"


def test_parts_are_nested_and_know_no_numbers() -> None:
    names = [f"{number:06d}-{number * 7919 % 1000:03d}" for number in range(100)]
    small, large = choose_part(names, 10), choose_part(names, 30)
    assert len(small) == 10 and small < large and {int(name[:6]) // 50 for name in small} == {0, 1}
    renamed = [re.sub("^0", "9", name) for name in names]
    assert {name[7:] for name in choose_part(renamed, 10)} == {name[7:] for name in small}


def test_pooled_columns(tmp_path: Path, tiny, capsys: pytest.CaptureFixture[str]) -> None:
    special = replace(tiny.backbone().layout, special=("cls",))
    tiny.extract(tmp_path, columns={"student": tiny.backbone(layout=special)})
    assert derive.main([str(tmp_path), "student", "--column", "mean"]) == 0
    assert "column mean, pooled = 1 tokens of 6, 10 clips" in capsys.readouterr().out
    store = FeatureStore(tmp_path)
    assert store.columns["mean"].codec == "fp16" and store.columns["mean"].origin["source"] == "student"
    assert torch.allclose(store[4]["mean"][0], store[4]["student"][:8].mean(0), atol=0.05)
    assert derive.main([str(tmp_path), "mean", "--column", "again"]) == 1
    assert "column 'mean' is pooled already" in capsys.readouterr().err
