"""What a deficiency left, against the same numbers worked out at length from the store's tokens."""

from __future__ import annotations

import pytest
import torch
from threads import together

from converters import Converter, create_converter
from distill.deficiency import effective_rank, variance
from distill.fit import set_normalisers, set_skips, solve_ridges
from distill.spectrum import map_ranks, measure
from shards.ranks import Ranks
from shards.store import FeatureStore


@pytest.fixture(scope="module")
def converters(store: FeatureStore) -> dict[str, Converter]:
    """The ridge whole, at a rank of two, and nothing at all."""
    layouts = {"student": store.layout("student"), "targets": {"teacher": store.layout("teacher").keeping(["cls"])}}
    kinds = {"whole": ("linear", None), "two": ("linear", 2), "none": ("constant", None)}
    found = {
        name: set_normalisers(create_converter(family, **layouts, rank=rank), store)  # type: ignore[arg-type]
        for name, (family, rank) in kinds.items()
    }
    readers = {"student": found["whole"]}
    solutions = solve_ridges(store, readers, indices=store.indices("train"), ranks=Ranks(), shuffled=False)
    return {name: set_skips(converter, solutions) for name, converter in found.items()}


def tokens(store: FeatureStore, split: str, column: str) -> torch.Tensor:
    return torch.stack([store[index][column] for index in store.indices(split)])


def test_measures_are_those_worked_out_at_length(store: FeatureStore, converters: dict[str, Converter]) -> None:
    found = measure(store, converters, seed=0, ranks=Ranks())
    stats = store.statistics("teacher")
    train, theirs = ((tokens(store, split, "teacher") - stats["mean"]) / stats["scale"] for split in ("train", "test"))
    _, _, components = torch.linalg.svd(train.flatten(0, 1).double(), full_matrices=False)
    for name, converter in converters.items():
        left = found[name]["teacher"]
        with torch.inference_mode():
            ours = (converter(tokens(store, "test", "student"))["teacher"] - stats["mean"]) / stats["scale"]
        pair = [rows.flatten(0, 1).double() @ components.T for rows in (ours, theirs)]
        r2 = 1 - (pair[0] - pair[1]).square().sum(0) / pair[1].square().sum(0)
        assert left["rank_recovery"]["r2"] == pytest.approx(r2.tolist(), abs=1e-4)
        assert left["rank_recovery"]["k"] == int((r2 > 0.5).sum()) and left["rank_recovery"]["of"] == 4
        for which, rows in zip(("converted", "teacher"), pair, strict=True):
            expected = effective_rank(torch.linalg.svdvals(rows - rows.mean(0)))
            assert left["effective_rank"][which] == pytest.approx(expected, abs=0.02)
            parts = [part.flatten(0, 1) for part in (rows.view(4, 9, 4)[::2], rows.view(4, 9, 4)[1::2])]
            halves = [effective_rank(torch.linalg.svdvals(part - part.mean(0))) for part in parts]
            assert left["effective_rank"]["of_half"][which] == pytest.approx(sum(halves) / 2, abs=0.02)
        assert left["effective_rank"]["tokens"] == theirs.shape[0] * 9 and left["effective_rank"]["clips"] == 4
    assert [found[name]["teacher"]["rank_recovery"]["k"] for name in ("whole", "two", "none")] == [4, 2, 0]
    assert found["none"]["teacher"]["jacobian"] == {"value": None, "standard_error": None}
    exact = exact_jacobian(converters["whole"], tokens(store, "test", "student"))
    steep = found["whole"]["teacher"]["jacobian"]
    assert abs(steep["value"] - exact) < 4 * steep["standard_error"] < exact


def test_two_ranks_tell_what_one_tells(store: FeatureStore, converters: dict[str, Converter]) -> None:
    """Each reads half of the clips; tokens are counted once."""

    def told(ranks: Ranks) -> list[tuple[list[float], float, int]]:
        found = [at["teacher"] for at in measure(store, converters, seed=0, ranks=ranks).values()]
        return [
            (at["rank_recovery"]["r2"], at["effective_rank"]["converted"], at["effective_rank"]["tokens"])
            for at in found
        ]

    alone = told(Ranks())
    for each in together(2, told):
        for ours, theirs in zip(each, alone, strict=True):
            assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
            assert ours[1] == pytest.approx(theirs[1], abs=1e-4) and ours[2] == theirs[2]


def exact_jacobian(converter: Converter, student: torch.Tensor) -> float:
    """Per channel over the variance, of the linear map: it is the same for all clips."""
    x = torch.zeros(1, *student.shape[1:], requires_grad=True)
    y = converter(x * converter.student_normaliser.scale, standardised=True)["teacher"].flatten()
    rows = [torch.autograd.grad(one, x, retain_graph=True)[0] for one in y]
    answers = converter(student, standardised=True)["teacher"].detach()
    return float(torch.stack(rows).square().sum() / len(y) / variance(answers))


def test_singular_values_are_of_the_effective_maps(store: FeatureStore, converters: dict[str, Converter]) -> None:
    two = converters["two"].effective_maps("teacher")
    both = torch.linalg.matrix_rank(torch.cat(list(two.values()), dim=1))
    assert set(two) == {"grid", "cls"} and int(both) == 2, "grid and cls share their two directions"
    assert map_ranks(converters["two"])["teacher"] <= 2 < map_ranks(converters["whole"])["teacher"]
