"""The shared vocabulary: what a layout accepts, where its tokens stand, and its plain form."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from teachers.layout import FULL_VIEW, TokenLayout


def test_centres_are_cell_centres_in_t_h_w_order() -> None:
    layout = TokenLayout((2, 1, 3), 4, ("cls",), ((0.0, 1.0), (0.0, 1.0), (0.25, 0.75)))
    x = [1 / 3, 1 / 2, 2 / 3]
    expected = torch.tensor([[t, 0.5, place] for t in (0.25, 0.75) for place in x])
    assert torch.allclose(layout.centres(), expected) and layout.num_tokens == 7
    assert TokenLayout(None, 4).centres().shape == (0, 3)


@pytest.mark.parametrize(
    "layout",
    [
        TokenLayout((2, 3, 4), 5),
        TokenLayout(None, 5),
        TokenLayout((1, 1, 1), 1, ("a", "b"), ((0, 1), (-0.5, 2), (0, 0.1))),
    ],
)
def test_plain_form_and_back(layout: TokenLayout) -> None:
    assert TokenLayout.from_dict(layout.to_dict()) == layout


def test_special_tokens_that_are_kept() -> None:
    layout = TokenLayout((1, 2, 2), 3, ("cls", "reg"))
    assert layout.keeping(["reg"]).special == ("reg",) and layout.keeping([]).special == ()
    assert TokenLayout(None, 3).keeping([]).special == ("pooled",)
    with pytest.raises(ValueError, match=r"\['class'\] are not among \['cls', 'reg'\]"):
        layout.keeping(["class"])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"grid": (2, 3)}, r"grid is \(2, 3\)"),
        ({"grid": ()}, r"grid is \(\)"),
        ({"grid": (0, 3, 3)}, r"grid is \(0, 3, 3\)"),
        ({"grid": (1.7, 3, 3)}, r"grid is \(1.7, 3, 3\)"),
        ({"grid": (True, 3, 3)}, r"grid is \(True, 3, 3\)"),
        ({"dim": 0}, "dim is 0"),
        ({"dim": 2.5}, "dim is 2.5"),
        ({"dim": True}, "dim is True"),
        ({"special": ("cls", "cls")}, "repeat a name"),
        ({"special": "cls"}, "special is 'cls'"),
        ({"special": (1,)}, r"special is \(1,\)"),
        ({"extent": ((0, 1), (0, 1))}, "three spans"),
        ({"extent": (*FULL_VIEW[:2], (1, 0))}, "three spans"),
        ({"extent": (*FULL_VIEW[:2], (0, float("inf")))}, "inf"),
        ({"extent": (*FULL_VIEW[:2], (float("nan"), 1))}, "nan"),
    ],
)
def test_what_is_no_layout_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TokenLayout(**{"grid": (2, 3, 3), "dim": 4, **changes})


@pytest.mark.parametrize("data", [7, {}, {"dim": 3}, {"grid": None, "dim": 3, "heads": 2}])
def test_plain_forms_with_other_entries_are_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="a layout has the entries"):
        TokenLayout.from_dict(data)
