"""ASGI on top of `Exchange`: scopes, `send`, and applications that handle whole requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from gusset.runtime.exchange import LAST_CHUNK, Exchange, Headers, chunk

Message = MutableMapping[str, Any]
AsgiApp = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]

# With 2.3 Starlette learns of a disconnected client from `receive`, with later ones from an error of `send`.
_ASGI = {"version": "3.0", "spec_version": "2.3"}


def make_scope(exchange: Exchange, *, scheme: str = "http") -> dict[str, Any]:
    """ASGI's description of a request."""
    server = exchange.transport.get_extra_info("sockname")
    return {
        "type": "http",
        "asgi": _ASGI,
        "http_version": "1.0" if exchange.is_old else "1.1",
        "method": exchange.method.decode("ascii"),
        "scheme": scheme,
        "path": unquote(exchange.path.decode("ascii", "replace")),
        "raw_path": exchange.path,
        "query_string": exchange.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in exchange.headers],
        "client": exchange.peer,
        "server": tuple(server[:2]) if server else None,
        "state": {},
    }


async def run_asgi(app: AsgiApp, exchange: Exchange, scope: dict[str, Any], send: AsgiSender) -> None:
    """Have an application respond to a request whose body has been read.

    Raises:
        RuntimeError: it returned without a complete response, though the client is still there.
    """
    over = asyncio.Event()  # the client has disconnected
    is_body_taken = False

    def on_gone() -> None:
        over.set()
        send.on_disconnect()

    async def receive() -> Message:
        nonlocal is_body_taken
        if not is_body_taken:
            is_body_taken = True
            return {"type": "http.request", "body": exchange.body, "more_body": False}
        if not exchange.gone and not send.is_complete:
            await over.wait()
        return {"type": "http.disconnect"}

    exchange.on_gone = on_gone
    await app(scope, receive, send)
    if not send.is_complete and not exchange.gone:
        raise RuntimeError("the application returned before its response was complete")


class AsgiSender:
    """ASGI's `send`, for one response."""

    def __init__(
        self,
        exchange: Exchange,
        headers: Headers = (),
        on_complete: Callable[[], object] = lambda: None,
    ) -> None:
        """`headers` replace those of the application; `on_complete` is called after the last byte."""
        self._exchange = exchange
        self._extra = tuple(headers)
        self._on_complete = on_complete
        self._start: Message | None = None
        self._frames = False
        self._drained = asyncio.Event()
        self.status = 0  # 0 until the application has given one
        self.has_begun = False
        self.is_complete = False
        exchange.on_writable = self._drained.set

    def on_disconnect(self) -> None:
        """The client has gone."""
        self._drained.set()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            self.status = message["status"]
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
        elif body and self._exchange.method != b"HEAD":
            self._exchange.write(chunk(body) if self._frames else body)
        if not more:
            self.is_complete = True
            self._exchange.end(LAST_CHUNK if self._frames else b"")
            self._on_complete()

    def _begin(self, body: bytes, *, more: bool) -> None:
        if self._start is None:
            raise RuntimeError("a response's body came before its head")
        headers = list(self._start.get("headers", ()))
        has_length = any(name.lower() == b"content-length" for name, _ in headers)
        bodiless = self.status in (204, 304)
        if not (more or has_length or bodiless):
            headers.append((b"content-length", b"%d" % len(body)))
            has_length = True
        is_head = self._exchange.method == b"HEAD"
        self._frames = not (has_length or bodiless or is_head or self._exchange.is_old)
        ours = {name for name, _ in self._extra}
        headers = [header for header in headers if header[0].lower() not in ours]
        if any(b"\r" in part or b"\n" in part for header in headers for part in header):
            raise ValueError("a response's header cannot have line breaks")
        if (b"connection", b"close") in headers:
            headers.remove((b"connection", b"close"))  # the connection adds it
            self._exchange.keep_alive = False
        first = b"" if is_head else chunk(body) if self._frames and body else body
        self.has_begun = True
        self._exchange.start(self.status, (*headers, *self._extra), first)
