"""What models see of HTTP: Starlette's requests, responses and websockets, over our own connections.

Imported only for a model that has imported Starlette itself, or FastAPI.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request

from gusset.runtime.exchange import LAST_CHUNK, Exchange, Headers, chunk

Message = MutableMapping[str, Any]

# How Starlette learns that a client has gone: 2.3 by `receive`, later ones by an error of `send`.
_ASGI = {"version": "3.0", "spec_version": "2.3"}


class DisconnectWatcher:
    """Whether a client is still there; asked by `is_disconnected` and by `watch_disconnect`."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._left: asyncio.Event | None = None
        self._watchers: set[threading.Event] = set()

    def on_disconnect(self) -> None:
        """The client has gone. Called on the loop."""
        if self._left is not None:
            self._left.set()
        for watcher in tuple(self._watchers):
            watcher.set()

    async def receive(self) -> Message:
        """ASGI's `receive` after the body: there is nothing more to come but the client's leaving."""
        if not self._exchange.gone:
            if self._left is None:
                self._left = asyncio.Event()
            await self._left.wait()
        return {"type": "http.disconnect"}

    @contextlib.contextmanager
    def watch(self) -> Iterator[threading.Event]:
        """An event for synchronous code, which is set when the client leaves."""
        event = threading.Event()
        self._watchers.add(event)
        if self._exchange.gone:
            event.set()
        try:
            yield event
        finally:
            self._watchers.discard(event)


def scope_of(exchange: Exchange) -> dict[str, Any]:
    """ASGI's description of a request."""
    transport = exchange.transport
    client, server = (transport.get_extra_info(name) for name in ("peername", "sockname"))
    return {
        "type": "http",
        "asgi": _ASGI,
        "http_version": "1.0" if exchange.is_old else "1.1",
        "method": exchange.method.decode("ascii"),
        "scheme": "http",
        "path": unquote(exchange.path.decode("ascii", "replace")),
        "raw_path": exchange.path,
        "query_string": exchange.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in exchange.headers],
        "client": tuple(client[:2]) if client else None,
        "server": tuple(server[:2]) if server else None,
        "state": {},
    }


def request_of(exchange: Exchange, body: bytes, disconnect_watcher: DisconnectWatcher) -> Request:
    """The request as a model's method gets it. Its body has been read already."""
    scope = scope_of(exchange)
    scope["state"]["watch_disconnect"] = disconnect_watcher.watch
    request = Request(scope, disconnect_watcher.receive)
    request._body = body  # as Starlette keeps it once it has been read
    return request


class AsgiSender:
    """ASGI's `send`, for one response."""

    def __init__(self, exchange: Exchange, headers: Headers, on_complete: Callable[[], object]) -> None:
        """`headers` are sent beside the response's own, `on_complete` is called after its last byte."""
        self._exchange = exchange
        self._extra = tuple(headers)
        self._on_complete = on_complete
        self._start: Message | None = None
        self._frames = False
        self._drained = asyncio.Event()
        self.has_begun = False
        self.is_complete = False
        exchange.on_writable = self._drained.set

    def on_disconnect(self) -> None:
        """The client has gone."""
        self._drained.set()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
        elif message["type"] == "http.response.body":
            self._send(message.get("body", b""), more=message.get("more_body", False))
            if not self._exchange.writable and not self._exchange.gone:
                self._drained.clear()
                await self._drained.wait()

    def _send(self, body: bytes, *, more: bool) -> None:
        if not self.has_begun:
            if not body and more:
                return  # the head waits for the first byte
            self._begin(body, more=more)
        elif body:
            self._exchange.write(chunk(body) if self._frames else body)
        if not more:
            self.is_complete = True
            self._exchange.end(LAST_CHUNK if self._frames else b"")
            self._on_complete()

    def _begin(self, body: bytes, *, more: bool) -> None:
        if self._start is None:
            raise RuntimeError("a response's body came before its head")
        status: int = self._start["status"]
        headers = list(self._start.get("headers", ()))
        has_length = any(name.lower() == b"content-length" for name, _ in headers)
        bodiless = status in (204, 304)
        if not (more or has_length or bodiless):
            headers.append((b"content-length", b"%d" % len(body)))
            has_length = True
        self._frames = not (has_length or bodiless or self._exchange.is_old)
        ours = {name for name, _ in self._extra}
        headers = [header for header in headers if header[0].lower() not in ours]
        if any(b"\r" in part or b"\n" in part for header in headers for part in header):
            raise ValueError("a response's header cannot have line breaks")
        first = chunk(body) if self._frames and body else body
        self.has_begun = True
        self._exchange.start(status, (*headers, *self._extra), first)
