"""Connections to the application behind the proxy: opened, reused, read strictly.

A connection carries one request at a time, and only those of one client. Not
every server reads a body that it does not need; one that leaves it unread takes the
body for further requests, whose responses must not reach another client. For
the same reason, bytes that belong to no request end a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from gusset.containers.proxy.http_messages import (
    InvalidMessage,
    Request,
    ResponseHead,
    end_of_head,
    read_request,
    read_response,
)

Connect = Callable[[], Awaitable[socket.socket]]

MAX_HEAD = 64 * 1024  # bytes of a response's head
_START = b"HTTP/1."  # of every response
_IDLE_SECONDS = 1.0  # below what common servers allow, so that few requests meet a connection just closed
_CONNECT_SECONDS = 10.0
_FLUSH_SECONDS = 60.0  # in which the application must take the last bytes that were written


class _Handler(Protocol):
    """Gets what an upstream connection receives."""

    def write(self, data: bytes) -> None:
        """Handle the next part of the response's body, or of a tunnel."""

    def lost(self, fault: str | None) -> None:
        """The connection has ended too early, because of `fault` if that is known."""

    def flow(self) -> None:
        """The application can take more, or cannot for now: see `Upstream.is_full`."""


class ResponseHandler(_Handler, Protocol):
    """Gets the response to a request."""

    request: Request

    def interim(self, head: bytes) -> None:
        """Handle a 1xx response, which is only a head."""

    def begin(self, response: ResponseHead, first: bytes) -> None:
        """Handle the head of the response, with the first part of its body."""

    def complete(self) -> None:
        """The response is complete."""


class TunnelHandler(_Handler, Protocol):
    """Gets what the application sends after a switch of protocols."""

    def half_close(self) -> None:
        """The application sends no more, but may still receive."""


class Upstream(asyncio.Protocol):
    """One connection to the application."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._handler: ResponseHandler | None = None  # of the request in flight
        self._tunnel: TunnelHandler | None = None
        self._response: ResponseHead | None = None
        self._held = b""  # of a head that is not complete yet
        self._searched = 0  # bytes of it in which no end was found
        self._paused = False
        self.is_full = False  # the application takes less than is written
        self.is_reused = False
        self.has_response = False  # part of the response to the request in flight has arrived
        self.at_end = False  # the application sends no more
        self.touched = 0.0  # when something last passed through, on the loop's clock

    def send_request(self, handler: ResponseHandler, data: bytes) -> None:
        """Send a request, which begins with `data`; `handler` gets its response."""
        self._handler = handler
        self.has_response = False
        self._response = None
        self.write(data)

    def enter_tunnel(self, tunnel: TunnelHandler) -> None:
        """From now on `tunnel` gets what the application sends."""
        self._handler, self._tunnel = None, tunnel

    def write(self, data: bytes) -> None:
        """Send more of the request, or through the tunnel."""
        self.touched = self._loop.time()
        self.transport.write(data)

    def write_eof(self) -> None:
        """Send no more, but keep reading."""
        if not self.transport.is_closing():
            with contextlib.suppress(OSError):  # the application has just gone
                self.transport.write_eof()

    def read(self, wanted: bool) -> None:
        """Resume reading, or pause it."""
        if wanted is self._paused and not self.transport.is_closing():
            self._paused = not wanted
            if wanted:
                self.touched = self._loop.time()
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def release(self) -> bool:
        """Complete an exchange. Returns whether the next request may use the connection; else closes it."""
        response, self._handler = self._response, None
        if response is None or response.close or self.is_full or self.transport.is_closing():
            self.close()
            return False
        self.read(True)
        self.is_reused = True
        return True

    def is_usable(self, now: float) -> bool:
        """Whether an idle connection is still open, and will probably be for a moment."""
        return not self.transport.is_closing() and now < self.touched + _IDLE_SECONDS

    def abort(self) -> None:
        """Close at once, without calling the handler."""
        self._handler = self._tunnel = None
        self.transport.abort()

    def close(self) -> None:
        """Close once what was written has been sent, without calling the handler."""
        self._handler = self._tunnel = None
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._loop.call_later(_FLUSH_SECONDS, self.transport.abort)

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.touched = self._loop.time()
        if (handler := self._handler) is not None:
            self.has_response = True
            try:
                self._parse(handler, data)
            except InvalidMessage as error:
                self._end(f"Its response is not valid HTTP: {error.text}")
        elif self._tunnel is not None:
            self._tunnel.write(data)
        else:
            self.transport.abort()

    def eof_received(self) -> bool:
        if self._tunnel is not None:
            self.at_end = True
            self._tunnel.half_close()
            return True
        self._end(None)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._end("It reset the connection." if error else None)

    def pause_writing(self) -> None:
        self.is_full = True
        self._report_flow()

    def resume_writing(self) -> None:
        self.is_full = False
        self.touched = self._loop.time()
        self._report_flow()

    def _report_flow(self) -> None:
        handler = self._handler or self._tunnel
        if handler is not None:
            handler.flow()

    def _parse(self, handler: ResponseHandler, data: bytes) -> None:
        """Parse what has arrived, up to the end of the response."""
        response = self._response
        if response is None:
            self._parse_head(handler, data)
            return
        if response.body.done:  # the response is complete while the request's body is still being sent
            raise InvalidMessage("there is more than one response")
        part, rest = response.body.feed(data)
        if part:
            handler.write(part)
        self._check_end(handler, response, rest)

    def _parse_head(self, handler: ResponseHandler, data: bytes) -> None:
        """Parse interim responses and the head of the final one, which may not be complete yet."""
        while True:
            if self._held:
                data, self._held = self._held + data, b""
            if not (end := end_of_head(data, self._searched)) > 0 or end > MAX_HEAD:
                if len(data) > MAX_HEAD:
                    raise InvalidMessage("its head is too large")
                if not (data.startswith(_START) or _START.startswith(data)):
                    raise InvalidMessage("it does not begin like a response")
                self._held, self._searched = data, len(data)
                return
            self._searched = 0
            head = read_response(data[:end], handler.request)
            data = data[end:]
            if head.status == 101:
                if not handler.request.upgrade:
                    raise InvalidMessage("it switches protocols without being asked to")
                self._response = head
                handler.begin(head, data)
                return
            if head.status < 200:
                handler.interim(head.head)
                if not data:
                    return
                continue
            self._response = head
            first, rest = head.body.feed(data)
            handler.begin(head, first)
            self._check_end(handler, head, rest)
            return

    def _check_end(self, handler: ResponseHandler, response: ResponseHead, rest: bytes) -> None:
        if response.body.done and self._handler is handler:
            if rest:
                response.close = True
            handler.complete()

    def _end(self, fault: str | None) -> None:
        """Close, and report to the handler how the connection ended."""
        handler, tunnel = self._handler, self._tunnel
        self._handler = self._tunnel = None
        if not self.transport.is_closing():
            self.transport.abort()
        if tunnel is not None:
            tunnel.lost(fault)
        elif handler is not None:
            response = self._response
            if fault is None and response is not None and response.ends_with_connection:
                handler.complete()
            else:
                handler.lost(fault)


async def open_upstream(connect: Connect) -> Upstream:
    """Open a connection.

    Raises:
        OSError: the application cannot be reached; `TimeoutError` if it does not accept in time.
    """
    async with asyncio.timeout(_CONNECT_SECONDS):
        sock = await connect()
        try:
            _, upstream = await asyncio.get_running_loop().create_connection(Upstream, sock=sock)
        except BaseException:
            sock.close()
            raise
    return upstream


async def probe(connect: Connect, path: str) -> int:
    """The HTTP status of one GET of `path`. The caller limits how long it may take.

    Raises:
        OSError: the application cannot be reached, or does not respond in HTTP.
    """
    loop = asyncio.get_running_loop()
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    with await connect() as sock:
        await loop.sock_sendall(sock, head)
        data = b""
        while len(data) <= MAX_HEAD:
            part = await loop.sock_recv(sock, MAX_HEAD)
            data += part
            try:
                while (end := end_of_head(data)) > 0:
                    response = read_response(data[:end], read_request(head))
                    if response.status >= 200:
                        return response.status
                    data = data[end:]
            except InvalidMessage as error:
                raise ConnectionError(f"the response to GET {path} is not valid HTTP: {error.text}") from None
            if not part:
                break
    raise ConnectionError(f"there is no response to GET {path}")
