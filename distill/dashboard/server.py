"""The page and its data over HTTP, to this machine alone.

Who can ask: programs of this machine. So that a page of elsewhere, open in the same browser, cannot, the Host header
must be a name of this machine (against rebinding of names), no answer may be embedded, and nothing allows other
origins to read it. Nothing can be written: there is GET, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from distill.dashboard.api import Api

LOOPBACK = "127.0.0.1"
HOSTS = ("127.0.0.1", "localhost", "[::1]")  # on any port: a tunnel may end on another one
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def page_files() -> dict[str, bytes]:
    """Name -> content of every file of the page."""
    folder = files("distill.dashboard") / "page"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in TYPES}


class Server(ThreadingHTTPServer):
    """Listens on the loopback interface. port 0: any that is free."""

    daemon_threads = True

    def __init__(self, api: Api, port: int) -> None:
        self.api, self.files = api, page_files()
        super().__init__((LOOPBACK, port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away in the middle of an answer is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "dashboard", ""
    timeout = 30

    def do_GET(self) -> None:
        host = self.headers.get("Host", "")
        name = host[: host.rindex(":")] if host.rpartition(":")[2].isdecimal() and ":" in host else host
        if name.lower() not in HOSTS:
            return self.refuse(HTTPStatus.MISDIRECTED_REQUEST, f"the Host must be one of {', '.join(HOSTS)}")
        try:
            path = urlsplit(self.path).path
        except ValueError:
            return self.refuse(HTTPStatus.BAD_REQUEST, "this is no address")
        try:
            found = self.look_up(path)
        except Exception as error:  # whatever it is, a browser gets an answer, and the next request another
            print(f"{path!r}: {error!r}", file=sys.stderr)
            why = "a file of a run could not be read" if isinstance(error, OSError) else "this could not be answered"
            return self.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, why)
        if found is None:
            return self.refuse(HTTPStatus.NOT_FOUND, "there is no such thing")
        return self.send(HTTPStatus.OK, *found)

    def look_up(self, path: str) -> tuple[bytes, str] | None:
        """Content and type of a path. Neither branch touches a file by a name out of the request."""
        if path.startswith("/api/"):
            answer = self.server.api.answer(path.removeprefix("/api/"))
            return None if answer is None else (answer, "application/json")
        name = "page.html" if path == "/" else path.removeprefix("/")
        content = self.server.files.get(name)
        return None if content is None else (content, TYPES[name.rpartition(".")[2]])

    def send(self, status: HTTPStatus, content: bytes, kind: str, **headers: str) -> None:
        tag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
        known = status == HTTPStatus.OK and self.headers.get("If-None-Match") == tag
        self.send_response(HTTPStatus.NOT_MODIFIED if known else status)
        for header, value in {**SECURITY, **headers}.items():
            self.send_header(header, value)
        self.send_header("ETag", tag)
        if not known:
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not known:
            self.wfile.write(content)

    def refuse(self, status: HTTPStatus, why: str, **headers: str) -> None:
        self.close_connection = True
        self.send(status, json.dumps({"error": why}).encode(), "application/json", Connection="close", **headers)

    def only_get(self) -> None:
        self.refuse(HTTPStatus.METHOD_NOT_ALLOWED, "there is GET, and nothing else", Allow="GET")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_HEAD = do_TRACE = do_CONNECT = only_get

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: a page that looks every two seconds would fill the terminal."""
