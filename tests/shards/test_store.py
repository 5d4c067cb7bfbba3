from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from shards import FeatureStore
from shards.column import CLIPS, Sidecar, keys_digest
from shards.disk import StoreError
from teachers.layout import TokenLayout


def edit(path: Path, change) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_joined_clips(store: FeatureStore, tiny) -> None:
    clips = tiny.clips()
    assert len(store) == 10 and store.keys == [clip.key for clip in clips]
    assert store.labels == ["jump", "run"] and store.label_indices[:3] == [1, -1, 0]
    assert store.groups[:3] == ["g0", "g0", "g1"] and store.refused == {}
    assert store.indices("test") == [4, 9] and len(store.indices("train")) == 6
    assert store.clips[2]["span"] == [0.0, 2.0] and store.clips[2]["split"] == "val"
    assert set(store.digests) == {"split", "view", "data"}
    assert store.columns["videomae"].origin["function"] == "tiny:1" and store.layout("student").shape == (8, 6)
    with pytest.raises(ValueError, match="split is 'dev'"):
        store.indices("dev")


def test_a_sample_has_the_backbones_units(store: FeatureStore, tiny) -> None:
    sample = store[3]
    video = torch.full((1, 2, 3, 4, 4), 3 / 255)
    assert sample["key"] == "000003-abc" and sample["label"] == "run"
    for name, seed in (("student", 0), ("videomae", 1)):
        expected = tiny.backbone(seed)(video)[0]
        assert sample[name].dtype == torch.float32 and (sample[name] - expected).abs().max() < 0.05
    assert store[-1]["key"] == store.keys[9]
    with pytest.raises(IndexError):
        store[10]


def test_columns_are_chosen(store: FeatureStore) -> None:
    assert set(FeatureStore(store.path, ["student"])[0]) == {"key", "label", "student"}
    with pytest.raises(StoreError, match="column 'vivit' is not there; complete ones: student, videomae.*precompute"):
        FeatureStore(store.path, ["vivit"])
    with pytest.raises(StoreError, match="column 'videomae' is not open; open ones: student"):
        FeatureStore(store.path, ["student"]).layout("videomae")
    with pytest.raises(StoreError, match="is no feature store.*precompute"):
        FeatureStore(store.path / "elsewhere")
    edit(store.path / "manifest.json", lambda d: d["columns"]["videomae"].update(coverage={"complete": False}))
    assert list(FeatureStore(store.path).columns) == ["student"]
    with pytest.raises(StoreError, match="column 'videomae' is incomplete"):
        FeatureStore(store.path, ["videomae"])


def test_special_tokens_are_chosen(tmp_path: Path, tiny) -> None:
    layout = TokenLayout((2, 2, 2), 6, special=("cls", "register", "last"))
    pooled = TokenLayout(None, 6)
    columns = {"student": tiny.backbone(layout=layout), "vivit": tiny.backbone(2, layout=pooled)}
    tiny.extract(tmp_path, columns=columns)
    everything = FeatureStore(tmp_path)
    assert everything[1]["student"].shape == (11, 6)
    for names, rows in (((), range(8)), (("cls",), range(9)), (("last", "cls"), [*range(8), 8, 10])):
        some = FeatureStore(tmp_path, special={"student": names, "vivit": ()})
        assert some.layout("student").special == tuple(n for n in layout.special if n in names)
        assert torch.equal(some[1]["student"], everything[1]["student"][list(rows)])
        assert some[1]["vivit"].shape == (1, 6)
        assert torch.equal(some.statistics("student")["mean"], everything.statistics("student")["mean"][list(rows)])
    with pytest.raises(
        StoreError, match=r"column 'student' has no token 'dist' beside its grid, but \['cls', 'register'"
    ):
        FeatureStore(tmp_path, special={"student": ("dist",)})


@pytest.mark.parametrize("column", ["student", CLIPS])
def test_a_flipped_byte_names_shard_and_clip(store: FeatureStore, column: str) -> None:
    member = Sidecar.read(store.path, column, 1, spec={} if column == CLIPS else store.columns[column].spec).members[
        "000005-abc"
    ]
    path = store.path / column / "00001.tar"
    data = bytearray(path.read_bytes())
    data[member.offset + member.bytes - 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=f'{column}/00001.tar, clip "000005-abc" is damaged'):
        FeatureStore(store.path)[5]
    if column != CLIPS:
        assert FeatureStore(store.path)[4]["key"] == "000004-abc"


def test_a_truncated_tar_is_noticed(store: FeatureStore) -> None:
    path = store.path / "videomae" / "00002.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-600])
    with pytest.raises(StoreError, match=f"videomae/00002.tar is missing or not {len(whole)} bytes long"):
        FeatureStore(store.path)
    with pytest.raises(StoreError, match='videomae/00002.tar, clip "000009-abc" is damaged'):
        path.write_bytes(whole[:1500])
        store.read(9, "videomae")


def test_links_are_not_followed(store: FeatureStore, tmp_path: Path) -> None:
    shutil.move(store.path / "videomae", tmp_path / "outside")
    (store.path / "videomae").symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match="videomae.* no links"):
        FeatureStore(store.path)


def drop(key: str):
    """Takes a clip out of a sidecar without declaring it."""

    def change(document) -> None:
        document["members"].pop(key)
        document["keys"] = keys_digest([*document["members"], *document["refused"]])

    return change


def test_undeclared_differences_stop(store: FeatureStore) -> None:
    path = store.path / "videomae" / "00001.json"
    text = path.read_text()
    edit(path, drop("000006-abc"))
    with pytest.raises(StoreError, match='videomae/00001 lacks a clip without declaring it: "000006-abc"'):
        FeatureStore(store.path)
    assert len(FeatureStore(store.path, ["student"])) == 10
    path.write_text(text)
    edit(path, lambda d: d.update(members=dict(reversed(d["members"].items()))))
    with pytest.raises(StoreError, match='videomae/00001 holds clip "000007-abc" where clips/ has "000004-abc"'):
        FeatureStore(store.path)
    path.write_text(text)
    edit(store.path / CLIPS / "00001.json", drop("000006-abc"))
    with pytest.raises(StoreError, match='student/00001 has a clip that clips/ lacks: "000006-abc"'):
        FeatureStore(store.path)
    for column in (CLIPS, "student"):
        if column == "student":
            edit(store.path / column / "00001.json", drop("000006-abc"))
    with pytest.raises(StoreError, match="not those of the manifest's partition"):
        FeatureStore(store.path, ["student"])


def test_declared_differences_are_counted(store: FeatureStore) -> None:
    """A column that refuses or does not cover a clip leaves it out of what is joined with it, and of nothing else."""

    def declare(document) -> None:
        document["members"].pop("000004-abc")
        document["members"].pop("000006-abc")
        document["refused"]["000004-abc"] = "NaN"
        document["uncovered"].append("000006-abc")

    edit(store.path / "videomae" / "00001.json", declare)
    joined = FeatureStore(store.path)
    assert len(joined) == 8 and joined.refused == {"000004-abc": "NaN"}
    assert joined.uncovered == {"000006-abc"}
    for index, key in enumerate(joined.keys):
        assert torch.equal(joined[index]["videomae"], store[store.keys.index(key)]["videomae"])
    assert len(FeatureStore(store.path, ["student"])) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=7), "has schema 7; this version reads 1"),
        (lambda d: d.pop("partition"), "is damaged.*partition"),
        (lambda d: d["partition"].update(shards=99), "does not add up"),
        (lambda d: d["partition"].update(clips_per_shard=0), "does not add up|damaged"),
        (lambda d: d["columns"].update({"../out": d["columns"].pop("student")}), "column '../out'"),
        (lambda d: d["columns"]["student"].update(codec="zip"), "codec is 'zip'"),
        (
            lambda d: d["columns"]["student"]["layout"].update(dim=10**12),
            r"student/00000.json: .*\[8, 1000000000000\]|10+",
        ),
        (lambda d: d.update(columns=3), "is damaged"),
    ],
)
def test_a_damaged_manifest_is_refused(store: FeatureStore, change, message: str) -> None:
    edit(store.path / "manifest.json", change)
    with pytest.raises(StoreError, match=message):
        FeatureStore(store.path)
