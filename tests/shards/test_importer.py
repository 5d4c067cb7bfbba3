"""Features that a user already has, of four kinds, into a new store and beside other columns."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shards import importer
from shards.manifest import Manifest
from shards.store import FeatureStore
from shards.verify import problems_of

h5py = pytest.importorskip("h5py")
GRID = "grid: [2, 2, 1]\ndim: 6\nextent: [[0, 1], [0.0625, 0.9375], [0.0625, 0.9375]]\norigin: {licence: mine}\n"


def tokens(number: int) -> torch.Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(number)) * 3 + 50


def save(path: Path, array: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array.reshape(2, 2, 1, 6).numpy())  # the grid's own shape
    elif path.suffix == ".pt":
        torch.save(array, path)
    elif path.suffix == ".safetensors":
        save_file({"tokens": array}, path)
    else:
        with h5py.File(path, "w") as file:
            file["tokens"] = array.double().numpy()


def fill(root: Path, suffix: str, count: int = 12) -> None:
    """features/LABEL/GROUP_NUMBER.suffix, two clips a group."""
    for number in range(count):
        save(root / f"{('run', 'jump')[number % 2]}" / f"g{number // 2}_{number:02d}{suffix}", tokens(number))


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command on tmp_path/store; returns what it says."""
    (tmp_path / "grid.yaml").write_text(GRID)

    def command(files: str, *, column: str = "student", layout: str = "grid.yaml", status: int = 0, **more: str) -> str:
        options = [word for name, value in more.items() for word in (f"--{name}", value)]
        words = [str(tmp_path / "store"), "--column", column, "--layout", str(tmp_path / layout), "--files", files]
        code = importer.main([*words, *options])
        out = capsys.readouterr()
        assert code == status, out
        return out.err if status else out.out

    return command


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def check(store: FeatureStore, column: str, count: int = 12) -> None:
    assert len(store) == count
    for index, record in enumerate(store.clips):
        number = int(record["source"].partition(".")[0][-2:])
        assert (store[index][column] - tokens(number)).abs().max() < 0.1


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".safetensors", ".h5"])
def test_files_become_a_store(tmp_path: Path, run, suffix: str) -> None:
    fill(tmp_path / "mine", suffix)
    template = f"{tmp_path}/mine/{{label}}/{{group}}_{{name}}{suffix}"
    assert "column student, 2 x 2 x 1 = 4 tokens of 6, 12 clips" in run(template)
    store = FeatureStore(tmp_path / "store")
    check(store, "student")
    assert store.labels == ["jump", "run"] and sorted(set(store.groups)) == [f"g{n}" for n in range(6)]
    assert store.layout("student").extent[1] == (0.0625, 0.9375)
    origin = store.columns["student"].origin
    assert origin["files"] == f"{{label}}/{{group}}_{{name}}{suffix}" and origin["licence"] == "mine"
    assert (
        origin["function"] == "shards.importer" and str(tmp_path) not in (tmp_path / "store/manifest.json").read_text()
    )
    assert store.indices("train") and store.indices("test") and store.statistics("student")["scale"].shape == (6,)


def test_one_file_of_many_arrays(tmp_path: Path, run) -> None:
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for number in range(12):
            file[f"{'ab'[number % 2]}/{number:02d}"] = tokens(number).numpy()
        file["about"] = "text"
    run(f"{tmp_path}/all.h5::{{label}}/{{name}}")
    store = FeatureStore(tmp_path / "store")
    check_entries = {record["source"]: record["label"] for record in store.clips}
    assert check_entries["all.h5::b/03"] == "b" and len(store) == 12
    index = next(i for i, record in enumerate(store.clips) if record["source"].endswith("/07"))
    assert (store[index]["student"] - tokens(7)).abs().max() < 0.1
    save_file({f"x{number:02d}": tokens(number) for number in range(9)}, tmp_path / "part.safetensors")
    said = run(f"{tmp_path}/part.safetensors::x{{name}}", column="other")
    assert "9 clips, 3 clips without a file" in said
    assert len(FeatureStore(tmp_path / "store")) == 9 and len(FeatureStore(tmp_path / "store", ["student"])) == 12


def test_a_csv_names_files(tmp_path: Path, run) -> None:
    fill(tmp_path / "mine", ".npy")
    names = sorted(str(path.relative_to(tmp_path / "mine")) for path in (tmp_path / "mine").rglob("*.npy"))
    rows = [f"{name},{'xy'[n % 2]},{('train', 'val', 'test')[n % 3]},g{n},red" for n, name in enumerate(names)]
    (tmp_path / "mine" / "clips.csv").write_text("\n".join(["path,label,split,group,factor.hue", *rows]))
    run(f"{tmp_path}/mine/clips.csv")
    store = FeatureStore(tmp_path / "store")
    check(store, "student")
    assert store.labels == ["x", "y"] and len(store.indices("val")) == 4 and store.tasks["hue"].values == ["red"]
    run(f"{tmp_path}/mine/clips.csv", column="again")
    check(FeatureStore(tmp_path / "store"), "again")


def test_a_column_beside_computed_ones(tmp_path: Path, run, tiny) -> None:
    """Clips without a file are declared, not refused; the others join."""
    tiny.extract(tmp_path / "store", render=tiny.broken(3))
    for number in range(8):
        save(tmp_path / "mine" / f"{number}.npy", tokens(number))
    said = run(f"{tmp_path}/mine/{{name}}.npy", column="theirs")
    assert "7 clips, 2 clips without a file" in said
    store = FeatureStore(tmp_path / "store")
    assert [int(key[:6]) for key in store.keys] == [0, 1, 2, 4, 5, 6, 7] and store.uncovered == {
        "000008-abc",
        "000009-abc",
    }
    assert list(store.refused) == ["000003-abc"] and (store[3]["theirs"] - tokens(4)).abs().max() < 0.1
    assert "no file for any of the 9 clips" in run(f"{tmp_path}/mine/x{{name}}.npy", column="x", status=1)
    assert "was made otherwise" in run(f"{tmp_path}/mine/{{stem}}.npy", column="theirs", status=1)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_bad_files_refuse_their_clip_by_name(tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of every kind of damage; a pickle among them must not run."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "mine", ".npy", count=20)
    mine = tmp_path / "mine" / "run"
    torch.save(Evil(), mine / "g20_90.pt")
    np.save(mine / "g21_91.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    np.save(mine / "g22_92.npy", np.full((4, 6), np.nan, np.float32))
    np.save(mine / "g23_93.npy", np.zeros((4, 7), np.float32))
    np.save(mine / "g24_94.npy", np.zeros((4, 6), np.int64))
    (mine / "g25_95.npy").write_bytes((mine / "g0_00.npy").read_bytes()[:100])
    (mine / "g26_96.xyz").write_bytes(b"?")
    run("mine/{label}/{group}_{name}")
    store = FeatureStore(tmp_path / "store")
    reasons = {key: reason for key, reason in store.refused.items()}
    assert not list(problems_of(tmp_path / "store"))
    assert len(store) == 20 and len(reasons) == 7 and not (tmp_path / "executed").exists()
    text = "\n".join(reasons.values())
    for name, words in {
        "90.pt": "Unsupported|Weights only",
        "91.npy": "Python objects",
        "92.npy": "not finite",
        "93.npy": r"has shape \(4, 7\); the layout says \(4, 6\) or \(2, 2, 1, 6\)",
        "94.npy": "int64",
        "95.npy": "cannot be read",
        "96.xyz": "is a .xyz; there are .npy",
    }.items():
        assert any(name in reason and re.search(words, reason) for reason in reasons.values()), text


def test_killed_and_started_again(tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "mine", ".npy")
    template = f"{tmp_path}/mine/{{label}}/{{group}}_{{name}}.npy"
    run(template)
    whole = contents(tmp_path / "store")
    (tmp_path / "store").rename(tmp_path / "first")
    real, left = importer.read_tokens, [12]

    def dying(*asked):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*asked)

    monkeypatch.setattr(importer, "read_tokens", dying)
    with pytest.raises(KeyboardInterrupt):
        run(template)
    monkeypatch.undo()
    assert not Manifest.read(tmp_path / "store").columns["student"].complete
    run(template)
    assert contents(tmp_path / "store") == whole


TEMPLATES = [
    *("features/{label}/{group}/{name}.npy", "features/{label}/{stem}.npy", "features/{stem}.npy"),
    *("features/{label}/{stem}/{name}.npy", "features/{factor.hue}/{split}/{name}.npy", "features/{split}/{stem}.npy"),
    *("all.h5::clips/{name}", "all.h5::{factor.kind}/{stem}", "all.pt::{stem}"),
    *("{group}.safetensors::{label}/{name}", "clips.csv"),
]


def lay_out(root: Path, template: str) -> None:
    """Twelve clips where a template looks for them."""
    entries: dict[str, dict[str, torch.Tensor]] = {}
    for number in range(12):
        split = ("train", "val", "test")[number // 2 % 3]
        fields = {"label": "ab"[number % 2], "group": f"g{number // 2}", "split": split, "factor.hue": "red"}
        fields |= {"factor.kind": "clips", "name": f"n.{number:02d}", "stem": f"s{number % 5}/t_{number:02d}"}
        place = re.sub(r"{([a-z.]+)}", lambda match, fields=fields: fields[match[1]], template)
        path, _, entry = place.partition("::")
        if template.endswith(".csv"):
            save(root / f"x/{number:02d}.npy", tokens(number))
        elif entry:
            entries.setdefault(path, {})[entry] = tokens(number)
        else:
            save(root / path, tokens(number))
    for path, held in entries.items():
        if path.endswith(".h5"):
            with h5py.File(root / path, "w") as file:
                for name, array in held.items():
                    file[name] = array.numpy()
        else:
            torch.save(held, root / path) if path.endswith(".pt") else save_file(held, root / path)
    if template.endswith(".csv"):
        rows = [f"x/{number:02d}.npy,{'ab'[number % 2]}" for number in range(12)]
        (root / template).write_text("\n".join(["path,label", *rows]))


@pytest.mark.parametrize("template", TEMPLATES)
def test_killed_after_the_records(tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    """The store knows the clips by then and no column: the same command goes on, and at the end finds all done."""
    lay_out(tmp_path, template)
    said = run(str(tmp_path / template), codec="fp16").splitlines()[-1]
    whole = contents(tmp_path / "store")
    assert (
        run(str(tmp_path / template), codec="fp16").splitlines()[-1] == said and contents(tmp_path / "store") == whole
    )
    (tmp_path / "store").rename(tmp_path / "first")
    with monkeypatch.context() as patch:
        patch.setattr(importer, "add_column", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(str(tmp_path / template), codec="fp16")
    assert run(str(tmp_path / template), codec="fp16").splitlines()[-1] == said and said.endswith(" 12 clips")
    assert contents(tmp_path / "store") == whole and not list(problems_of(tmp_path / "store"))


def test_a_file_of_many_arrays_is_loaded_twice(tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for its entries, once for its tensors; a damaged one is named."""
    lay_out(tmp_path, "all.pt::{stem}")
    loads, real = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: loads.append(a) or real(*a, **k))
    run(f"{tmp_path}/all.pt::{{stem}}")
    assert len(loads) == 2
    assert len(FeatureStore(tmp_path / "store")) == 12
    (tmp_path / "bad.safetensors").write_bytes(b"garbage" * 20)
    said = run(f"{tmp_path}/bad.safetensors::{{name}}", column="other", status=1)
    assert f"error: {tmp_path}/bad.safetensors cannot be read: " in said


def test_other_features_of_the_same_size_are_noticed(tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "mine", ".npy")
    template = f"{tmp_path}/mine/{{label}}/{{group}}_{{name}}.npy"
    run(template)
    whole = contents(tmp_path / "store")
    save(tmp_path / "mine/run/g3_06.npy", tokens(99))
    said = run(template, status=1)
    assert re.search(
        r"column 'student' was made otherwise \(content: there \w{64}, here \w{64}\); the files' bytes", said
    )
    assert contents(tmp_path / "store") == whole and "choose another --column" in said
    save(tmp_path / "mine/run/g3_06.npy", tokens(6))
    run(template)


@pytest.mark.parametrize(
    ("files", "layout", "message"),
    [
        ("mine/x.npy", GRID, "no field"),
        ("mine/{colour}/{name}.npy", GRID, "no field 'colour'; there are label"),
        ("mine/{factor.label}.npy", GRID, "factor.label: no factor can have this name"),
        ("mine/{key}.npy", GRID, "a new store has no keys yet"),
        ("mine/{label}/{source}", GRID, "a new store has no sources yet; use {name} or {stem}"),
        ("elsewhere/{name}.npy", GRID, "nothing is there of that name"),
        ("mine/{name}.npy", "dim: 6", "grid.yaml: a layout has the entries"),
        ("mine/{name}.npy", "- 3", "grid.yaml: holds"),
        ("mine/{name}.npy", GRID + "colour: 3", "grid.yaml: a layout has the entries"),
        ("mine/{name}.npy", "grid: null\ndim: 6\norigin: [1]", r"origin is \[1\]"),
        ("mine/{split}/{name}.npy", GRID, "split is 'run'; it is one of train"),
    ],
)
def test_wrong_requests(tmp_path: Path, run, files: str, layout: str, message: str) -> None:
    fill(tmp_path / "mine", ".npy", count=2)
    (tmp_path / "grid.yaml").write_text(layout)
    assert re.search(message, run(str(tmp_path / files), status=1))
    assert not (tmp_path / "store").exists()
