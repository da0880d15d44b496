"""Connections to the application behind the proxy: opened, used again, read strictly.

A connection carries one request at a time, and those of one client alone.
Not every server reads a body that it has no use for, and one that does not takes
it for further requests: their answers must not reach anybody else. For the
same reason, whatever comes that was not asked for ends a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from gusset.containers.proxy.http_messages import (
    Invalid,
    Request,
    ResponseHead,
    end_of_head,
    read_request,
    read_response,
)

Connect = Callable[[], Awaitable[socket.socket]]

HEAD = 64 * 1024  # bytes of a response's head
_BEGINS = b"HTTP/1."  # every answer
_IDLE_SECONDS = 1.0  # below what common servers allow, so that few requests meet a connection just closed
_CONNECT_SECONDS = 10.0
_FLUSH_SECONDS = 60.0  # in which the application must have taken the last of what it was sent


class ResponseHandler(Protocol):
    """Who waits for the response to a request."""

    request: Request

    def interim(self, head: bytes) -> None:
        """A 1xx response has come: all of it."""

    def begin(self, response: ResponseHead, first: bytes) -> None:
        """The response has begun, with the first part of its body."""

    def write(self, data: bytes) -> None:
        """The next part of its body, or of what is spoken after a switch of protocols."""

    def complete(self) -> None:
        """The response is whole."""

    def half_close(self) -> None:
        """After a switch: the application sends no more, but may still listen."""

    def lost(self, fault: str | None) -> None:
        """The connection ended, because of `fault` if it is known, before the response was whole."""

    def flow(self) -> None:
        """The application takes more, or no more, for now."""


class Upstream(asyncio.Protocol):
    """One connection to the application."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._asker: ResponseHandler | None = None
        self._response: ResponseHead | None = None
        self._held = b""  # of a head that is not whole yet
        self._seen = 0  # bytes of it that were looked at
        self._paused = False
        self.is_full = False  # more waits for the application than it takes
        self.is_reused = False
        self.has_spoken = False  # something of a response to the request under way has come
        self.is_tunnel = False  # another protocol is spoken
        self.at_end = False  # the application sends no more
        self.touched = 0.0  # when something last went through, on the loop's clock

    def ask(self, asker: ResponseHandler, data: bytes) -> None:
        """Carry the request of `asker`, which begins with `data`."""
        self._asker = asker
        self.has_spoken = False
        self._response = None
        self.write(data)

    def write(self, data: bytes) -> None:
        """Send more of the request."""
        self.touched = self._loop.time()
        self.transport.write(data)

    def write_eof(self) -> None:
        """Send no more; what the application says is still heard, unless it has just gone."""
        if not self.transport.is_closing():
            with contextlib.suppress(OSError):
                self.transport.write_eof()

    def read(self, wanted: bool) -> None:
        """Read on, or no further for now."""
        if wanted is self._paused and not self.transport.is_closing():
            self._paused = not wanted
            if wanted:
                self.touched = self._loop.time()
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def release(self) -> bool:
        """The exchange is over; whether the next request may use this connection. It is closed otherwise."""
        response, self._asker = self._response, None
        if response is None or response.close or self.is_full or self.transport.is_closing():
            self.close()
            return False
        self.read(True)
        self.is_reused = True
        return True

    def is_fit(self, now: float) -> bool:
        """Whether a connection that waits for the next request is still there, and will be for a while."""
        return not self.transport.is_closing() and now < self.touched + _IDLE_SECONDS

    def abort(self) -> None:
        """End at once; nobody is told."""
        self._asker = None
        self.transport.abort()

    def close(self) -> None:
        """End when what was written has left; nobody is told."""
        self._asker = None
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._loop.call_later(_FLUSH_SECONDS, self.transport.abort)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        asker = self._asker
        if asker is None:
            self.transport.abort()
            return
        self.touched = self._loop.time()
        self.has_spoken = True
        if self.is_tunnel:
            asker.write(data)
            return
        try:
            self._take(asker, data)
        except Invalid as error:
            self._end(f"Its answer is not valid HTTP: {error.text}")

    def eof_received(self) -> bool:
        if self.is_tunnel and self._asker is not None:
            self.at_end = True
            self._asker.half_close()
            return True
        self._end(None)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._end("It reset the connection." if error else None)

    def pause_writing(self) -> None:
        self.is_full = True
        if self._asker is not None:
            self._asker.flow()

    def resume_writing(self) -> None:
        self.is_full = False
        self.touched = self._loop.time()
        if self._asker is not None:
            self._asker.flow()

    def _take(self, asker: ResponseHandler, data: bytes) -> None:
        """What came, up to the end of the response."""
        response = self._response
        while response is None:
            if self._held:
                data, self._held = self._held + data, b""
            if not (end := end_of_head(data, self._seen)) > 0 or end > HEAD:
                if len(data) > HEAD:
                    raise Invalid("its head is too large")
                if not (data.startswith(_BEGINS) or _BEGINS.startswith(data)):
                    raise Invalid("it does not begin as an answer does")
                self._held, self._seen = data, len(data)
                return
            self._seen = 0
            head = read_response(data[:end], asker.request)
            data = data[end:]
            if head.status == 101:
                self._switch(asker, head, data)
                return
            if head.status < 200:
                asker.interim(head.head)
                if not data:
                    return
                continue
            response = self._response = head
            first, rest = response.body.feed(data)
            asker.begin(response, first)
            self._look_at_end(asker, response, rest)
            return
        if response.body.done:  # whole, yet it goes on, while the request does too
            raise Invalid("more came than was asked for")
        part, rest = response.body.feed(data)
        if part:
            asker.write(part)
        self._look_at_end(asker, response, rest)

    def _look_at_end(self, asker: ResponseHandler, response: ResponseHead, rest: bytes) -> None:
        if response.body.done and self._asker is asker:
            if rest:
                response.close = True
            asker.complete()

    def _switch(self, asker: ResponseHandler, response: ResponseHead, rest: bytes) -> None:
        if not asker.request.upgrade:
            raise Invalid("it switches protocols unasked")
        self.is_tunnel = True
        self._response = response
        asker.begin(response, rest)

    def _end(self, fault: str | None) -> None:
        """The connection is of no more use."""
        asker, self._asker = self._asker, None
        if not self.transport.is_closing():
            self.transport.abort()
        if asker is None:
            return
        response = self._response
        if fault is None and response is not None and response.ends_with_connection and not self.is_tunnel:
            asker.complete()
        else:
            asker.lost(fault)


async def open_upstream(connect: Connect) -> Upstream:
    """A new connection.

    Raises:
        OSError: the application cannot be reached; `TimeoutError` when it does not say so.
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
    """The HTTP status of one GET of `path`; how long it may take is the caller's to say.

    Raises:
        OSError: the application cannot be reached, or does not answer in HTTP.
    """
    loop = asyncio.get_running_loop()
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    with await connect() as sock:
        await loop.sock_sendall(sock, head)
        data = b""
        while len(data) <= HEAD:
            part = await loop.sock_recv(sock, HEAD)
            data += part
            try:
                while (end := end_of_head(data)) > 0:
                    response = read_response(data[:end], read_request(head))
                    if response.status >= 200:
                        return response.status
                    data = data[end:]
            except Invalid as error:
                raise ConnectionError(f"the answer to GET {path} is not valid HTTP: {error.text}") from None
            if not part:
                break
    raise ConnectionError(f"there is no answer to GET {path}")
