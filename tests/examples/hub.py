"""A hub of the test suite's own: one gated model repository, as `huggingface_hub` sees it.

The routes, headers and refusals are those that transformers 4.31 with
huggingface_hub 0.36 and transformers 5.23 with huggingface_hub 2.4 use when a
pipeline is made. As at the real hub, what a gated repository contains may be
read by everybody, its files only with an accepted token, and a wrong token is
refused everywhere.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

COMMIT = "5f2c1d9e8b7a60413f2e1d0c9b8a7f6e5d4c3b2a"
REVISIONS = ("main", COMMIT)

Caller = Literal["anonymous", "refused", "accepted"]


@dataclass(frozen=True)
class Request:
    """What the hub remembers of a request: never the token itself."""

    method: str
    path: str
    caller: Caller


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, status: int, value: object, **headers: str) -> Reply:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **named})


class Hub:
    """The repository `repo_id` with the files of `folder`, for those who have `token`."""

    def __init__(self, repo_id: str, folder: Path, token: bytes) -> None:
        self.repo_id = repo_id
        self.requests: list[Request] = []
        self.strays: list[str] = []  # requests for other hosts, which came here as to a proxy
        self._files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self._bearer = b"Bearer " + token
        self.address = ""

    @property
    def callers(self) -> set[Caller]:
        return {request.caller for request in self.requests}

    @property
    def downloads(self) -> list[Request]:
        return [r for r in self.requests if r.method == "GET" and "/resolve/" in r.path]

    def respond(self, method: str, target: str, authorization: str | None) -> Reply:
        if not target.startswith("/"):
            self.strays.append(target)
            return Reply.json(502, {"error": "this hub forwards nothing"})
        path = unquote(urlsplit(target).path)
        caller = self._caller(authorization)
        self.requests.append(Request(method, path, caller))
        if path.startswith(f"/{self.repo_id}/resolve/"):
            return self._file(path, caller)
        if path == f"/api/models/{self.repo_id}" or path.startswith(f"/api/models/{self.repo_id}/"):
            return self._about(path.removeprefix(f"/api/models/{self.repo_id}"), caller)
        return Reply.json(404, {"error": "Not found"})

    def _caller(self, authorization: str | None) -> Caller:
        if authorization is None:
            return "anonymous"
        same = hmac.compare_digest(authorization.encode("latin-1"), self._bearer)
        return "accepted" if same else "refused"

    def _file(self, path: str, caller: Caller) -> Reply:
        """`/{repo}/resolve/{revision}/{file}`, for HEAD and GET."""
        if caller != "accepted":
            return self._gated()
        revision, _, name = path.removeprefix(f"/{self.repo_id}/resolve/").partition("/")
        if revision not in REVISIONS:
            return _refusal(404, "RevisionNotFound", "Invalid rev id")
        if name not in self._files:
            return _refusal(404, "EntryNotFound", "Entry not found")
        body = self._files[name]
        facts = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Linked-Size": str(len(body))}
        return Reply(
            200, body, {"X-Repo-Commit": COMMIT, "Content-Type": "application/octet-stream", **facts}
        )

    def _about(self, rest: str, caller: Caller) -> Reply:
        """`/api/models/{repo}`, with `/revision/{revision}` or `/tree/{revision}[/{folder}]` behind it."""
        if caller == "refused":
            return self._gated()
        if rest in ("", *(f"/revision/{revision}" for revision in REVISIONS)):
            return Reply.json(200, self._model_info())
        if rest in [f"/tree/{revision}" for revision in REVISIONS]:
            return Reply.json(200, [self._tree_entry(name) for name in self._files])
        revision = rest.split("/")[2] if rest.startswith(("/revision/", "/tree/")) else None
        if revision is not None and revision not in REVISIONS:
            return _refusal(404, "RevisionNotFound", "Invalid rev id")
        return _refusal(404, "EntryNotFound", "Entry not found")

    def _model_info(self) -> dict[str, object]:
        return {
            "id": self.repo_id,
            "sha": COMMIT,
            "gated": "manual",
            "private": False,
            "pipeline_tag": "fill-mask",
            "library_name": "transformers",
            "tags": ["transformers", "safetensors", "bert", "fill-mask"],
            "siblings": [{"rfilename": name} for name in self._files],
        }

    def _tree_entry(self, name: str) -> dict[str, object]:
        body = self._files[name]
        return {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}

    def _gated(self) -> Reply:
        """As the real hub says it to those who are not, or wrongly, signed in."""
        text = (
            f"Access to model {self.repo_id} is restricted. You must have access to it and be authenticated."
        )
        return _refusal(401, "GatedRepo", text)


def _refusal(status: int, code: str, message: str) -> Reply:
    """The hub's clients read the headers; a HEAD has nothing else."""
    return Reply.json(
        status, {"error": message}, X_Error_Code=code, X_Error_Message=message, X_Repo_Commit=COMMIT
    )


@contextmanager
def serving(hub: Hub, host: str = "127.0.0.1") -> Iterator[Hub]:
    """`hub` on a free port of an address of this machine; `hub.address` says where."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            reply = hub.respond(self.command, self.path, self.headers.get("Authorization"))
            self.send_response(reply.status)
            for name, text in reply.headers.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)

        do_HEAD = do_POST = do_CONNECT = do_GET

        def log_message(self, *_: object) -> None:
            """Nothing: the tests read `hub.requests`."""

    with ThreadingHTTPServer((host, 0), Handler) as server:
        hub.address = f"http://{host}:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
