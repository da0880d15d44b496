"""HTTP/1.1 for the model server: httptools parses, this keeps connections, limits and order.

Knows nothing of routes or models: a complete request goes to `handle`, which
calls `Request.respond` once, on the loop, now or later. Requests of one
connection are answered in order, one at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httptools
import orjson

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    head: int = 64 * 1024
    body: int = 100 * 1024 * 1024
    head_time: float = 20.0
    body_time: float = 300.0
    idle_time: float = 75.0


class Request:
    """One request, whole. Header names are lower case."""

    __slots__ = ("_connection", "body", "headers", "keep_alive", "method", "path")

    def __init__(
        self,
        connection: Connection,
        method: str,
        path: bytes,
        headers: list[tuple[bytes, bytes]],
        keep_alive: bool,
    ) -> None:
        self._connection = connection
        self.method = method
        self.path = path
        self.headers = headers
        self.keep_alive = keep_alive
        self.body = b""

    def header(self, name: bytes) -> bytes | None:
        return next((value for known, value in self.headers if known == name), None)

    @property
    def gone(self) -> bool:
        """Whether the client has left: nobody waits for the answer."""
        return self._connection.closed

    def respond(
        self, status: int, body: bytes, headers: Headers = (), kind: bytes = b"application/json"
    ) -> None:
        """Answer. To be called once, on the event loop's thread."""
        self._connection.answer(self, status, body, headers, kind)


_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_HEADS: dict[tuple[int, bytes], bytes] = {}


def _head(status: int, kind: bytes) -> bytes:
    """The lines that begin every answer of this status and type, made once."""
    known = _HEADS.get((status, kind))
    if known is None:
        reason = _REASONS.get(status, b"")
        known = _HEADS[status, kind] = b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: " % (
            status,
            reason,
            kind,
        )
    return known


def error_body(text: str) -> bytes:
    return orjson.dumps({"error": text})


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = server.limits
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set before anything else is called
        self._parser: Any = None
        self._current: Request | None = None  # being answered
        self._waiting: deque[Request] = deque()  # complete, behind it
        self._request: Request | None = None  # arriving
        self._path = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self._head_bytes = 0
        self._body_bytes = 0
        self._draining = False
        self.closed = False
        self.deadline = 0.0

    # --- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # loops give this kind for TCP
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._server.connections.add(self)
        self.deadline = time.monotonic() + self._limits.idle_time

    def connection_lost(self, _: Exception | None) -> None:
        self.closed = True
        self._waiting.clear()
        self._server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        if self._draining:
            return
        if self._request is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "Protocol upgrades are not supported here.")
            return
        except httptools.HttpParserCallbackError as error:
            refused = error.__context__
            if not isinstance(refused, _Refused):
                raise
            self._refuse(refused.status, refused.text)
            return
        except httptools.HttpParserError:
            self._refuse(400, "Invalid HTTP request received.")
            return
        if self._request is None and self._head_bytes > self._limits.head:
            self._refuse(431, "The request's head is too large.")

    def pause_writing(self) -> None:
        self._transport.pause_reading()  # a client that does not read is not read from

    def resume_writing(self) -> None:
        if not self._waiting:
            self._transport.resume_reading()

    # --- the parser's side

    def on_message_begin(self) -> None:
        self._path, self._headers = b"", []
        self.deadline = time.monotonic() + self._limits.head_time

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        method = self._parser.get_method().decode("ascii", "replace")
        request = Request(self, method, self._path, self._headers, self._parser.should_keep_alive())
        self._request, self._head_bytes, self._body_bytes, self._parts = request, 0, 0, []
        self.deadline = time.monotonic() + self._limits.body_time
        announced = request.header(b"content-length")
        if announced is not None and int(announced) > self._limits.body:
            raise _Refused(413, "The request's body is too large.")
        if request.header(b"expect") is not None and self._current is None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._body_bytes > self._limits.body:
            raise _Refused(413, "The request's body is too large.")
        self._parts.append(data)

    def on_message_complete(self) -> None:
        request, self._request = self._request, None
        assert request is not None  # noqa: S101  # its head came first
        parts, self._parts = self._parts, []
        request.body = parts[0] if len(parts) == 1 else b"".join(parts)
        if self._current is None:
            self._begin(request)
        else:
            self._waiting.append(request)
            self._transport.pause_reading()

    # --- answering

    def _begin(self, request: Request) -> None:
        self._current = request
        self.deadline = 0.0  # the model may take its time
        self._server.handle(request)

    def answer(self, request: Request, status: int, body: bytes, headers: Headers, kind: bytes) -> None:
        """Write the answer to the current request, then begin the next one that waits."""
        if self.closed or request is not self._current:
            return
        keep = request.keep_alive and not self._server.draining
        more = b"".join(b"%b: %b\r\n" % pair for pair in headers)
        close = b"" if keep else b"connection: close\r\n"
        sent = b"" if request.method == "HEAD" else body
        self._transport.write(b"%b%d\r\n%b%b\r\n%b" % (_head(status, kind), len(body), more, close, sent))
        self._current = None
        if not keep:
            self._end()
        elif self._waiting:
            self._begin(self._waiting.popleft())
        else:
            self.deadline = time.monotonic() + self._limits.idle_time
            self._transport.resume_reading()

    def _refuse(self, status: int, text: str) -> None:
        """Answer what is not a request, then close: what follows cannot be understood."""
        if self._current is None and not self.closed:
            body = error_body(text)
            errors = b"x-baseten-error-source: 04\r\nx-baseten-error-code: 700\r\nconnection: close\r\n"
            head = _head(status, b"application/json")
            self._transport.write(b"%b%d\r\n%b\r\n%b" % (head, len(body), errors, body))
        self._end()

    def _end(self) -> None:
        """Close after what was written has left; read on a little, so that the client gets to see it."""
        self._draining = True
        self._waiting.clear()
        self._transport.close()

    def expire(self, now: float) -> None:
        """Close a connection that is idle, or that is too slow with its request."""
        if not self.deadline or now < self.deadline or self.closed:
            return
        if self._request is not None or self._head_bytes:
            self._refuse(408, "The request took too long to arrive.")
        else:
            self._end()

    def finish(self) -> None:
        """The server is stopping: close unless a request is under way."""
        if self._current is None:
            self._end()


class _Refused(Exception):
    """Raised inside the parser's callbacks to stop it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class HttpServer:
    """Serves `handle` on a listening socket, until it is told to stop."""

    def __init__(self, handle: Callable[[Request], None], limits: Limits = Limits()) -> None:
        self.handle = handle
        self.limits = limits
        self.connections: set[Connection] = set()
        self.draining = False
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self, listening: Any) -> None:
        """Accept on a copy of `listening`, which stays open for whoever else holds it."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), sock=listening.dup(), backlog=2048)
        self._sweeper = loop.create_task(self._sweep())

    def stop_accepting(self) -> None:
        """Leave new connections to others; those that there are go on."""
        if self._server:
            self._server.close()
            self._server = None

    async def drain(self) -> None:
        """Stop accepting, let requests under way finish, close the rest."""
        self.stop_accepting()
        self.draining = True
        for connection in list(self.connections):
            connection.finish()
        while self.connections:
            await asyncio.sleep(0.01)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            for connection in list(self.connections):
                connection.expire(now)
