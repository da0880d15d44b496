"""ASGI on top of `Exchange`: scopes, `send`, and applications that handle whole requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from gusset.runtime.exchange import LAST_CHUNK, Exchange, Headers, chunk
from gusset.runtime.responses import checked_headers

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
        "http_version": "1.0" if exchange.is_http_1_0 else "1.1",
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

    def on_disconnect() -> None:
        over.set()
        send.on_disconnect()

    async def receive() -> Message:
        nonlocal is_body_taken
        if not is_body_taken:
            is_body_taken = True
            return {"type": "http.request", "body": exchange.body, "more_body": False}
        if not exchange.disconnected and not send.is_complete:
            await over.wait()
        return {"type": "http.disconnect"}

    exchange.on_disconnect = on_disconnect
    await app(scope, receive, send)
    if not send.is_complete and not exchange.disconnected:
        raise RuntimeError("the application returned before its response was complete")


def body_of(message: Message) -> bytes:
    """The part of a body in an ASGI message; Starlette passes a memoryview on as it is."""
    body = message.get("body", b"")
    return body if isinstance(body, bytes) else bytes(memoryview(body))


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
        self._is_bodiless = False
        self._left: int | None = None  # bytes until the declared length
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
            self._send(body_of(message), more=message.get("more_body", False))
            if not self._exchange.writable and not self._exchange.disconnected:
                self._drained.clear()
                await self._drained.wait()

    def _send(self, body: bytes, *, more: bool) -> None:
        if not self.has_begun:
            if not body and more:
                return  # the head waits for the first byte
            self._begin(body, more=more)
        elif body and not self._is_bodiless:
            self._count(body)
            self._exchange.write(chunk(body) if self._frames else body)
        if not more:
            if self._left:
                raise RuntimeError("the response is shorter than its content-length")
            self.is_complete = True
            self._exchange.end(LAST_CHUNK if self._frames else b"")
            self._on_complete()

    def _begin(self, body: bytes, *, more: bool) -> None:
        if self._start is None:
            raise RuntimeError("a response's body came before its head")
        if self.status < 200:
            raise ValueError(f"{self.status} is not the status of a complete response")
        given = list(self._start.get("headers", ()))
        ours = {name for name, _ in self._extra}
        headers = [header for header in checked_headers(given) if header[0].lower() not in ours]
        headers, length = _without_length(headers)
        is_head = self._exchange.method == b"HEAD"
        self._is_bodiless = is_head or self.status in (204, 304)
        if self.status == 204:
            length = None
        elif not more and self.status != 304 and not (is_head and length is not None):
            length = len(body)  # whatever the application has declared
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        if (b"connection", b"close") in given:
            self._exchange.keep_alive = False
        self._frames = length is None and not self._is_bodiless and not self._exchange.is_http_1_0
        self._left = None if self._is_bodiless else length
        self._count(body)
        first = b"" if self._is_bodiless else chunk(body) if self._frames and body else body
        self.has_begun = True
        self._exchange.start(self.status, (*headers, *self._extra), first)

    def _count(self, body: bytes) -> None:
        """Refuse what is longer than the declared length: the rest would be read as the next response."""
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0:
                raise RuntimeError("the response is longer than its content-length")


def _without_length(headers: list[tuple[bytes, bytes]]) -> tuple[list[tuple[bytes, bytes]], int | None]:
    """The headers without the content-length, and that."""
    values = {value for name, value in headers if name.lower() == b"content-length"}
    if not values:
        return headers, None
    if len(values) > 1 or not (value := values.pop()).isdigit():
        raise ValueError("the content-length of a response is not one number")
    return [header for header in headers if header[0].lower() != b"content-length"], int(value)
