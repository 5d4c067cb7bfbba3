"""What is solved: ridge on a tiny store against a closed form, the shuffled control, and who is paired with whom."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from converters import create_converter
from converters.converter import Converter
from distill.fit import (
    LOCAL,
    SHUFFLED,
    TRUE,
    apart,
    principal_directions,
    set_normalisers,
    set_skips,
    solve_ridges,
)
from distill.floors import Floors
from shards.ranks import Ranks
from shards.store import FeatureStore


def reader(store: FeatureStore, normaliser: str = "position") -> Converter:
    converter = create_converter(
        "linear", student=store.layout("student"), targets={"teacher": store.layout("teacher")}, normaliser=normaliser
    )  # type: ignore[arg-type]
    return set_normalisers(converter, store)


def standardised(store: FeatureStore, column: str, clips: list[int]) -> torch.Tensor:
    stats = store.statistics(column)
    return torch.stack([(store[i][column] - stats["mean"]) / stats["scale"] for i in clips]).double()


def test_ridges_are_the_closed_form(store: FeatureStore) -> None:
    train = store.indices("train")
    found = solve_ridges(store, {"student": reader(store)}, indices=train, ranks=Ranks())
    x, y = standardised(store, "student", train), standardised(store, "teacher", train)
    rows = {"grid": (x, y[:, :8]), "cls": (x.mean(1, keepdim=True), y[:, 8:])}
    for part, (design, wanted) in rows.items():
        design, wanted = design.flatten(0, 1), wanted.flatten(0, 1)
        ridge = found["student", "teacher", part][TRUE]
        square = design.T @ design
        square += ridge.penalty * square.diagonal().mean() * torch.eye(6)
        assert torch.allclose(ridge.weight, torch.linalg.solve(square, design.T @ wanted).T, atol=1e-5)


def test_the_local_ridge_is_the_closed_form_on_the_cells_around(store: FeatureStore) -> None:
    """On a basis that spans all, so that it does not matter how it is turned."""
    converter, train = reader(store), store.indices("train")
    made = Floors({"main": converter}, store, asked=["ridge", "ridge_local"], seed=0, ranks=Ranks())
    (candidate,) = made.candidates()["ridge_local"]
    skip, tokens = candidate.converter.skips["teacher"], standardised(store, "student", train).float()
    assert candidate.column == "student" and torch.allclose(skip.basis.T @ skip.basis, torch.eye(6), atol=1e-5)
    rows = skip.design(tokens, converter.queries()["teacher"])["grid"].flatten(0, 1).double()
    wanted = standardised(store, "teacher", train)[:, :8].flatten(0, 1)
    ridge = made.ridges["position"][LOCAL, "teacher", "grid"][TRUE]
    square = rows.T @ rows
    square += ridge.penalty * square.diagonal().mean() * torch.eye(27 * 6)
    assert torch.allclose(ridge.weight, torch.linalg.solve(square, rows.T @ wanted).T, atol=1e-5)
    assert torch.equal(skip.maps["grid"].weight, ridge.weight.float())
    plain, (cls,) = made.candidates()["ridge"][0].converter, (skip.maps["cls"].weight,)
    assert torch.equal(cls, plain.skips["teacher"].maps["cls"].weight), "a token without a place has no cells around"


def test_the_basis_is_the_leading_directions(store: FeatureStore) -> None:
    x = standardised(store, "student", store.indices("train")).flatten(0, 1)
    found = principal_directions(store, reader(store), count=2).double()
    values = torch.linalg.eigvalsh(x.T @ x)
    assert (found.T @ x.T @ x @ found).trace() == pytest.approx(float(values[-2:].sum()), rel=1e-5)


def test_the_shuffled_control_learns_nothing(store: FeatureStore) -> None:
    """Same design, targets of the partners that `apart` gives: the closed form on those, and near 0 on test clips."""
    train, test = store.indices("train"), store.indices("test")
    found = solve_ridges(store, {"student": reader(store)}, indices=train, ranks=Ranks())
    partners = apart(train, [store.groups[i] for i in train])
    x = standardised(store, "student", train).flatten(0, 1)
    y = standardised(store, "teacher", partners)[:, :8].flatten(0, 1)
    ridge = found["student", "teacher", "grid"][SHUFFLED]
    square = x.T @ x
    square += ridge.penalty * square.diagonal().mean() * torch.eye(6)
    assert torch.allclose(ridge.weight, torch.linalg.solve(square, x.T @ y).T, atol=1e-5)

    wanted = standardised(store, "teacher", test)
    r2c = {}
    for pairing in (TRUE, SHUFFLED):
        converter = set_skips(reader(store), found, pairing=pairing)
        with torch.inference_mode():
            ours = converter(torch.stack([store[i]["student"] for i in test]), standardised=True)["teacher"]
        r2c[pairing] = float(1 - (ours - wanted).square().sum() / wanted.square().sum())
    assert r2c[TRUE] > 0.7 and abs(r2c[SHUFFLED]) < 0.15
    only = solve_ridges(store, {"student": reader(store)}, indices=train, ranks=Ranks(), shuffled=False)
    assert set(only["student", "teacher", "cls"]) == {TRUE}
    assert torch.equal(
        only["student", "teacher", "grid"][TRUE].weight, found["student", "teacher", "grid"][TRUE].weight
    )


def test_ranks_add_up_to_the_same_pairs(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partners are chosen among all clips, so that the control does not depend on who reads which."""
    train = store.indices("train")
    readers = {"student": reader(store)}
    whole = solve_ridges(store, readers, indices=train, ranks=Ranks())
    sums: list[list[torch.Tensor]] = []
    for rank in range(2):
        mine: list[torch.Tensor] = []
        monkeypatch.setattr(Ranks, "sum_", lambda self, tensor, mine=mine: mine.append(tensor.clone()))
        solve_ridges(store, readers, indices=train[:], ranks=replace(Ranks(), rank=rank, world=2))
        sums.append(mine)
    total = iter([one + two for one, two in zip(*sums, strict=True)])
    monkeypatch.setattr(Ranks, "sum_", lambda self, tensor: tensor.copy_(next(total)))
    both = solve_ridges(store, readers, indices=train, ranks=Ranks())
    for place, by_pairing in whole.items():
        for pairing, ridge in by_pairing.items():
            assert torch.allclose(both[place][pairing].weight, ridge.weight, atol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "unavoidable"),
    [([1] * 9, 0), ([3, 2, 1], 0), ([4, 4], 0), ([2, 3, 3, 2], 0), ([5, 1, 1], 3), ([3, 2], 1), ([1, 6, 1, 1], 3)],
)
@pytest.mark.parametrize("seed", range(5))
def test_partners_are_of_another_group_where_there_is_one(sizes: list[int], unavoidable: int, seed: int) -> None:
    groups = [f"g{name}" for name, size in enumerate(sizes) for _ in range(size)]
    indices = [100 + at for at in range(len(groups))]
    partners = apart(indices, groups, seed=seed)
    assert sorted(partners) == indices
    own = dict(zip(indices, groups, strict=True))
    assert sum(own[a] == own[b] for a, b in zip(indices, partners, strict=True)) == unavoidable


def test_partners_share_a_class_by_chance_only() -> None:
    """Class folders give groups whose names sort by class; a control that pairs within classes would find the class."""
    groups = [f"{label}/{number:02d}" for label in ("left", "right") for number in range(50)]
    partners = apart(list(range(100)), groups)
    assert 30 < Counter((at < 50) == (other < 50) for at, other in enumerate(partners))[True] < 70
