from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from shards.codec import encoded_spec
from shards.column import Sidecar, check_column, check_key, keys_digest, member_bytes, tar_header
from shards.disk import StoreError, open_inside, read_exactly, read_inside, remove_temporaries, write_atomically
from shards.tensorfile import header, pack
from shards.writer import ShardWriter

SPEC = encoded_spec("int8", (3, 5))


def clip(seed: int, shape: tuple[int, int] = (3, 5)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
    return {"q": q, "scale": torch.rand(shape[0], generator=generator).half()}


def write(root: Path, keys: list[str], *, column: str = "student", refused: dict[str, str] | None = None) -> Sidecar:
    with ShardWriter(root, column=column, shard=0, spec=SPEC) as writer:
        for number, key in enumerate(keys):
            writer.add(key, clip(number))
        for key, reason in (refused or {}).items():
            writer.refuse(key, reason)
        return writer.finish()


@settings(max_examples=40, deadline=None)
@given(
    keys=st.lists(st.from_regex(r"\A[A-Za-z0-9_-]{1,88}\Z"), unique=True, max_size=6),
    shape=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    seed=st.integers(0, 1000),
)
def test_index_finds_every_member(tmp_path_factory, keys: list[str], shape: tuple[int, int], seed: int) -> None:
    root, spec = tmp_path_factory.mktemp("index"), encoded_spec("int8", shape)
    clips = {key: clip(seed + number, shape) for number, key in enumerate(keys)}
    with ShardWriter(root, column="student", shard=3, spec=spec) as writer:
        for key, tensors in clips.items():
            writer.add(key, tensors)
        written = writer.finish()
    sidecar = Sidecar.read(root, "student", 3, spec=spec)
    assert sidecar == written and list(sidecar.members) == keys and sidecar.has_tar(root)
    data = (root / "student" / "00003.tar").read_bytes()
    for key, tensors in clips.items():
        member = sidecar.members[key]
        loaded = load(data[member.offset : member.offset + member.bytes])
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
        assert (member.offset + len(header(spec))) % 64 == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [m.name for m in tar] == [f"{key}.safetensors" for key in keys]
        assert all(m.mtime == 0 and m.isreg() for m in tar)


def test_opens_with_webdataset_and_safetensors(tmp_path: Path) -> None:
    write(tmp_path, ["000000-a", "000001-b"])
    samples = list(webdataset.WebDataset(str(tmp_path / "student" / "00000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["000000-a", "000001-b"]
    assert torch.equal(load(samples[1]["safetensors"])["q"], clip(1)["q"])


def test_same_content_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, ["k1", "k0"], refused={"k3": "z", "k2": "y"} if name == "a" else {"k2": "y", "k3": "z"})
    for file in ("00000.tar", "00000.json"):
        assert (tmp_path / "a/student" / file).read_bytes() == (tmp_path / "b/student" / file).read_bytes()
    document = json.loads((tmp_path / "a/student/00000.json").read_text())
    assert document["refused"] == {"k2": "y", "k3": "z"} and document["keys"] == keys_digest(["k0", "k1", "k2", "k3"])
    assert document["members"]["k1"]["tensors"]["q"] == {"dtype": "I8", "shape": [3, 5], "data_offsets": [0, 15]}


def test_header_matches_tarfile() -> None:
    info = tarfile.TarInfo("0-a.safetensors")
    info.size, info.mtime = 12345, 0
    theirs = tarfile.TarInfo.frombuf(info.tobuf(tarfile.USTAR_FORMAT), "utf-8", "strict")
    ours = tarfile.TarInfo.frombuf(tar_header("0-a.safetensors", 12345), "utf-8", "strict")
    same = [{**info.get_info(), "chksum": 0} for info in (ours, theirs)]  # tarfile leaves the device fields empty
    assert tar_header("k", 0)[257:265] == b"ustar\x0000"
    assert same[0] == same[1] and len(tar_header("x" * 100, 1)) == 512


def test_an_interrupted_shard_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path, column="student", shard=0, spec=SPEC) as writer:
        writer.add("k", clip(0))
        raise KeyboardInterrupt
    assert list((tmp_path / "student").iterdir()) == []
    with pytest.raises(FileNotFoundError):
        Sidecar.read(tmp_path, "student", 0, spec=SPEC)


def test_temporary_files_are_removed(tmp_path: Path) -> None:
    write(tmp_path, ["k"])
    (tmp_path / "student" / "00001.tar.tmp").write_bytes(b"half")
    (tmp_path / "manifest.json.tmp").write_bytes(b"{")
    assert remove_temporaries(tmp_path) == 2
    assert sorted(path.name for path in (tmp_path / "student").iterdir()) == ["00000.json", "00000.tar"]


def test_writer_refuses_wrong_members(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, column="student", shard=0, spec=SPEC) as writer:
        writer.add("k", clip(0))
        with pytest.raises(ValueError, match='clip "k" is given twice'):
            writer.add("k", clip(0))
        with pytest.raises(ValueError, match=r'student/00000.tar, clip "l": .*\(4, 5\)'):
            writer.add("l", clip(0, (4, 5)))
        with pytest.raises(ValueError, match="clip key 'a.b'"):
            writer.add("a.b", clip(0))
    with pytest.raises(ValueError, match="clip key"):
        check_key("k" * 89)
    with pytest.raises(ValueError, match="column '../x'"):
        check_column("../x")
    with pytest.raises(ValueError, match="column 'label'"):
        check_column("label")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=9), "schema is 9"),
        (lambda d: d.update(column="other"), "column is 'other'"),
        (lambda d: d["members"]["k0"].update(offset=10**9), 'clip "k0": bytes 1000000000'),
        (lambda d: d["members"]["k0"].update(offset=-5), "-5 is not a count"),
        (lambda d: d["members"]["k0"].update(xxh3_64="-1"), "clip \"k0\": xxh3_64 is '-1', expected 16 hex digits"),
        (lambda d: d["members"]["k0"].update(xxh3_64="f" * 17), "xxh3_64 is 'f{17}', expected 16 hex digits"),
        (lambda d: d["members"]["k0"].update(xxh3_64=3), "xxh3_64 is '3', expected 16 hex digits"),
        (lambda d: d["members"]["k0"].update(bytes=3), 'clip "k0": 3 bytes'),
        (lambda d: d["members"]["k0"]["tensors"]["q"].update(shape=[9, 5]), r'clip "k0": .*\[9, 5\]'),
        (lambda d: d["members"].update({"../../etc": d["members"].pop("k0")}), "clip key '../../etc'"),
        (lambda d: d["members"].pop("k0"), "its keys have digest"),
        (lambda d: d.pop("sha256"), "is damaged"),
        (lambda d: d.update(members=[1]), "is damaged"),
    ],
)
def test_a_damaged_sidecar_is_refused(tmp_path: Path, change, message: str) -> None:
    write(tmp_path, ["k0", "k1"])
    path = tmp_path / "student" / "00000.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=f"student/00000.json.*{message}"):
        Sidecar.read(tmp_path, "student", 0, spec=SPEC)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"schema": 1' + "0" * 9999 + "}", "\xff"])
def test_hostile_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "00000.json").write_text(text, encoding="latin-1")
    with pytest.raises(StoreError, match="student/00000.json"):
        Sidecar.read(tmp_path, "student", 0, spec=SPEC)


def test_nothing_leads_outside(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "folder").symlink_to(outside)
    (root / "link").symlink_to(outside / "f")
    os.mkfifo(root / "pipe")
    write_atomically(root / "long", [b"12345"])
    for parts in (("folder", "f"), ("link",), ("pipe",)):
        with pytest.raises(StoreError, match=parts[0]):
            open_inside(root, *parts)
    with pytest.raises(StoreError, match="has 5 bytes; at most 4"):
        read_inside(root, "long", limit=4)


def test_reads_across_buffers_and_past_the_end(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(range(10)))
    descriptor = open_inside(tmp_path, "f")
    first, second = bytearray(3), bytearray(4)
    assert read_exactly(descriptor, [memoryview(first), memoryview(second)], 2)
    assert first + second == bytes(range(2, 9))
    assert not read_exactly(descriptor, [memoryview(first)], 8)
    os.close(descriptor)


def test_pack_is_plain_safetensors() -> None:
    data = b"".join(pack({"a": torch.arange(3.0), "b": torch.ones(2, 2).half()}, metadata={"split": "x"}))
    assert torch.equal(load(data)["a"], torch.arange(3.0)) and load(data)["b"].dtype == torch.float16
    assert member_bytes({"a": (torch.float32, (3,))}) % 64 == 12
