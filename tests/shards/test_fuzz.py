"""A thousand damaged stores, ten thousand with -m slow: an error that names the file, or the right tokens. No crash, no
hang, no memory, nothing written elsewhere, and no pickle."""

from __future__ import annotations

import ast
import json
import os
import pickle
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mutate import UNREAD, mutate

from shards.codec import Calibration, Fp16, Int8
from shards.column import Sidecar
from shards.disk import StoreError
from shards.store import FeatureStore
from shards.tensorfile import pack_alone
from shards.verify import problems_of
from shards.writer import ShardWriter

ROOT = Path(__file__).resolve().parents[2]
PART = 250  # stores of one test
SECONDS = 20  # a store may take
MEMORY = 400 * 2**20  # bytes more than before


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, tiny) -> tuple[Path, dict[tuple[str, str], torch.Tensor]]:
    """A store of two columns, three shards and a refused clip; and its tokens by column and key."""
    path = tmp_path_factory.mktemp("fuzz") / "original"
    tiny.extract(path, render=tiny.broken(6))
    store = FeatureStore(path)
    return path, {
        (name, s["key"]): s[name] for s in map(store.__getitem__, range(len(store))) for name in store.columns
    }


def use(path: Path, tokens: dict[tuple[str, str], torch.Tensor], *, vouched: bool) -> None:
    """Everything that a reader does. Tokens are those of the original, unless an index vouches for other ones."""
    store = FeatureStore(path)
    for index in range(len(store)):
        sample = store[index]
        for name in store.columns:
            assert vouched or torch.equal(sample[name], tokens[name, sample["key"]]), (name, sample["key"])
    for name in store.columns:
        store.statistics(name)


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in what takes longer."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"a reader hangs for {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check_mutants(original, place: Path, seeds: range) -> None:
    """Each in a store of its own; the audit has to stand it too, and to see what a reader sees."""
    source, tokens = original
    (place / "outside").mkdir()
    (place / "outside" / "secret").write_text("secret")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    refused = 0
    for seed in seeds:
        path = place / "store"
        shutil.copytree(source, path)
        file, how = mutate(path, seed)
        with within(SECONDS):
            try:
                use(path, tokens, vouched=how in ("vouch", *UNREAD))
                failed = False
            except StoreError as error:
                failed, said = True, str(error)
                folder = file.partition("/")[0].removesuffix(".json")
                named = folder in said or Path(file).stem in said
                assert named or (how == "lie" and "is missing" in said), f"seed {seed}: {how} of {file}: {said}"
            except BaseException as error:
                raise AssertionError(f"seed {seed}: {how} of {file}: {error!r}") from error
            try:
                found = list(problems_of(path))
            except StoreError as error:
                found = [str(error)]
            except BaseException as error:
                raise AssertionError(f"seed {seed}, audit: {how} of {file}: {error!r}") from error
        assert found or not (failed or how in UNREAD), f"seed {seed}: the audit misses {how} of {file}"
        refused += failed
        shutil.rmtree(path)
        assert sorted(os.listdir(place)) == ["outside"] and os.listdir(place / "outside") == ["secret"]
    assert (place / "outside" / "secret").read_text() == "secret"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MEMORY
    assert refused > 0.6 * len(seeds)


@pytest.mark.parametrize("part", range(4))
def test_a_thousand_damaged_stores(original, tmp_path: Path, part: int) -> None:
    check_mutants(original, tmp_path, range(part * PART, (part + 1) * PART))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4, 44))
def test_ten_thousand_damaged_stores(original, tmp_path: Path, part: int) -> None:
    check_mutants(original, tmp_path, range(part * PART, (part + 1) * PART))


@settings(max_examples=60, deadline=None)
@given(
    clips=st.lists(st.tuples(st.from_regex(r"\A[A-Za-z0-9_-]{1,88}\Z"), st.integers(0, 10**6)), max_size=6),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    size=st.floats(1e-3, 1e3),
    codec=st.sampled_from(["int8", "fp16"]),
)
def test_tokens_through_codec_and_index(tmp_path_factory, clips, shape, size: float, codec: str) -> None:
    """What is written under a key is what the codec makes of its tokens, whoever lies beside it."""
    root, by_key = tmp_path_factory.mktemp("through"), dict(clips)
    coder = (
        Fp16("student")
        if codec == "fp16"
        else Int8("student", Calibration(torch.zeros(shape[1]), torch.ones(shape[1])))
    )

    def tokens(seed: int) -> torch.Tensor:
        return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    with ShardWriter(root, column="student", shard=0, spec=coder.spec(shape)) as writer:
        for key, seed in by_key.items():
            writer.add(key, coder.encode(tokens(seed)))
        writer.finish()
    sidecar = Sidecar.read(root, "student", 0, spec=coder.spec(shape))
    data = (root / "student" / "00000.tar").read_bytes()
    from safetensors.torch import load

    assert list(sidecar.members) == list(by_key)
    for key, seed in by_key.items():
        member = sidecar.members[key]
        decoded = coder.decode(load(data[member.offset : member.offset + member.bytes]))
        bound = tokens(seed).abs().amax(-1, keepdim=True) * (0.6 / 127) + 1e-4
        assert ((decoded - tokens(seed)).abs() <= bound).all()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_no_pickle_is_run(original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle in the place of every file of a store, and in that of a clip with all sums in order."""
    monkeypatch.chdir(tmp_path)
    evil = pickle.dumps(Evil())
    pickle.loads(evil)
    assert Path("executed").is_dir()
    Path("executed").rmdir()
    source, _ = original
    for file in sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file()):
        shutil.copytree(source, tmp_path / "store")
        data = (tmp_path / "store" / file).read_bytes()
        (tmp_path / "store" / file).write_bytes(evil.ljust(len(data), b"\0"))
        with pytest.raises(StoreError):
            use(tmp_path / "store", {}, vouched=True)
        assert list(problems_of(tmp_path / "store")) if file.name != "manifest.json" else True
        shutil.rmtree(tmp_path / "store")
    shutil.copytree(source, tmp_path / "store")
    vouch_for(tmp_path / "store", evil)
    found = list(problems_of(tmp_path / "store"))
    assert found == ['student/00000.tar, clip "000000-abc": its safetensors header is another than the manifest says']
    use(tmp_path / "store", {}, vouched=True)
    assert not Path("executed").exists()


def vouch_for(root: Path, body: bytes) -> None:
    """Puts bytes in the place of the first clip's, and makes the index agree."""
    import hashlib

    import xxhash

    tar, index = root / "student" / "00000.tar", root / "student" / "00000.json"
    document, data = json.loads(index.read_text()), bytearray(tar.read_bytes())
    entry = document["members"]["000000-abc"]
    start, end = entry["offset"], entry["offset"] + entry["bytes"]
    data[start : start + len(body)] = body
    entry["xxh3_64"] = f"{xxhash.xxh3_64_intdigest(data[start:end]):016x}"
    document["sha256"] = hashlib.sha256(data).hexdigest()
    tar.write_bytes(data)
    index.write_text(json.dumps(document))


def test_loaders_that_could_unpickle_are_told_not_to() -> None:
    calls = 0
    for package in ("converters", "distill", "recipes", "shards", "teachers"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                    words = {word.arg: ast.unparse(word.value) for word in node.keywords}
                    assert words.get("weights_only") == "True" or words.get("allow_pickle") == "False", (
                        file,
                        node.lineno,
                    )
                    calls += 1
    assert calls >= 2


def test_a_changed_calibration_is_noticed(original, tmp_path: Path) -> None:
    """One bit of a channel's deviation changes every token of the column; nothing but its own checksum tells."""
    shutil.copytree(original[0], tmp_path / "store")
    path = tmp_path / "store" / "student" / "calibration.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"student/calibration.safetensors is damaged \(its checksum"):
        FeatureStore(tmp_path / "store")
    assert b"".join(pack_alone({"a": torch.ones(2)}, metadata={"split": "x"})).count(b"xxh3_64") == 1
