"""WebDataset tars of video files as a source of clips."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from files import fill, write_tar

from shards.videos import find_clips, open_source


def test_tars(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    write_tar(
        tmp_path / "a-000.tar",
        **{
            "x/0001.mp4": b"first", "x/0001.cls": b"7\n", "x/0002.json": b'{"label": "j", "group": "g"}',
            "x/0002.clip.MP4": b"second", "x/0002.cls": b"8", "x/0002.jpg": b"...", "x/._0002.mp4": b"mac",
            "y/0001.txt": b"a text", "y/0001.mkv": b"third", "y/0001.json": b'{"factor.speed": 3, "factor.none": null}',
        },
    )  # fmt: skip
    write_tar(
        tmp_path / "more" / "b.tar", **{"0001.mp4": b"4th", "0001.json": b'{"start": 1, "end": 2.5, "group": "g"}'}
    )
    found = find_clips(source="webdataset", tars=str(tmp_path / "{a-000,more/b}.tar"))
    assert [(clip.name, clip.label, clip.group, clip.start) for clip in found.clips] == [
        ("a-000.tar::x/0001.mp4", "7", "a-000.tar::x/0001.mp4", None),
        ("a-000.tar::x/0002.clip.MP4", "j", "g", None),
        ("a-000.tar::y/0001.mkv", "a text", "a-000.tar::y/0001.mkv", None),
        ("more/b.tar::0001.mp4", None, "g", 1.0),
    ]
    assert [clip.factors for clip in found.clips] == [{}, {}, {"speed": "3"}, {}]
    contents = [open_source(clip).read() for clip in found.clips]  # type: ignore[union-attr]
    assert contents == [b"first", b"second", b"third", b"4th"]
    assert "members of the tars left out: 1 x .jpg" in found.notes
    globbed = find_clips(source="webdataset", tars="**/*.tar", root=tmp_path)
    assert {clip.key for clip in globbed.clips} == {clip.key for clip in found.clips}


def test_a_tar_that_changed(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", **{f"{index}.mp4": b"x" * 2000 for index in range(3)})
    clip = find_clips(source="webdataset", tars=str(tmp_path / "a.tar")).clips[2]
    os.truncate(tmp_path / "a.tar", 6000)
    with pytest.raises(OSError, match=r"a.tar ends within a.tar::2.mp4"):
        open_source(clip)


def test_tars_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file at .*gone.tar"):
        find_clips(source="webdataset", tars="gone.tar", root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file at .*x-\*.tar"):
        find_clips(source="webdataset", tars=str(tmp_path / "x-*.tar"))
    with pytest.raises(FileNotFoundError, match=r"is a folder; write .*/\*.tar"):
        find_clips(source="webdataset", tars=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="only files on this machine are read"):
        find_clips(source="webdataset", tars="https://example.org/{000..002}.tar")
    with pytest.raises(ValueError, match=r"data.tars=a-\{0..2.tar: Unbalanced braces.*write it as in clips-\{000"):
        find_clips(source="webdataset", tars="a-{0..2.tar")
    with tarfile.open(tmp_path / "z.tar.gz", "w:gz"):
        pass
    with pytest.raises(ValueError, match="z.tar.gz is not a whole, uncompressed tar"):
        find_clips(source="webdataset", tars=str(tmp_path / "z.tar.gz"))
    cut = write_tar(tmp_path / "cut.tar", **{"1.mp4": b"x" * 2000})
    os.truncate(cut, 1000)
    with pytest.raises(ValueError, match="cut.tar is not a whole"):
        find_clips(source="webdataset", tars=str(cut))
    write_tar(tmp_path / "n.tar", **{"1.txt": b"x"})
    with pytest.raises(ValueError, match="no video in 1 tars"):
        find_clips(source="webdataset", tars=str(tmp_path / "n.tar"))
    bad = {"1.mp4": b"a", "1.json": b"{no", "2.mp4": b"b", "2.json": b'{"split": "dev"}', "3.mp4": b"c", "3.avi": b"d"}
    bad |= {"4.mp4": b"d", "4.json": json.dumps([1]).encode(), "5.mp4": b"e", "5.json": b'{"label": ["a"]}'}
    bad |= {"6.mp4": b"f", "6.json": b'{"factor.a b": 1, "factor.c": {}}'}
    write_tar(tmp_path / "bad.tar", **bad)
    with pytest.raises(ValueError) as caught:
        find_clips(source="webdataset", tars=str(tmp_path / "bad.tar"))
    for part in [
        "bad.tar::1.json: Expecting",
        "bad.tar::2.mp4: split is 'dev'",
        "3.avi: a second video beside bad.tar::3.mp4: both have the key '3'",
        "bad.tar::5.mp4: label is ['a']; it must be text or a number",
        "bad.tar::6.mp4: factor.a b names the factor 'a b'",
        "bad.tar::6.mp4: factor.c is {}; it must be text or a number",
        "4.json: not a",
    ]:
        assert part in str(caught.value)


def test_member_names_lead_nowhere(tmp_path: Path) -> None:
    """Links and paths out of the tar: a member is bytes at an offset, its name is never opened."""
    fill(tmp_path, "secret.mp4")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in [("1.mp4", tarfile.SYMTYPE), ("2.mp4", tarfile.LNKTYPE), ("4.mp4", tarfile.FIFOTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "secret.mp4"
            tar.addfile(info)
        for name in ("../../secret.mp4", "/etc/5.mp4", "6.mp4"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"own"))
    found = find_clips(source="webdataset", tars=str(tmp_path / "a.tar"))
    assert len(found.clips) == 3 and "members of the tars left out: 3 x .mp4, no plain file" in found.notes
    assert {open_source(clip).read() for clip in found.clips} == {b"own"}  # type: ignore[union-attr]
