"""A small web server with ranges, logins and faults, on a free port of the loopback address."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class WebFile:
    """One file. The faults hold for the first `faulty` GET requests.

    `breaks_after`: bytes of a body after which the connection is closed. `says`:
    another Content-Length than the true one. `pause`: seconds between pieces of the body.
    """

    body: bytes
    etag: str | None = None
    token: bytes | None = None
    breaks_after: int | None = None
    says: int | None = None
    status: int | None = None
    endless: bool = False
    chunked: bool = False
    pause: float = 0.0
    faulty: int = 1 << 30
    redirect: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.etag is None:
            self.etag = f'"{hashlib.md5(self.body).hexdigest()}"'


@dataclass(frozen=True)
class Seen:
    path: str
    range: str | None
    authorized: bool
    status: int
    since: str | None = None


class WebServer:
    """The files by their paths, and what was requested. `address` says where the server is."""

    def __init__(self) -> None:
        self.files: dict[str, WebFile] = {}
        self.seen: list[Seen] = []
        self.address = ""
        self.gate = threading.Event()  # bodies with a pause go on once it is set
        self._faults: dict[str, int] = {}
        self._lock = threading.Lock()

    def put(self, path: str, body: bytes, **options: object) -> str:
        """Serve this body; returns the URL."""
        self.files[path] = WebFile(body, **options)
        self._faults.pop(path, None)
        return self.address + path

    def is_faulty(self, path: str) -> bool:
        with self._lock:
            self._faults[path] = self._faults.get(path, 0) + 1
            return self._faults[path] <= self.files[path].faulty

    @property
    def statuses(self) -> list[int]:
        return [each.status for each in self.seen]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: WebServer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        file = self.web.files.get(path)
        if file is None:
            return self._end(404)
        authorization = self.headers.get("Authorization")
        if file.token is not None and authorization != f"Bearer {file.token.decode()}":
            return self._end(401)
        if file.redirect is not None:
            return self._end(302, {"Location": file.redirect, **file.headers})
        faulty = self.web.is_faulty(path)
        if faulty and file.status:
            return self._end(file.status)
        if file.etag and self.headers.get("If-None-Match") == file.etag:
            return self._end(304)
        self._send(file, faulty)
        return None

    def _send(self, file: WebFile, faulty: bool) -> None:
        start, status, headers = 0, 200, dict(file.headers)
        if file.etag:
            headers["ETag"] = file.etag
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range") in (None, file.etag):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(file.body):
                return self._end(416)
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(file.body) - 1}/{len(file.body)}"
        body = file.body[start:]
        if not file.chunked and not file.endless:
            headers["Content-Length"] = str(file.says if faulty and file.says is not None else len(body))
        else:
            headers["Connection"] = "close"
        self._see(status)
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        if faulty and file.breaks_after is not None:
            body = body[: file.breaks_after]
            self.close_connection = True
        while file.endless:
            self.wfile.write(bytes(1 << 20))
        for at in range(0, len(body), 1 << 16):
            self.wfile.write(body[at : at + (1 << 16)])
            self.wfile.flush()
            if faulty and file.pause and not self.web.gate.wait(file.pause):
                time.sleep(0)
        if file.chunked or (faulty and file.says is not None):
            self.close_connection = True
        return None

    def _end(self, status: int, headers: dict[str, str] | None = None) -> None:
        self._see(status)
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _see(self, status: int) -> None:
        headers = self.headers
        seen = Seen(self.path, headers.get("Range"), "Authorization" in headers, status)
        self.web.seen.append(replace(seen, since=headers.get("If-Modified-Since")))

    def log_message(self, *_: object) -> None:
        """Nothing: the tests read `seen`."""


@contextmanager
def serving() -> Iterator[WebServer]:
    web = WebServer()
    handler = type("Handler", (_Handler,), {"web": web})

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Clients close connections on purpose."""

    with Server(("127.0.0.1", 0), handler) as server:
        web.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield web
        finally:
            web.gate.set()
            server.shutdown()
            thread.join()
