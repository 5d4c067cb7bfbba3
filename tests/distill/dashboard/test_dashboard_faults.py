"""What the dashboard's server answers where it cannot: a few words, a status, and nothing of its inside."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from run_folders import write_run

from distill.dashboard.api import Api
from distill.dashboard.server import Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_run(tmp_path / "run", steps=3)
    with Server(Api([tmp_path]), 0) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def raw(server: Server, path: str) -> tuple[str, bytes]:
    """The first line and the body of an answer to a path, sent as it is."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    return head.partition(b"\r\n")[0].decode(), body


@pytest.mark.parametrize("path", ["http://[", "http://[::1", "http://[v]/"])
def test_a_path_that_is_none_is_refused(path: str, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    status, body = raw(server, path)
    assert status == "HTTP/1.1 400 Bad Request" and json.loads(body) == {"error": "this is no address"}
    assert "Traceback" not in capsys.readouterr().err


def raising(error: BaseException) -> Callable[[object, str], bytes]:
    def answer(api: object, path: str) -> bytes:
        raise error

    return answer


@pytest.mark.parametrize(
    ("error", "told", "said"),
    [
        (PermissionError(13, "Permission denied"), "a file of a run could not be read", "Permission denied"),
        (RuntimeError("dictionary\nchanged"), "this could not be answered", r"RuntimeError('dictionary\nchanged')"),
        (RecursionError("too deep"), "this could not be answered", "RecursionError('too deep')"),
    ],
)
def test_a_fault_is_one_line_here_and_a_few_words_there(
    error: Exception,
    told: str,
    said: str,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Api, "answer", raising(error))
    status, body = raw(server, "/api/runs\x1b[2J")
    assert status == "HTTP/1.1 500 Internal Server Error" and json.loads(body) == {"error": told}
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1 and said in printed[0] and "/api/runs" in printed[0] and "\x1b" not in printed[0]
    monkeypatch.undo()
    assert raw(server, "/api/runs")[0] == "HTTP/1.1 200 OK"


def test_a_run_that_goes_away_while_it_is_looked_up_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every further look would be at a list that may lack it."""
    for name in ("a", "b"):
        write_run(tmp_path / name, steps=3)
    api = Api([tmp_path])
    known = dict(api.known())
    a, b = known
    looks = iter([known, known, known])
    monkeypatch.setattr(Api, "known", lambda api: next(looks, {}))
    for path in (f"runs/{a}", f"compare/{a}/{b}", f"runs/{b}/series"):
        assert api.answer(path) is not None
    assert next(looks, None) is None
    assert api.answer(f"runs/{a}") is None
