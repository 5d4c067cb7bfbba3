"""The dashboard's server and export without a browser: what can be asked, by whom, and what never comes out."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run

from distill.dashboard.__main__ import main
from distill.dashboard.api import Api
from distill.dashboard.export import bundle, export
from distill.dashboard.server import Server, page_files

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    write_run(root / "a" / "perceiver", r2c=0.7, where=True)
    write_run(root / "a" / "mamba", family="mamba", r2c=0.6, where=True)
    (tmp_path / "secret.json").write_text('{"secret": "do not tell"}')
    return root


@pytest.fixture
def server(runs: Path) -> Iterator[Server]:
    with Server(Api([runs]), 0) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def ask(server: Server, path: str, *, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content


def told(server: Server, path: str) -> Any:
    response, content = ask(server, f"/api/{path}")
    assert response.status == 200, (path, content)
    return json.loads(content)


def test_it_listens_on_the_loopback_interface_alone(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.socket.getsockname()[0] == "127.0.0.1" and server.socket.family == socket.AF_INET


def test_everything_that_the_page_asks_for_is_there(server: Server) -> None:
    for name in ("", "page.css", "page.js", "echarts.min.js", "icon.svg"):
        assert ask(server, f"/{name}")[0].status == 200
    found = told(server, "runs")
    ids = {run["name"]: run["id"] for run in found["runs"]}
    a, b = ids["a/perceiver"], ids["a/mamba"]
    assert told(server, f"runs/{a}")["summary"]["family"] == "perceiver"
    series = told(server, f"runs/{a}/series")
    assert len(series["series"]) == 6 and series["read"] == 1
    assert len(told(server, f"runs/{a}/series/0")["step"]) == 100
    assert told(server, f"runs/{a}/where")["targets"] == {
        target: ["converter", "ridge"] for target in ("videomae", "timesformer", "vivit")
    }
    assert told(server, f"runs/{a}/where/0/1")["grid"] == [8, 14, 14]
    assert len(told(server, f"runs/{a}/where/0")["pictures"]) == 8
    assert told(server, f"compare/{a}/{b}")["targets"]["videomae"]["r2c"]["value"] == pytest.approx(-0.1)


@pytest.mark.parametrize("name", ["", "page.js", "api/runs", "nothing", "api/runs/../../secret.json"])
def test_every_answer_carries_the_policy(name: str, server: Server) -> None:
    response, _ = ask(server, f"/{name}")
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "frame-ancestors 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert response.headers["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil:1", ""])
def test_a_host_that_is_not_this_machine_is_refused(host: str, server: Server) -> None:
    response, content = ask(server, "/api/runs", Host=host)
    assert response.status == 421 and b"127.0.0.1" in content and b"perceiver" not in content


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9000", "[::1]:80", "LOCALHOST"])
def test_names_of_this_machine_on_any_port_are_served(host: str, server: Server) -> None:
    assert ask(server, "/api/runs", Host=host)[0].status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE"])
def test_there_is_get_and_nothing_else(method: str, server: Server) -> None:
    response, _ = ask(server, "/api/runs", method=method)
    assert response.status == 405 and response.headers["Allow"] == "GET"


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.json",
        "/..%2fsecret.json",
        "/api/runs/..",
        "/api/runs/../../secret.json",
        "/api/runs/%2e%2e/secret.json",
        "/api/runs/a/perceiver",
        "/api/runs/{id}/../a",
        "/api/runs/{id}/summary.json",
        "/api/runs/{id}/series/-1",
        "/api/runs/{id}/series/99",
        "/api/runs/{id}/series/1e9",
        "/api/runs/{id}/series/²",
        "/api/runs/{id}/where/7",
        "/api/runs/{id}/where/7/0",
        "/api/runs/{id}/where/0/2",
        "/api/runs/{id}/where/0/-1",
        "/api/runs/{id}/where/0/0/0",
        "/api/compare/{id}",
        "/api/compare/{id}/zzz",
        "/api/",
        "/page.html/",
        "/__init__.py",
        "//evil.example/page.js",
        "/api/runs\x00",
    ],
)
def test_a_path_that_stands_for_nothing_reaches_no_file(path: str, server: Server) -> None:
    run = told(server, "runs")["runs"][0]["id"]
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as raw:
        raw.sendall(f"GET {path.format(id=run)} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert b" 404 " in answer.split(b"\r\n")[0] and b"do not tell" not in answer


def test_a_browser_that_goes_away_leaves_no_traceback(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for error, told_of in ((BrokenPipeError(32), False), (RuntimeError("a fault of ours"), True)):
        try:
            raise error
        except (OSError, RuntimeError):
            server.handle_error(None, ("127.0.0.1", 1))
        assert ("Traceback" in capsys.readouterr().err) == told_of


def test_what_is_known_already_is_not_sent_again(server: Server) -> None:
    tag = ask(server, "/api/runs")[0].headers["ETag"]
    response, content = ask(server, "/api/runs", **{"If-None-Match": tag})
    assert response.status == 304 and content == b""


def test_a_line_that_is_appended_is_served(server: Server, runs: Path) -> None:
    run = next(one for one in told(server, "runs")["runs"] if one["name"] == "a/mamba")
    assert told(server, f"runs/{run['id']}/series/0")["last"] == pytest.approx(0.3498, abs=1e-3)
    with open(runs / "a" / "mamba" / "metrics.jsonl", "a") as file:
        file.write('{"step": 101, "split": "train", "target": null, "metric": "loss", "value": 7.5}\n')
    assert told(server, f"runs/{run['id']}/series/0")["last"] == 7.5
    again = next(one for one in told(server, "runs")["runs"] if one["name"] == "a/mamba")
    assert again["stamp"] != run["stamp"]


def test_names_with_markup_and_paths_are_data(runs: Path, tmp_path: Path) -> None:
    folder = write_run(runs / HOSTILE.replace("/", "|") / "&quot;..", r2c=0.5)
    text = json.dumps({"step": 1, "split": "val", "target": "../../secret.json", "metric": HOSTILE, "value": 1.0})
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(text + "\n")
    api = Api([runs])
    run = next(one for one in api.list()["runs"] if "script" in one["name"])
    assert re.fullmatch(r"[0-9a-f]{12}", run["id"])
    listed = json.loads(api.answer(f"runs/{run['id']}/series") or b"")["series"]
    assert (listed[-1]["target"], listed[-1]["metric"]) == ("../../secret.json", HOSTILE)
    export(api, tmp_path / "report.html", say=lambda text: None)
    report = (tmp_path / "report.html").read_text()
    parts = {path: text for path, text in parts_of(report).items() if path != "about"}
    told = "".join(gzip.decompress(base64.b64decode(text)).decode() for text in parts.values())
    assert HOSTILE in told and "../../secret.json" in told and "do not tell" not in told


# --- the export


def parts_of(page: str) -> dict[str, str]:
    return dict(re.findall(r'<script type="text/plain" id="recorded:([^"]*)">(.*?)</script>', page))


def test_the_export_holds_every_answer_of_the_server(runs: Path, tmp_path: Path, server: Server) -> None:
    file = tmp_path / "report.html"
    assert main([str(runs), "--export", str(file)]) == 0
    parts = parts_of(file.read_text())
    ids = [run["id"] for run in told(server, "runs")["runs"]]
    assert len([path for path in parts if "/series/" in path]) == 2 * 6
    assert {
        f"compare/{ids[0]}/{ids[1]}",
        f"compare/{ids[1]}/{ids[0]}",
        f"runs/{ids[0]}/where/2",
        f"runs/{ids[0]}/where/2/1",
    } < set(parts)
    for path, text in parts.items():
        if path not in ("about", "runs"):
            assert json.loads(gzip.decompress(base64.b64decode(text))) == told(server, path), path


def test_the_export_runs_its_own_scripts_and_asks_nobody(runs: Path, tmp_path: Path) -> None:
    export(Api([runs]), tmp_path / "report.html", say=lambda text: None)
    page = (tmp_path / "report.html").read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy and policy[1].startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy[1]
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 2
    for text in [*scripts, re.findall(r"<style>(.*?)</style>", page, re.DOTALL)[0]]:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[1]
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=", page)


def test_the_page_asks_nothing_of_another_host() -> None:
    for name, content in page_files().items():
        if name != "echarts.min.js":
            urls = set(re.findall(r"https?://[^\s\"'`)]+", content.decode())) - {"http://www.w3.org/2000/svg"}
            assert not urls, (name, urls)
            assert "innerHTML" not in content.decode() and "eval(" not in content.decode()


def test_the_modules_share_no_name_and_come_in_the_order_of_their_imports() -> None:
    files = page_files()
    modules = [name for name in files if name.endswith(".js") and name != "echarts.min.js"]
    script = bundle(files)
    assert len(modules) > 8 and not re.search(r"^(import|export) ", script, re.MULTILINE)
    names = re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", script, re.MULTILINE)
    names += [
        name for line in re.findall(r"^let (.*);$", script, re.MULTILINE) for name in re.findall(r"(\w+) =", line)[1:]
    ]
    assert len(names) > 60 and len(names) == len(set(names)), sorted({n for n in names if names.count(n) > 1})
    assert script.index("function h(") < script.index("function card(") < script.index("function mountOverview(")


# --- the command


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err
    assert main([str(tmp_path), "--export", str(tmp_path / "x.html")]) == 2
    assert f"{tmp_path} holds no run" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main([str(tmp_path), "--port", str(taken.getsockname()[1])]) == 2
    assert "error" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])
    assert "RUNS, or --compare A B" in capsys.readouterr().err
