from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from files import fill, write_csv, write_tar

from shards.videos import Clip, Found, data_digest, find_clips, open_source

KEY = re.compile(r"\d{6}-[0-9a-f]{10}")


def sides(found: Found) -> dict[str, set[str]]:
    return {clip.group: {other.split for other in found.clips if other.group == clip.group} for clip in found.clips}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(
        tmp_path / "видео und mehr",
        *("run/b 1.mp4", "run/deep/er/a.MKV", "walk/ünï#?.avi", "walk/c.mov", "stray.webm"),
        *("walk/notes.txt", "walk/.hidden.mp4", ".cache/x.mp4", "LICENSE"),
    )


def test_folder(folder: Path) -> None:
    found = find_clips(source="folder", root=folder)
    assert [clip.name for clip in found.clips] == [
        *("run/b 1.mp4", "run/deep/er/a.MKV", "stray.webm", "walk/c.mov", "walk/ünï#?.avi")
    ]
    assert [clip.label for clip in found.clips] == ["run", "run", None, "walk", "walk"]
    assert found.labels == ["run", "walk"] and {clip.split for clip in found.clips} == {"train", "val", "test"}
    assert all(clip.group == clip.name and clip.position == (0, 1) and clip.start is None for clip in found.clips)
    assert "2 files left out, no videos by their extension: LICENSE, walk/notes.txt" in found.notes
    assert "1 of 5 clips have no label" in found.notes
    for clip in found.clips:
        assert Path(open_source(clip)).read_text() == f"video {clip.name}"  # type: ignore[arg-type]


def test_keys_are_distinct_short_and_do_not_depend_on_the_machine(folder: Path, tmp_path: Path) -> None:
    found = find_clips(source="folder", root=folder, clips_per_video=2)
    keys = [clip.key for clip in found.clips]
    assert len(set(keys)) == 10 and all(KEY.fullmatch(key) for key in keys)
    assert len({key[7:] for key in keys}) == 10
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "x")
    again = find_clips(source="folder", root=moved, clips_per_video=2)
    assert [clip.key for clip in again.clips] == keys and data_digest(again.clips) == data_digest(found.clips)
    longer = find_clips(source="folder", root=folder, clips_per_video=2, clip_seconds=3.0)
    assert not {clip.key for clip in longer.clips} & set(keys)


def test_clips_of_a_video_stay_together(folder: Path) -> None:
    found = find_clips(source="folder", root=folder, clips_per_video=3)
    assert [clip.position for clip in found.clips[:3]] == [(0, 3), (1, 3), (2, 3)]
    assert len(sides(found)) == 5 and all(len(side) == 1 for side in sides(found).values())


def test_links(folder: Path) -> None:
    (folder / "run" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "walk" / "again.mp4").symlink_to(folder / "run" / "b 1.mp4")
    (folder / "walk" / "dead.mp4").symlink_to(folder / "nowhere.mp4")
    os.mkfifo(folder / "walk" / "pipe.mp4")
    found = find_clips(source="folder", root=folder)
    names = [clip.name for clip in found.clips]
    assert len(names) == 6 and "walk/again.mp4" in names
    assert {clip.group for clip in found.clips if clip.name in ("walk/again.mp4", "run/b 1.mp4")} == {"run/b 1.mp4"}


def test_groups_by_regular_expression(tmp_path: Path) -> None:
    root = fill(tmp_path, *(f"{name}/{name}{index:03d}.mp4" for name in ("a", "b") for index in range(0, 60, 5)))
    found = find_clips(source="folder", root=root, group=r"/(\w)\d(\d)\d")
    assert sorted(sides(found)) == [f"{name}/{digit}" for name in "ab" for digit in range(6)]
    assert all(len(side) == 1 for side in sides(found).values())
    with pytest.raises(ValueError, match=r"b/b055.mp4: data.group='\^a' matches nothing"):
        find_clips(source="folder", root=root, group="^a")
    with pytest.raises(ValueError, match=r"data.group='\(' is not a regular expression"):
        find_clips(source="folder", root=root, group="(")
    with pytest.raises(ValueError, match=r"24 clips make 2 group\(s\): 'a', 'b'"):
        find_clips(source="folder", root=root, group="^[ab]")


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="data.root=.*nowhere is not a folder"):
        find_clips(source="folder", root=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no video: it is empty"):
        find_clips(source="folder", root=tmp_path)
    fill(tmp_path, "a/readme.txt")
    with pytest.raises(ValueError, match="holds no video: 1 files left out, no videos by .*: a/readme.txt"):
        find_clips(source="folder", root=tmp_path)
    (tmp_path / "a" / "1.mp4").symlink_to(tmp_path / "annex" / "1.mp4")
    with pytest.raises(ValueError, match="1 links left out, they lead nowhere: a/1.mp4"):
        find_clips(source="folder", root=tmp_path)


def test_a_folder_that_cannot_be_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shards.sources.os.scandir", scandir)
    with pytest.raises(OSError, match=r"data.root=.* cannot be listed \(Permission denied\); allow it"):
        find_clips(source="folder", root=folder)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """They can be opened, written and printed."""
    for name in (b"a\xff/v\xfe.mp4", b"a\xff/2.mp4", b"b/3.mp4"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name)
    clips = find_clips(source="folder", root=tmp_path).clips
    assert [clip.name for clip in clips] == ["a\\xff/2.mp4", "a\\xff/v\\xfe.mp4", "b/3.mp4"]
    assert [clip.label for clip in clips] == ["a\\xff", "a\\xff", "b"]
    assert Path(str(open_source(clips[1]))).read_bytes() == b"a\xff/v\xfe.mp4"
    write_tar(tmp_path / "a.tar", **{os.fsdecode(b"\xff%d.mp4" % number): b"video" for number in range(3)})
    assert find_clips(source="webdataset", tars=str(tmp_path / "a.tar")).clips[0].name == "a.tar::\\xff0.mp4"


def test_what_a_source_needs() -> None:
    for source, entry in [
        ("folder", "data.root"),
        ("csv", "data.csv"),
        ("webdataset", "data.tars"),
        ("demo", "rendered_dir"),
        ("world", "rendered_dir"),
    ]:
        with pytest.raises(ValueError, match=f"data.source={source} needs {entry}"):
            find_clips(source=source)
    with pytest.raises(ValueError, match="data.source is 'foldr'"):
        find_clips(source="foldr")


def test_csv(folder: Path) -> None:
    path = write_csv(
        folder,
        "run/b 1.mp4,run,train,,0.5,2.5",
        "./run/../run/b 1.mp4,run,,,2.5,4.5",
        "walk/c.mov,walk,val,blocked,,",
        f"{folder}/walk/ünï#?.avi, walk ,test,,,",
        "stray.webm,,,blocked,,",
    )
    found = find_clips(source="csv", csv=path, clips_per_video=2)
    shown = [
        (clip.name, clip.label, clip.split, clip.group, clip.start, clip.end, clip.position) for clip in found.clips
    ]
    assert shown == [
        ("run/b 1.mp4", "run", "train", "run/b 1.mp4", 0.5, 2.5, (0, 1)),
        ("run/b 1.mp4", "run", "train", "run/b 1.mp4", 2.5, 4.5, (0, 1)),
        ("walk/c.mov", "walk", "val", "blocked", None, None, (0, 2)),
        ("walk/c.mov", "walk", "val", "blocked", None, None, (1, 2)),
        ("walk/ünï#?.avi", "walk", "test", "walk/ünï#?.avi", None, None, (0, 2)),
        ("walk/ünï#?.avi", "walk", "test", "walk/ünï#?.avi", None, None, (1, 2)),
        ("stray.webm", None, "val", "blocked", None, None, (0, 2)),
        ("stray.webm", None, "val", "blocked", None, None, (1, 2)),
    ]
    assert len({clip.key for clip in found.clips}) == 8


def test_csv_relative_to_a_root_and_with_columns_of_its_own(folder: Path, tmp_path: Path) -> None:
    rows = ["run/b 1.mp4,run,7", "walk/c.mov,walk,8", "stray.webm,x,9"]
    path = write_csv(tmp_path, *rows, header="path,label,fold")
    found = find_clips(source="csv", csv=path, root=folder)
    assert [Path(clip.source).is_file() for clip in found.clips] == [True] * 3
    assert "columns of clips.csv that mean nothing here: fold" in found.notes


def test_csv_factors(folder: Path) -> None:
    rows = ["run/b 1.mp4,run, red ,7", "walk/c.mov,walk,,8", "stray.webm,x,blue,", "walk/ünï#?.avi,walk,,"]
    path = write_csv(folder, *rows, header="path,label, factor.colour,factor.hand-size_2")
    found = find_clips(source="csv", csv=path, clips_per_video=2)
    assert [clip.factors for clip in found.clips[::2]] == [
        *({"colour": "red", "hand-size_2": "7"}, {"hand-size_2": "8"}, {"colour": "blue"}, {})
    ]
    assert found.clips[1].factors == found.clips[0].factors
    assert found.notes[0] == "factors: colour (2 values), hand-size_2 (2 values)"
    assert not any("mean nothing" in note for note in found.notes)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("factor.", "factor. names the factor ''; a name is letters, digits, _ and -; rename it"),
        ("factor. red", "factor. red names the factor ' red'"),
        ("factor.a/b", "factor.a/b names the factor 'a/b'"),
        ("factor.ü", "factor.ü names the factor 'ü'"),
        ("factor.label", "factor.label: no factor can have this name, label is a column of its own; rename it"),
        ("factor.x,factor.x", "the header has factor.x 2 times; rename one of them"),
    ],
)
def test_csv_factors_that_are_none(folder: Path, column: str, message: str) -> None:
    """Told once, of the header, whatever the rows hold."""
    path = write_csv(folder, "stray.webm,x,,", "walk/c.mov,x,1,2", header=f"path,label,{column},note")
    where = "clips.csv: " if "2 times" in message else r"clips.csv, header: 1 problem.*"
    with pytest.raises(ValueError, match=f"(?s){where}{re.escape(message)}"):
        find_clips(source="csv", csv=path)


def test_csv_names_do_not_depend_on_how_the_path_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"{folder}/run/b 1.mp4,run", "walk/c.mov,walk", "stray.webm,x"]
    path = write_csv(folder, *rows, header="path,label")
    monkeypatch.chdir(tmp_path)
    relative = find_clips(source="csv", csv=path.relative_to(tmp_path))
    assert [clip.key for clip in relative.clips] == [clip.key for clip in find_clips(source="csv", csv=path).clips]
    assert relative.clips[0].name == "run/b 1.mp4"


def test_csv_reports_all_bad_rows_with_their_lines(folder: Path) -> None:
    path = write_csv(
        folder,
        "run/b 1.mp4,run,train,,0.5,2.5",
        "run/gone.mp4,run,,,,",
        "walk/c.mov,walk,dev,,,",
        "walk/c.mov,walk,,,3,2",
        "walk/c.mov,walk,,,one,2",
        "walk/c.mov,walk,,,-1,nan",
        "walk/c.mov,walk,,,1,",
        ",walk,,,,",
        "run/b 1.mp4,run,train,,0.5,2.5",
        "run/b 1.mp4,run,train,,9,10,11,12",
    )
    with pytest.raises(ValueError) as caught:
        find_clips(source="csv", csv=path)
    message = str(caught.value)
    for part in [
        "line 3, run/gone.mp4: no file at",
        "line 4, walk/c.mov: split is 'dev'",
        "line 5, walk/c.mov: end 2 is not after start 3",
        "line 6, walk/c.mov: start is 'one', not a number",
        "line 7, walk/c.mov: start is -1;",
        "line 7, walk/c.mov: end is nan;",
        "line 8, walk/c.mov: start and end go together",
        "line 9, no path: the path is empty",
        "line 10, run/b 1.mp4: the same clip as in line 2",
        "line 11, run/b 1.mp4: more fields",
    ]:
        assert part in message
    assert "line 2," not in message and "10 problem(s)" in message


def test_csv_groups_and_splits_must_agree(folder: Path) -> None:
    rest = ["walk/c.mov,walk,,,,", "walk/ünï#?.avi,walk,,,,", "stray.webm,x,,,,"]
    path = write_csv(folder, "run/b 1.mp4,run,,one,0,1", "run/b 1.mp4,run,,two,1,2", *rest)
    with pytest.raises(ValueError, match="run/b 1.mp4: one file stands in 2 groups: 'one', 'two'"):
        find_clips(source="csv", csv=path)
    path = write_csv(folder, "run/b 1.mp4,run,train,,0,1", "run/b 1.mp4,run,test,,1,2", *rest)
    with pytest.raises(ValueError, match="group 'run/b 1.mp4' is given test and train"):
        find_clips(source="csv", csv=path)
    path = write_csv(folder, "run/b 1.mp4,run,,one,0,1", "run/b 1.mp4,run,,,1,2", *rest)
    assert [clip.group for clip in find_clips(source="csv", csv=path).clips][:2] == ["one", "one"]


def test_csv_files_that_are_none(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="data.csv=.*gone.csv is not a file"):
        find_clips(source="csv", csv=folder / "gone.csv")
    with pytest.raises(ValueError, match=r"no column label; the header is \['path', 'class'\]"):
        find_clips(source="csv", csv=write_csv(folder, header="path,class"))
    with pytest.raises(ValueError, match="has a header and no rows"):
        find_clips(source="csv", csv=write_csv(folder))
    with pytest.raises(ValueError, match=r"commas: path,label\[,split,group,start,end,factor.NAME\]"):
        find_clips(source="csv", csv=write_csv(folder, "stray.webm;x", header="path;label"))
    with pytest.raises(ValueError, match="the header has label 2 times"):
        find_clips(source="csv", csv=write_csv(folder, "stray.webm,x,y", header="path,label,label"))
    with pytest.raises(ValueError, match="line 2, run: .*run is a folder"):
        find_clips(source="csv", csv=write_csv(folder, "run,x", header="path,label"))
    (folder / "clips.csv").write_bytes(b"path,label\n\xff\xfe,x\n")
    with pytest.raises(ValueError, match="cannot be read as CSV in UTF-8"):
        find_clips(source="csv", csv=folder / "clips.csv")


def test_data_digest_sees_what_matters(folder: Path) -> None:
    clips = find_clips(source="folder", root=folder).clips
    digest = data_digest(clips)

    def other(**entries: object) -> list[Clip]:
        return [replace(clips[0], **entries), *clips[1:]]

    assert digest == data_digest(other(source="/elsewhere", split="val"))
    for entries in ({"label": "x"}, {"group": "x"}, {"size": 1}, {"key": "x"}, {"start": 1.0}, {"factors": {"a": "x"}}):
        assert data_digest(other(**entries)) != digest
    assert data_digest(clips[1:]) != digest
