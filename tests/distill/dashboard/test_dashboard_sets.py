"""Which runs the dashboard puts beside each other: those that the scoreboard would, and no others."""

from __future__ import annotations

from typing import Any

import pytest
from run_folders import DIGESTS, summary

from distill.comparable import differing
from distill.dashboard.sets import comparable_sets
from distill.scoreboard import comparable_targets

BOTH = ("videomae", "vivit")
OTHER = DIGESTS | {"normaliser": "of other targets"}
SPACES = {"videomae": "another space", "vivit": "space of vivit"}


def without_spaces(**entries: Any) -> dict[str, Any]:
    return {name: of for name, of in summary(**entries).items() if name != "spaces"}


@pytest.mark.parametrize(
    ("theirs", "names"),
    [
        (summary(targets=BOTH), []),
        (summary(targets=["videomae"], digests=OTHER), []),
        (summary(targets=["timesformer"], digests=OTHER), []),
        (summary(targets=["vivit", "timesformer"], digests=OTHER, spaces=SPACES | {"timesformer": "x"}), []),
        (summary(targets=["videomae"], digests=OTHER, spaces=SPACES), ["normaliser of videomae"]),
        (summary(targets=BOTH, digests=OTHER, spaces=SPACES), ["normaliser", "normaliser of videomae"]),
        (summary(targets=BOTH, digests=DIGESTS | {"split": "x", "view": None}), ["split", "view"]),
        (without_spaces(targets=["videomae"], digests=OTHER), ["normaliser of videomae"]),
        (without_spaces(targets=BOTH, digests=OTHER), ["normaliser"]),
    ],
)
def test_runs_differ_where_the_scoreboard_refuses_them(theirs: dict[str, Any], names: list[str]) -> None:
    ours = summary(targets=BOTH)
    assert list(differing(ours, theirs)) == list(differing(theirs, ours)) == names
    shared = set(ours["targets"]) & set(theirs["targets"])
    if names and shared:
        with pytest.raises(ValueError, match=f"a and b cannot be compared: their {names[0]} differs"):
            comparable_targets({"a": ours, "b": theirs})
    else:
        assert comparable_targets({"a": ours, "b": theirs}) == sorted({*ours["targets"], *theirs["targets"]})


def test_old_runs_of_the_same_targets_go_by_the_normaliser_of_all() -> None:
    """They do not say in which space a target was scored; of the same targets the one of all says enough."""
    ours, theirs = summary(targets=BOTH), without_spaces(targets=BOTH)
    assert not differing(ours, theirs) and not differing(theirs, theirs)


def test_runs_that_cannot_be_compared_stand_in_other_sets() -> None:
    made = [
        summary(),
        summary(digests=DIGESTS | {"split": "other"}),
        summary(targets=["videomae"], digests=OTHER),
        summary(digests=DIGESTS | {"normaliser": "of another store"}),
        summary(targets=["videomae"], digests=OTHER, spaces=SPACES),
    ]
    sets = comparable_sets(made)
    ids = [one["id"] for one in sets]
    assert [ids.index(one["set"]) for one in made] == [0, 1, 0, 2, 3] and len(set(ids)) == 4
    assert [(one["runs"], one["differs"]) for one in sets] == [
        *((2, []), (1, ["split"]), (1, ["normaliser"])),
        (1, ["normaliser of videomae"]),
    ]
    assert sets[0]["targets"] == ["timesformer", "videomae", "vivit"]


def test_a_set_holds_no_pair_that_differs_whatever_their_order() -> None:
    """One that says nothing of its spaces may stand beside its like, but not beside runs of other targets."""
    made = [summary(targets=BOTH), summary(targets=BOTH, spaces={}), summary(targets=["vivit"])]
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        briefs = [dict(made[at]) for at in order]
        comparable_sets(briefs)
        for a in briefs:
            assert not [b for b in briefs if b["set"] == a["set"] and differing(a, b)]


def test_a_set_is_found_by_what_it_was_called_before_further_runs_came() -> None:
    """Among others, and when it is no longer the first or begins with another kind."""
    elsewhere = DIGESTS | {"split": "other"}
    (before,) = comparable_sets([summary(targets=BOTH)])
    more = [summary(digests=elsewhere), summary(digests=elsewhere, targets=BOTH), summary(digests=elsewhere)]
    after = comparable_sets([*more, summary(targets=["vivit"], digests=OTHER), summary(targets=BOTH)])
    assert [before["id"] in one["kinds"] for one in after] == [False, True] and after[1]["id"] != before["id"]
    assert after[0]["kinds"][0] == after[0]["id"] and len(after[0]["kinds"]) == 2
