"""Runs -> one HTML file that opens without a server: the page, and every answer that it may ask for.

Each answer is JSON, deflated (gzip) and in base64, in an element of its own: the page unpacks it when it needs it, and
a browser that opens a large file holds it once.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from html import escape
from itertools import permutations
from pathlib import Path
from typing import Any

from distill.dashboard.api import Api
from distill.dashboard.server import page_files

COMPARED = 12  # the runs between which an export holds comparisons: those best on val
LICENCES = "/*! Apache ECharts, Apache-2.0; zrender, BSD-3-Clause: see docs/dashboard.md */\n"


def export(api: Api, file: Path, *, say: Callable[[str], None]) -> None:
    """Writes the file. say: told how far it is."""
    parts = {}
    for path in paths(api, say=say):
        answer = api.answer(path)
        if answer is not None:
            parts[path] = base64.b64encode(gzip.compress(answer, 6, mtime=0)).decode()
    parts["about"] = time.strftime("%Y-%m-%d %H:%M")
    file.write_text(assemble(page_files(), parts), encoding="utf-8")


def paths(api: Api, *, say: Callable[[str], None]) -> Iterator[str]:
    """Every path that the page may ask for, comparisons among the best runs only."""
    yield "runs"
    known = api.known()
    for number, (name, run) in enumerate(known.items(), 1):
        say(f"{number} of {len(known)}: {run.name}")
        yield f"runs/{name}"
        read = 0.0
        while read < 1:
            read = json.loads(api.answer(f"runs/{name}/series") or b'{"read":1}')["read"]
        yield f"runs/{name}/series"
        yield from (f"runs/{name}/series/{at}" for at in range(len(run.journal.series)))
        yield f"runs/{name}/where"
        targets = json.loads(api.answer(f"runs/{name}/where") or b"{}").get("targets", {})
        for number, candidates in enumerate(targets.values()):
            yield f"runs/{name}/where/{number}"
            yield from (f"runs/{name}/where/{number}/{at}" for at in range(len(candidates)))
    for a, b in permutations(best(api), 2):
        yield f"compare/{a}/{b}"


def best(api: Api) -> list[str]:
    """Ids of finished runs, those with the highest mean r2c on val first."""

    def on_val(brief: dict[str, Any]) -> float:
        found = [value for value in brief["chosen"].get("r2c", {}).values() if value is not None]
        return sum(found) / len(found) if found else float("-inf")

    finished = [brief for brief in api.list()["runs"] if "targets" in brief]
    return [brief["id"] for brief in sorted(finished, key=on_val, reverse=True)[:COMPARED]]


def assemble(files: dict[str, bytes], parts: dict[str, str]) -> str:
    """The page with style, scripts and data inside, and a policy that lets nothing run but these."""
    style = files["page.css"].decode()
    scripts = [LICENCES + safe(files["echarts.min.js"].decode()), safe(bundle(files))]
    policy = (
        f"default-src 'none'; style-src {source(style)}; script-src {' '.join(map(source, scripts))}; "
        "base-uri 'none'; form-action 'none'"
    )
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{style}</style>'
    data = (f'<script type="text/plain" id="recorded:{escape(path)}">{text}</script>' for path, text in parts.items())
    body = "\n".join([*data, *(f"<script>{script}</script>" for script in scripts)])
    page = re.sub(r" *<(link|script)\b[^>]*>(</script>)?\n", "", files["page.html"].decode())
    return page.replace("</head>", f"{head}\n</head>").replace("</body>", f"{body}\n</body>")


def safe(script: str) -> str:
    """The same script, without what would end it in a page."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def bundle(files: dict[str, bytes], first: str = "page.js") -> str:
    """The page's modules as one script, each behind those that it imports. They share no name, so import lines and the
    word export can go; a test holds that."""
    done: dict[str, str] = {}

    def add(name: str) -> None:
        text = files[name].decode()
        done[name] = ""
        for other in re.findall(r'^import .*? from "\./([\w-]+\.js)";$', text, re.MULTILINE | re.DOTALL):
            if other not in done:
                add(other)
        text = re.sub(r'^import [^;]*? from "\./[\w-]+\.js";\n', "", text, flags=re.MULTILINE)
        del done[name]
        done[name] = re.sub(r"^export ", "", text, flags=re.MULTILINE)

    add(first)
    return "(() => {\n" + '"use strict";\n' + "\n".join(done.values()) + "})();\n"
