"""Stores behind real servers on this machine: http, s3, and an http server that does everything wrong."""

from __future__ import annotations

import logging
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from shards import remote
from shards.disk import OpenFiles, StoreError
from shards.order import SampleOrder
from shards.reader import BatchReader
from shards.remote import Mirror, public
from shards.store import FeatureStore

pytest.importorskip("aiohttp")


class Server(SimpleHTTPRequestHandler):
    """Serves a folder; `faults` is the share of answers that are wrong, `asked` counts what was asked for."""

    protocol_version = "HTTP/1.1"
    faults, draw, asked, silent = 0.0, random.Random(0), Counter(), True

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        if self.draw.random() >= self.faults:
            return super().do_GET()
        data = Path(self.translate_path(self.path)).read_bytes()
        fault = self.draw.choice(("503", "reset", "short", "cut", "flip", "long", "html", "empty"))
        self.close_connection = True
        if fault == "503":
            return self.send_error(503)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return self.connection.close()
        body = {
            "short": data[: len(data) // 2],
            "cut": data[: len(data) // 2],
            "flip": data[:-20] + bytes([data[-20] ^ 1]) + data[-19:] if self.path.endswith("tar") else data[:-1],
            "long": data + b"x" * 4096,
            "html": b"<html>Bad gateway</html>",
            "empty": b"",
        }[fault]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data) if fault == "cut" else len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, type[Server]]]:
    """(URL of tmp_path, the handler's class)."""
    handler = type("Handler", (Server,), {"asked": Counter(), "draw": random.Random(0)})
    running = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path)))
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}", handler
    running.shutdown()
    running.server_close()


def same(one: FeatureStore, other: FeatureStore) -> None:
    assert one.keys == other.keys and one.clips == other.clips and one.refused == other.refused
    for index in range(len(one)):
        for name in one.columns:
            assert torch.equal(one[index][name], other[index][name])
    for name in one.columns:
        assert all(torch.equal(a, b) for a, b in zip(*(s.statistics(name).values() for s in (one, other)), strict=True))


def test_over_http(store: FeatureStore, server, tmp_path: Path) -> None:
    """Shards come when they are read, and once; other columns do not come at all; a second opening asks for indices."""
    url, handler = server
    there = FeatureStore(Mirror(f"{url}/store", cache=tmp_path / "cache"), ["student"])
    assert not [path for path in handler.asked if path.startswith("/store/student/") and path.endswith("tar")]
    there[0]
    assert handler.asked["/store/student/00000.tar"] == 1 and handler.asked["/store/student/00001.tar"] == 0
    same(there, FeatureStore(store.path, ["student"]))
    again = FeatureStore(Mirror(f"{url}/store", cache=tmp_path / "cache"), ["student"])
    same(again, there)
    assert {n for path, n in handler.asked.items() if path.endswith(".tar")} == {1}
    assert not [path for path in handler.asked if "videomae" in path]


def test_a_server_that_does_everything_wrong(store, server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the answers are resets, 503, cut, too long, flipped or something else: more requests, the same bytes."""
    url, handler = server
    handler.faults = 0.5
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    monkeypatch.setattr(remote, "TRIES", 40)
    for attempt in range(5):
        same(FeatureStore(Mirror(f"{url}/store", cache=tmp_path / f"cache{attempt}")), store)
    asked = sum(handler.asked.values())
    files = len([path for path in store.path.rglob("*") if path.is_file()])
    assert asked > 1.5 * 5 * files
    handler.faults = 1.0
    monkeypatch.setattr(remote, "TRIES", 3)
    with pytest.raises(StoreError, match=r"127.0.0.1:\d+/store/manifest.json could not be had in 3 tries, the last: "):
        FeatureStore(Mirror(f"{url}/store", cache=tmp_path / "none"))


def test_a_dead_server_and_a_missing_store(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    url, _ = server
    with pytest.raises(StoreError, match="nowhere is no feature store: it has no manifest.json"):
        FeatureStore(Mirror(f"{url}/nowhere", cache=tmp_path / "cache"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(StoreError, match=f"{port}/store/manifest.json could not be had in 8 tries"):
        FeatureStore(Mirror(f"http://127.0.0.1:{port}/store", cache=tmp_path / "cache"))


def test_a_store_that_changes(store: FeatureStore, server, tmp_path: Path, tiny) -> None:
    """Shards whose index is another one are fetched again, the others stay."""
    url, handler = server
    mirror = partial(Mirror, f"{url}/store", cache=tmp_path / "cache")
    same(FeatureStore(mirror()), store)
    tiny.extract(store.path, clips=tiny.clips(13), extend=True)
    same(FeatureStore(mirror()), FeatureStore(store.path))
    assert handler.asked["/store/student/00000.tar"] == 1 and handler.asked["/store/student/00002.tar"] == 2
    shutil.rmtree(store.path)
    columns = {"student": tiny.backbone(5), "videomae": tiny.backbone(6)}  # other tokens, as many bytes
    clips = [replace(clip, label="sit" if clip.label == "run" else clip.label) for clip in tiny.clips(13)]
    tiny.extract(store.path, clips=clips, columns=columns)
    same(FeatureStore(mirror()), FeatureStore(store.path))


def test_a_damaged_cache_is_fetched_again(store: FeatureStore, server, tmp_path: Path) -> None:
    url, handler = server
    there = FeatureStore(Mirror(f"{url}/store", cache=tmp_path / "cache"))
    same(there, store)
    path = there.path / "student" / "00001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    same(there, store)
    assert handler.asked["/store/student/00001.tar"] == 2
    there.path.joinpath("student", "00001.tar").write_bytes(data)  # and once more
    there._files = OpenFiles(there.path)
    same(there, store)
    assert handler.asked["/store/student/00001.tar"] == 3


def test_one_reader_does_not_delete_what_another_has_repaired(store: FeatureStore, server, tmp_path: Path) -> None:
    url, handler = server
    mirror = Mirror(f"{url}/store", cache=tmp_path / "cache")
    there = FeatureStore(mirror)
    there[0]
    damaged = mirror.open_tar("student", 0)
    mirror.forget("student", 0, damaged)
    there[0]
    mirror.forget("student", 0, damaged)  # the slower of two that have read the damaged one
    assert (there.path / "student" / "00000.tar").exists() and handler.asked["/store/student/00000.tar"] == 2
    os.close(damaged)


def test_damaged_records_in_the_cache_are_fetched_again(store: FeatureStore, server, tmp_path: Path) -> None:
    url, handler = server
    there = FeatureStore(Mirror(f"{url}/store", cache=tmp_path / "cache"))
    path = there.path / "clips" / "00000.tar"
    path.write_bytes(path.read_bytes().replace(b'"split"', b'"splat"'))
    same(FeatureStore(Mirror(f"{url}/store", cache=tmp_path / "cache")), store)
    assert handler.asked["/store/clips/00000.tar"] == 2


def test_a_second_opening_takes_nothing_from_the_first(store: FeatureStore, server, tmp_path: Path) -> None:
    url, handler = server
    files = ["student/stats.safetensors", "student/calibration.safetensors"]
    there = FeatureStore(Mirror(f"{url}/store", cache=tmp_path / "cache"))
    found: list[bool] = []
    answer = handler.do_GET

    def do_GET(self) -> None:
        found.extend((there.path / name).exists() for name in files)
        answer(self)

    handler.do_GET = do_GET
    FeatureStore(Mirror(f"{url}/store", cache=tmp_path / "cache"))
    assert found and all(found)


def test_the_cache_is_bounded(store: FeatureStore, server, tmp_path: Path) -> None:
    url, _ = server
    size = (store.path / "student" / "00000.tar").stat().st_size
    there = FeatureStore(Mirror(f"{url}/store", cache=tmp_path / "cache", limit=2 * size))
    same(there, store)
    tars = [path for path in there.path.glob("*/*.tar") if path.parent.name != "clips"]
    assert sum(path.stat().st_size for path in tars) <= 2 * size and len(tars) == 2
    same(FeatureStore(Mirror(f"{url}/store", cache=tmp_path / "cache", limit=1)), store)
    assert len([path for path in there.path.glob("*/*.tar") if path.parent.name != "clips"]) == 1


def test_training_goes_by_windows(store: FeatureStore, server, tmp_path: Path) -> None:
    """The same samples for any number of ranks; a shard is left before its window's successor is begun."""
    url, _ = server
    there = FeatureStore(Mirror(f"{url}/store", cache=tmp_path / "cache"))
    options = {"columns": ["student"], "indices": range(10), "seed": 1, "window": 1}
    with BatchReader(there, batch=10, **options) as reader:
        whole = reader.batch(0)["indices"].tolist()
    parts = []
    for rank in range(2):
        with BatchReader(there, batch=10, rank=rank, world=2, **options) as reader:
            parts += reader.batch(0)["indices"].tolist()
    assert parts == whole and sorted(whole) == list(range(10))
    shards = [there.shard_of(index) for index in whole]
    assert len([1 for a, b in pairwise(shards) if a != b]) == 2
    orders = [
        SampleOrder(60, seed=0, shards=[n // 10 for n in range(60)], window=2).epoch(e).tolist() for e in range(2)
    ]
    for order in orders:
        assert sorted(order) == list(range(60))
        assert all(len({n // 10 for n in order[start : start + 20]}) == 2 for start in (0, 20, 40))
    assert orders[0] != orders[1]


@pytest.mark.parametrize("room", [True, False])
def test_the_next_window_is_fetched_while_this_one_is_read(store, server, tmp_path: Path, room: bool) -> None:
    url, handler = server
    size = (store.path / "student" / "00000.tar").stat().st_size
    there = FeatureStore(Mirror(f"{url}/store", cache=tmp_path / "cache", limit=2 * size if room else 2 * size - 1))
    with BatchReader(there, columns=["student"], indices=range(10), batch=1, seed=1, window=1) as reader:
        shards = list(dict.fromkeys(there.shard_of(index) for index in reader.order.samples(0, 10)))
        reader.batch(0)
        patience = time.monotonic() + (10 if room else 0.3)
        while not handler.asked[f"/store/student/{shards[1]:05d}.tar"] and time.monotonic() < patience:
            time.sleep(0.01)
        asked = [handler.asked[f"/store/student/{shard:05d}.tar"] for shard in shards]
    assert asked == ([1, 1, 0] if room else [1, 0, 0])


def test_what_cannot_be_fetched_ahead_is_an_error_when_it_is_read(
    store, server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = server
    monkeypatch.setattr(remote, "TRIES", 1)
    there = FeatureStore(Mirror(f"{url}/store", cache=tmp_path / "cache"))
    monkeypatch.setattr(handler, "faults", 1.0)
    with (
        BatchReader(there, columns=["student"], indices=range(10), batch=2, seed=1, window=1) as reader,
        pytest.raises(StoreError, match="could not be had"),
    ):
        for _ in reader.steps(0, 5):
            pass


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a real server that speaks s3."""
    pytest.importorskip("moto")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


def test_over_s3(store: FeatureStore, s3: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    s3fs = pytest.importorskip("s3fs")
    secret = {"key": "AKIAVERYSECRET", "secret": "hushhushhush", "endpoint_url": s3}
    files = s3fs.S3FileSystem(**secret)
    files.mkdir("bucket")
    files.put(str(store.path), "bucket/deep/store", recursive=True)
    with caplog.at_level(logging.DEBUG):
        same(FeatureStore(Mirror("s3://bucket/deep/store", cache=tmp_path / "cache", options=secret)), store)
        with pytest.raises(StoreError) as caught:
            FeatureStore(Mirror("s3://bucket/nothing", cache=tmp_path / "cache", options=secret))
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("shards")]
    assert "hushhush" not in "\n".join(ours) + str(caught.value)


def test_secrets_of_a_url_are_never_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert public("https://me:hush@host:1/a/b?X-Amz-Signature=hush#hush") == "https://host:1/a/b"
    monkeypatch.setattr(remote, "TRIES", 1)
    with pytest.raises(StoreError) as caught:
        FeatureStore(Mirror("http://me:hush@127.0.0.1:9/store", cache=tmp_path))
    with pytest.raises(StoreError, match="http://127.0.0.1:9/store: a store's URL has no query"):
        FeatureStore(Mirror("http://127.0.0.1:9/store?token=hush", cache=tmp_path))
    assert "hush" not in str(caught.value) and "hush" not in "".join(map(str, tmp_path.rglob("*")))
