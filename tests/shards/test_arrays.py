"""Files of strangers: what they declare is looked at before it is read, and nothing leads out of them."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shards.arrays import ArrayError, LastFile, list_entries, read_tokens
from teachers.layout import TokenLayout

h5py = pytest.importorskip("h5py")
LAYOUT = TokenLayout((1, 2, 2), 4)
TOKENS = torch.arange(16.0).reshape(4, 4)
HUGE = (400_000, 1000)


def refusal(place: Path | str) -> str:
    """What is said, within 50 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArrayError) as caught:
        read_tokens(str(place), LAYOUT)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024
    return str(caught.value)


def test_a_shape_is_looked_at_before_the_array_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", shape=HUGE, dtype="f4", chunks=(100, 100))
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": HUGE})
        file.truncate(file.tell() + 4 * HUGE[0] * HUGE[1])
    torch.save(torch.zeros(1).expand(HUGE), tmp_path / "a.pt")
    for name in ("a.h5", "a.npy", "a.pt"):
        assert refusal(tmp_path / name) == "has shape (400000, 1000); the layout says (4, 4) or (1, 2, 2, 4)", name


def test_a_chunk_larger_than_its_array(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", shape=(4, 4), maxshape=(None, None), dtype="f4", chunks=(20_000, 20_000))
    assert refusal(tmp_path / "a.h5") == "x has chunks of 1600000000 bytes; at most 268435456 are read: repack it"


@pytest.mark.parametrize("kind", ["secret", "pipe"])
def test_nothing_leads_out_of_an_hdf5_file(tmp_path: Path, kind: str) -> None:
    """Neither the numbers of another file nor a pipe, which would wait for ever."""
    other = tmp_path / "other"
    os.mkfifo(other) if kind == "pipe" else other.write_bytes(TOKENS.numpy().tobytes())
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file.create_dataset("outside", shape=(4, 4), dtype="f4", external=[(str(other), 0, 64)])
        wide = h5py.VirtualLayout(shape=(4, 4), dtype="f4", maxshape=(None, 4))
        source = h5py.VirtualSource(str(other), "x", shape=(4, 4), dtype="f4", maxshape=(None, 4))
        wide[0 : h5py.h5s.UNLIMITED : 1, :] = source[0 : h5py.h5s.UNLIMITED : 1, :]
        file.create_virtual_dataset("virtual", wide)
        file["group/there"] = TOKENS.numpy()
        file["linked"] = h5py.ExternalLink(str(other), "/x")
        file["soft"] = h5py.SoftLink("/linked/x")
    assert list_entries(tmp_path / "a.h5") == ["group/there", "outside", "virtual"]
    for entry, said in {
        "outside": "outside is external: its numbers are in another file",
        "virtual": "virtual is virtual: its numbers are in another file",
        "linked": "linked: linked is a link to '/x', not an array of this file",
        "linked/x": "linked/x: linked is a link to '/x'",
        "soft": "soft: soft is a link to '/linked/x'",
        "group": "group is a Group, no array",
        "group/there/x": "has no entry 'group/there/x'",
        "none": "has no entry 'none'",
    }.items():
        assert refusal(f"{tmp_path}/a.h5::{entry}").startswith(said)
    assert torch.equal(read_tokens(f"{tmp_path}/a.h5::group/there", LAYOUT), TOKENS)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (torch.zeros(4, 4).to_sparse(), "a tensor that is sparse_coo on cpu, torch.float32; features are dense"),
        (torch.empty(4, 4, device="meta"), "a tensor that is strided on meta, torch.float32; features are dense"),
        (torch.zeros(4, 4, dtype=torch.complex64), "holds complex64; features are floating"),
        ([1, 2], "has no tensor alone; name one as FILE::ENTRY"),
    ],
    ids=["sparse", "meta", "complex", "list"],
)
def test_what_is_no_dense_array_refuses_its_clip(tmp_path: Path, held: object, said: str) -> None:
    torch.save(held, tmp_path / "a.pt")
    assert said in refusal(tmp_path / "a.pt")


def test_types_by_the_names_of_four_libraries(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        torch.save(TOKENS.to(dtype), tmp_path / "a.pt")
        save_file({"x": TOKENS.to(dtype)}, tmp_path / "a.safetensors")
        for name in ("a.pt", "a.safetensors"):
            assert torch.equal(read_tokens(str(tmp_path / name), LAYOUT), TOKENS)
    save_file({"x": TOKENS.int(), "y": TOKENS[:2].clone()}, tmp_path / "a.safetensors")
    assert refusal(f"{tmp_path}/a.safetensors::x") == "holds I32; features are floating"
    assert refusal(f"{tmp_path}/a.safetensors::y").startswith("has shape (2, 4); the layout")
    assert refusal(f"{tmp_path}/a.safetensors::z") == "has no entry 'z'"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".h5"])
def test_a_damaged_file_of_many_arrays_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"all{suffix}"
    path.write_bytes(b"\x80\x02garbage" * 20)
    with pytest.raises(ArrayError, match=f"^{re.escape(str(path))} cannot be read: "):
        list_entries(path)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({0: TOKENS, 1: TOKENS}, "has the entry 0, of type int; entries are named by text: save str keys"),
        ({"a": TOKENS, None: TOKENS}, "has the entry None, of type NoneType"),
        (TOKENS, "holds a Tensor, no dict of arrays; leave out ::ENTRY"),
    ],
    ids=["int", "none", "tensor"],
)
def test_entries_that_no_text_names(tmp_path: Path, held: object, said: str) -> None:
    torch.save(held, tmp_path / "all.pt")
    with pytest.raises(ArrayError, match=re.escape(f"{tmp_path}/all.pt {said}")):
        list_entries(tmp_path / "all.pt")
    with pytest.raises(ArrayError, match=r"a.npy: .npy holds no entries"):
        list_entries(tmp_path / "a.npy")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_many_tensors_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    path, loads, real = tmp_path / "all.pt", [], torch.load
    torch.save({f"k{k}": TOKENS + k for k in range(12)}, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.setattr(torch, "load", lambda *a, **k: loads.append(a) or real(*a, **k))
    last = LastFile()
    for k in range(12):
        assert torch.equal(read_tokens(f"{path}::k{k}", LAYOUT, last), TOKENS + k)
    assert len(loads) == 1
    torch.save({"k0": TOKENS - 1}, path)
    assert torch.equal(read_tokens(f"{path}::k0", LAYOUT, last), TOKENS - 1) and len(loads) == 2
