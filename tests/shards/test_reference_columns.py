"""Teachers on other renderings of the test clips: which clips, one decode of each, what a store says of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_features import planned, write_video

from shards import audit, features
from shards.references import SHIFTS, find_references, reference_column
from shards.store import FeatureStore
from shards.view import render_views

SPLITS = ("train", "test", "train", "val", "test", "train")
ASKED = "evaluate.references=[student_frames,shifts]"
NAMES = ("student_frames", "shift_1", "shift_2", "shift_4")
FRAMES = "student.options={grid: [2, 4, 4], frames: 2, pixels: 16, cells: 2}"
PIXELS = "targets.videomae.options={grid: [2, 2, 2], frames: 4, pixels: 8, cells: 1}"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("videos")
    for number in range(len(SPLITS)):
        write_video(root / f"{number}.mp4", seed=number)
    rows = [f"{number}.mp4,x,{split}" for number, split in enumerate(SPLITS)]
    (root / "clips.csv").write_text("\n".join(["path,label,split", *rows]))
    return [f"data.csv={root / 'clips.csv'}", "data=csv", FRAMES, PIXELS]


def plan(words: list[str], path: Path, *more: str) -> features.Features:
    root = Path(words[0].removeprefix("data.csv=")).parent
    return planned(root, *words, f"store.path={path}", *more)


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the clips that were decoded, as often as they were."""
    names: list[str] = []

    def counted(clip, requests, **settings):
        names.append(clip.name)
        return render_views(clip, requests, **settings)

    monkeypatch.setattr(features, "render_views", counted)
    return names


def test_references_are_columns_of_the_test_clips_from_one_decode(
    words: list[str], tmp_path: Path, rendered: list[str]
) -> None:
    asked = plan(words, tmp_path / "store", ASKED)
    store = asked.extract()
    assert sorted(rendered) == [f"{number}.mp4" for number in range(6)]
    assert len(store) == 6 and set(store.columns) == {"student", "videomae"}
    found = find_references(store, {"videomae": []}, ["student_frames", "shifts", "large"])
    assert found.missing == [] and list(found.columns) == list(NAMES) and found.store is not None
    assert found.store.keys == [store.keys[index] for index in store.indices("test")]
    clip = asked.found.clips[1]
    _, views, _ = render_views(clip, [(2, 8), (4, 8)], clip_seconds=2.0)
    for name in NAMES:
        column = found.columns[name]["videomae"]
        source = asked.sources[column]
        again = source(views[source.frames, 8][None].float() / 255)[0]
        assert torch.allclose(found.store[0][column], again, atol=0.01)
        assert not torch.allclose(found.store[0]["videomae"], again, atol=0.02)
        assert store.manifest.columns[column].coverage["uncovered"] == 4
    again = plan(words, tmp_path / "store", ASKED)
    again.extract()
    assert "sources" not in vars(again)


def test_references_added_later_read_the_test_clips_alone(
    words: list[str], tmp_path: Path, rendered: list[str]
) -> None:
    """And give the same bytes as those that were made with the rest."""
    store = plan(words, tmp_path / "store").extract()
    assert find_references(store, {"videomae": []}, ["shifts"]).missing == [
        "references: no shifts of videomae: these are made with the videos, and the store has none"
    ]
    rendered.clear()
    plan(words, tmp_path / "store", ASKED).extract()
    assert sorted(rendered) == ["1.mp4", "4.mp4"]
    plan(words, tmp_path / "once", ASKED).extract()
    for name in NAMES:
        for file in sorted((tmp_path / "once" / reference_column(name, "videomae")).iterdir()):
            assert file.read_bytes() == (tmp_path / "store" / file.parent.name / file.name).read_bytes(), file


def test_a_teacher_on_a_part_has_its_references_there(words: list[str], tmp_path: Path) -> None:
    asked = plan(words, tmp_path / "store", ASKED, "targets.videomae.clips=5")
    store = asked.extract()
    found = find_references(store, {"videomae": []}, ["shifts"])
    assert found.store is not None and found.store.keys == [store.keys[index] for index in store.indices("test")]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_part_without_a_test_clip_has_no_references(words: list[str], tmp_path: Path, split: str) -> None:
    """The one clip of the part, which a hash draws, is in this split."""
    one = plan(words, tmp_path / "store", "targets.videomae.clips=1")
    drawn = next(clip.source for clip in one.found.clips if clip.key in one.covers["videomae"])
    others = iter(("train", "train", "val", "test", "train"))
    rows = [f"{n}.mp4,x,{split if f'{n}.mp4' in drawn else next(others)}" for n in range(len(SPLITS))]
    (tmp_path / "clips.csv").write_text("\n".join(["path,label,split", *rows]))
    more = [f"data.csv={tmp_path / 'clips.csv'}", f"data.root={Path(words[0].removeprefix('data.csv=')).parent}"]
    asked = plan(words, tmp_path / "store", ASKED, "targets.videomae.clips=1", *more)
    names = {reference_column(name, "videomae") for name in NAMES}
    assert set(asked.columns) - {"student", "videomae"} == (names if split == "test" else set())


def test_the_audit_runs_references_again_and_all_other_clips(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(words, tmp_path / "store", ASKED).extract()
    assert audit.main([str(tmp_path / "store"), "--rerun", "6", "--damage"]) == 0, capsys.readouterr()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rerun: 0")]
    assert len(lines) == 6 * 2 + 2 * (1 + len(SHIFTS))
    cosines = [float(line.rpartition(" ")[2]) for line in lines]
    assert min(cosines) > 0.99


def test_a_reference_that_is_not_whole_is_missing(words: list[str], tmp_path: Path) -> None:
    asked = plan(words, tmp_path / "store", ASKED)
    store = asked.extract()
    manifest = FeatureStore(store.path).manifest
    del manifest.columns["shift_2_videomae"]
    manifest.write(tmp_path / "store")
    found = find_references(FeatureStore(store.path, ["student"]), {"videomae": []}, ["shifts"])
    assert list(found.columns) == ["shift_1", "shift_4"] and len(found.missing) == 1
