from __future__ import annotations

from collections import Counter

import pytest

from shards.split import SPLITS, assign_splits, split_digest, split_of

WORDS = [f"group {index}" for index in range(4000)]


def test_the_hash_is_the_same_everywhere() -> None:
    assert {name: split_of(name) for name in ("группа", "a/b c.mp4", *"abcdefgh")} == {
        "группа": "train",
        "a/b c.mp4": "train",
        "a": "val",
        "b": "train",
        "c": "train",
        "d": "train",
        "e": "train",
        "f": "train",
        "g": "val",
        "h": "train",
    }
    assert {split_of("group 1", seed=str(seed)) for seed in range(20)} == set(SPLITS)


def test_the_hash_deals_70_15_15() -> None:
    count = Counter(map(split_of, WORDS))
    assert [count[split] / len(WORDS) for split in SPLITS] == pytest.approx([0.70, 0.15, 0.15], abs=0.02)


def test_clips_of_a_group_share_its_side_and_a_given_split_holds_for_the_group() -> None:
    groups = [f"g{index // 3}" for index in range(60)]
    given = [None] * 60
    given[4], given[11] = "test", "val"  # groups g1 and g3
    splits, notes = assign_splits(groups, given)
    assert not notes
    sides = {group: {s for g, s in zip(groups, splits, strict=True) if g == group} for group in groups}
    assert all(len(side) == 1 for side in sides.values())
    assert sides["g1"] == {"test"} and sides["g3"] == {"val"}
    assert [sides[f"g{i}"] for i in (0, 2, 5)] == [{split_of(f"g{i}")} for i in (0, 2, 5)]


def test_two_given_splits_in_a_group() -> None:
    with pytest.raises(ValueError, match=r"group 'b' is given test and train"):
        assign_splits(["a", "b", "b", "c", "d"], [None, "train", "test", None, None])


def test_an_unknown_split() -> None:
    with pytest.raises(ValueError, match=r"'b' is given the split 'dev'.*train, val, test"):
        assign_splits(["a", "b", "c"], [None, "dev", None])


@pytest.mark.parametrize("count", range(3))
def test_too_few_groups(count: int) -> None:
    with pytest.raises(ValueError, match=rf"make {count} group\(s\).*three"):
        assign_splits([f"g{index % max(count, 1)}" for index in range(9 if count else 0)], [None] * (9 if count else 0))


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_small_folders_get_all_three_sides(count: int) -> None:
    moved = 0
    for offset in range(0, 200, count):
        groups = WORDS[offset : offset + count]
        splits, notes = assign_splits(groups, [None] * count)
        assert set(splits) == set(SPLITS) and splits.count("train") >= min(2, count - 2)
        changed = [group for group, split in zip(groups, splits, strict=True) if split != split_of(group)]
        assert len(changed) <= len(notes) <= 3 and all(any(repr(group) in note for note in notes) for group in changed)
        moved += len(notes)
    assert moved > 10


def test_the_nearest_group_moves() -> None:
    from shards.split import _place

    groups = sorted((name for name in WORDS if split_of(name) == "train"), key=lambda name: _place(name, ""))[-5:]
    splits, notes = assign_splits(groups, [None] * 5)
    assert Counter(splits) == {"train": 3, "val": 1, "test": 1}
    assert splits[4] == "val" and splits[3] == "test"  # val is filled first, by the group next to it
    assert f"group {groups[4]!r} moved from train to val" in notes[0]


def test_given_splits_that_leave_one_empty() -> None:
    with pytest.raises(ValueError, match=r"val has 0 group.*needs 1.*train 2, val 0, test 2.*split=val"):
        assign_splits(["a", "b", "c", "d"], ["train", "train", "test", "test"])
    with pytest.raises(ValueError, match=r"train has 1 group\(s\) and needs 2"):
        assign_splits(["a", "b", "c", "d"], ["train", "val", "test", "test"])


def test_digest() -> None:
    digest = split_digest(["a", "b"], ["train", "test"])
    assert digest == split_digest(["b", "a"], ["test", "train"]) != split_digest(["a", "b"], ["test", "train"])
    assert len(digest) == 64
