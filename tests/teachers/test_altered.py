"""A teacher that sees a clip otherwise: which frames, which pixels, and that it is the same network."""

from __future__ import annotations

import pytest
import torch

from teachers import create_backbone
from teachers.altered import Nearest, Shift, on_frames, on_shifted
from teachers.backbone import Backbone


@pytest.fixture
def teacher() -> Backbone:
    return create_backbone("pixels", options={"grid": [4, 2, 2], "frames": 4, "pixels": 8, "cells": 2})


@pytest.mark.parametrize("given", [1, 2, 3, 5, 8, 16])
@pytest.mark.parametrize("taken", [1, 2, 4, 7, 16, 32])
def test_every_frame_is_the_nearest_in_time(given: int, taken: int) -> None:
    index = Nearest(given, taken).index
    there, wanted = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (given, taken))
    distance = (there[None] - wanted[:, None]).abs()
    assert torch.allclose(distance.gather(1, index[:, None])[:, 0], distance.min(dim=1).values, atol=1e-12)
    assert (index.diff() >= 0).all() and (given != taken or index.tolist() == list(range(given)))


def test_of_two_frames_as_near_the_earlier_is_taken() -> None:
    assert Nearest(4, 2).index.tolist() == [0, 2]


def test_a_shift_moves_what_is_seen_and_repeats_the_edge() -> None:
    video = torch.arange(2 * 3 * 3 * 4 * 4.0).reshape(2, 3, 3, 4, 4)
    moved = Shift(1)(video)
    assert torch.equal(moved[..., 1:], video[..., :-1]) and torch.equal(moved[..., 0], video[..., 0])


def test_the_teacher_is_shown_the_students_frames(teacher: Backbone) -> None:
    video = torch.rand(1, 2, 3, 8, 8)
    other = on_frames(teacher, 2)
    assert (other.frames, other.pixels, other.layout) == (2, 8, teacher.layout)
    assert torch.equal(other(video), teacher(video.repeat_interleave(2, dim=1)))
    whole = torch.rand(1, 4, 3, 8, 8)
    assert torch.equal(on_frames(teacher, 4)(whole), teacher(whole))


def test_a_shift_by_a_cell_is_the_next_cells_answer(teacher: Backbone) -> None:
    video = torch.rand(1, 4, 3, 8, 8)
    mine, moved = (tokens.view(4, 2, 2, -1) for tokens in (teacher(video)[0], on_shifted(teacher, 4)(video)[0]))
    assert torch.allclose(moved[:, :, 1], mine[:, :, 0]) and not torch.allclose(moved, mine)


def test_it_is_the_same_network_and_says_what_it_sees(teacher: Backbone) -> None:
    frames, shifted = on_frames(teacher, 2), on_shifted(teacher, 1)
    assert frames.network[1] is shifted.network[1] is teacher.network  # type: ignore[index]
    assert len({str(each.origin) for each in (teacher, frames, shifted)}) == 3
    assert shifted.origin["sees"] == "the view moved to the right by 1 of its 8 pixels, the edge repeated"


@pytest.mark.parametrize("pixels", [0, 8])
def test_a_shift_out_of_the_view(teacher: Backbone, pixels: int) -> None:
    with pytest.raises(ValueError, match=f"a shift by {pixels} pixels; it must lie in 1..7"):
        on_shifted(teacher, pixels)
