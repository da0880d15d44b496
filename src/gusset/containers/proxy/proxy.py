"""The reverse proxy of custom images: Truss's routes on one side, the image's server on the other.

Bytes go through as they come, both ways, with back-pressure: nothing is
collected, and headers, chunks and websocket frames arrive as they were sent.
Only what HTTP reserves for a single hop is taken out. How messages are read
stands in `messages`, the application's side in `upstream`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gusset.containers.proxy.http_messages import Invalid, Request, ResponseHead, end_of_head, read_request
from gusset.containers.proxy.upstream import Connect, Upstream, open_upstream, probe
from gusset.runtime.connections import Limits, most_connections
from gusset.runtime.responses import (
    ERROR_OF_MODEL,
    Response,
    caller_error,
    error_body,
    not_ready,
    status_line,
)

__all__ = ["Proxy", "Routes", "probe"]

log = logging.getLogger("gusset")

_HELD = 64 * 1024  # bytes that a client may send ahead of their turn
_JOINABLE = 64 * 1024  # bytes; a larger part is not copied to stand beside its head
_LINGER = 2.0  # seconds in which a refused client may still finish sending
_BODY_RATE = 100  # bytes a second that a body must come with, after its first minute
_SWEEP = 0.5  # seconds between two looks at what takes too long
_IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})


@dataclass(frozen=True)
class Routes:
    """The application's own paths for what clients of a Truss model ask."""

    predict: str
    readiness: str
    liveness: str


class Proxy:
    """Carries requests from one listening socket to the application."""

    def __init__(
        self,
        connect: Connect,
        routes: Routes,
        *,
        ready: Callable[[], str | None],
        read_seconds: float = 18_030.0,
        limits: Limits | None = None,
    ) -> None:
        """`connect` gives a connected non-blocking TCP socket to the application.

        `ready` is None when requests may pass, else the reason for a 503.
        `read_seconds` is how long the application may be silent.
        """
        predict, readiness = routes.predict.encode(), routes.readiness.encode()
        self.connect = connect
        self.paths = {
            b"/": routes.liveness.encode(),
            b"/v1/models/model": readiness,
            b"/v1/models/model/loaded": readiness,
            b"/v1/models/model:predict": predict,
            b"/v1/models/model%3Apredict": predict,
            b"/v1/models/model%3apredict": predict,
            b"/predict": predict,
            b"/v1/websocket": predict,
        }
        self.ready = ready
        self.read_seconds = read_seconds
        self.limits = limits or Limits()
        self.closing = False
        self.most = most_connections() // 2  # each may have one to the application
        self.clients: set[Client] = set()
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()

    async def start(self, listener: socket.socket) -> None:
        """Accept on `listener`, which the proxy owns from now on."""
        self.loop = asyncio.get_running_loop()
        self._sweep()
        self._listener = await self.loop.create_server(lambda: Client(self), sock=listener)

    async def drain(self, seconds: float) -> None:
        """Accept no more, let requests under way be answered, and cut what takes longer than `seconds`."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.closing = True
        for client in tuple(self.clients):
            client.finish()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._until_empty()
        for client in tuple(self.clients):
            client.cut()
        await self._until_empty()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def forget(self, client: Client) -> None:
        """A client calls this when its connection has ended."""
        self.clients.discard(client)
        if not self.clients:
            self._empty.set()

    async def _until_empty(self) -> None:
        while self.clients:
            self._empty.clear()
            await self._empty.wait()

    def _sweep(self) -> None:
        now = self.loop.time()
        for client in tuple(self.clients):
            client.expire(now)
        self._sweeper = self.loop.call_later(_SWEEP, self._sweep)


class Client(asyncio.Protocol):
    """One client. Its requests are carried one after the other, in order."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._input = b""  # what has come and not been carried on
        self._seen = 0  # bytes of it that belong to a head and were looked at
        self.request: Request  # the latest one
        self._busy = False  # it is under way
        self._first = b""  # its head, and what came of its body at once
        self._upstream: Upstream | None = None  # what carries it,
        self._kept: Upstream | None = None  # and may carry the next one
        self._opening: asyncio.Task[None] | None = None
        self._begun = False  # its response has begun,
        self._response_ends_with_connection = False
        self._whole = False  # and is whole
        self._is_tunnel = False
        self._at_end = False  # the client sends no more; only a tunnel lives on then
        self._half_closed = 0.0  # when one side of a tunnel came to its end
        self._ended = False  # nothing that arrives is looked at any more
        self._carrying = False
        self._reading = True
        self._writable = True
        self._untaken = 0  # bytes that waited for the client when last looked at,
        self._stalled = 0.0  # and when it must have taken some of them
        self._deadline = proxy.loop.time() + proxy.limits.head_seconds
        self._patience = 0.0  # until when more of a body must have come

    # What asyncio calls.

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if len(self._proxy.clients) >= self._proxy.most:
            self._ended = True
            transport.abort()
            return
        self._proxy.clients.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._proxy.forget(self)
        self._ended = True
        self._let_go()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        if self._is_tunnel and self._upstream is not None:
            self._upstream.write(data)
            return
        self._input = self._input + data if self._input else data
        self._carry_on()

    def eof_received(self) -> bool:
        if self._is_tunnel and self._upstream is not None and not self._ended:
            self._at_end = True
            self._upstream.write_eof()
            return self._stay_half_closed(self._upstream)
        self._ended = True  # a client that half-closes counts as gone
        self._let_go()
        return False

    def pause_writing(self) -> None:
        self._writable = False
        if self._upstream is not None:
            self._upstream.read(False)

    def resume_writing(self) -> None:
        self._writable = True
        if self._upstream is not None:
            self._upstream.read(True)
        self._carry_on()

    # What the application's side calls.

    def interim(self, head: bytes) -> None:
        """Pass a 1xx response on, to those who know of them."""
        if not self.request.is_old:
            self.transport.write(head + b"\r\n")

    def begin(self, response: ResponseHead, first: bytes) -> None:
        """Pass the head of a response on, with the first part of its body."""
        self._begun = True
        self._response_ends_with_connection = response.ends_with_connection
        self._first = b""
        request = self.request
        if response.status == 101:
            self._tunnel(response, first)
            return
        if request.upgrade and response.close:
            request.close = True  # its own Connection says so, and is passed on here
        elif request.close or self._proxy.closing or response.ends_with_connection:
            request.close = True
            response.head += b"Connection: close\r\n"
        head = response.head + b"\r\n"
        if len(first) < _JOINABLE:
            self.transport.write(head + first)
        else:
            self.transport.writelines((head, first))

    def write(self, data: bytes) -> None:
        """Pass the next part on."""
        self.transport.write(data)

    def complete(self) -> None:
        """Turn to the next request, once this one has been heard out."""
        self._whole = True
        if self.request.body.done:
            self._turn()
            self._carry_on()

    def half_close(self) -> None:
        """The application says no more in a tunnel."""
        if self._upstream is not None:
            self._write_eof()
            if not self._stay_half_closed(self._upstream):
                self.transport.close()

    def lost(self, fault: str | None) -> None:
        """The application broke off."""
        upstream, self._upstream = self._upstream, None
        if self._whole:
            self._carry_on()  # the rest of the request is read, for nobody
        elif self._is_tunnel and fault is None:
            self._end()
        elif self._begun:
            self._break_off()
        elif self._may_repeat(upstream):
            self._open()
        else:
            self._fail(502, fault or "It closed the connection without an answer.")

    def flow(self) -> None:
        """Read the client just as fast as the application takes what it sends."""
        upstream = self._upstream
        if self._is_tunnel:
            wanted = upstream is None or not upstream.is_full
        else:
            is_held_up = (
                self._busy and not self.request.body.done and upstream is not None and upstream.is_full
            )
            wanted = len(self._input) <= _HELD and not is_held_up
        if wanted is self._reading or self.transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self._heard = self._proxy.loop.time()
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    # What the proxy calls.

    def finish(self) -> None:
        """Close now when nothing is under way, else after the response."""
        if not self._busy and not self._input and not self._ended:
            self._end()

    def cut(self) -> None:
        """End at once."""
        self._ended = True
        self._let_go()
        self.transport.abort()

    def expire(self, now: float) -> None:
        """End the connection, or the request, when somebody has kept the other waiting for too long."""
        limits = self._proxy.limits
        if self._kept is not None and not self._kept.is_fit(now):
            self._kept.close()
            self._kept = None
        if (untaken := self.transport.get_write_buffer_size()) != self._untaken:
            self._untaken = untaken
            self._stalled = now + limits.stall_seconds
        if untaken:
            if now >= self._stalled:
                self.cut()
        elif self._busy and not self._ended:
            self._expire_request(now)
        elif now >= self._deadline:
            if self._ended or not self._input:
                self.cut()
            else:
                self._refuse(Invalid("The request took too long to arrive.", 408))

    def _expire_request(self, now: float) -> None:
        upstream, limits = self._upstream, self._proxy.limits
        if self._half_closed and now >= self._half_closed + limits.stall_seconds:
            self.cut()
        elif upstream is not None and now >= upstream.touched + self._proxy.read_seconds:
            self._let_go()
            if self._begun:
                log.warning("The application was silent for more than %g s.", self._proxy.read_seconds)
                self._break_off()
            else:
                self._fail(504, "It took too long to answer.")
        elif not self._reading:  # it is the application who takes its time
            self._patience = now + limits.body_seconds
        elif not self.request.body.done and now >= self._patience:
            self._refuse(Invalid("The request took too long to arrive.", 408))

    # From here on, in the order in which a request goes through.

    def _carry_on(self) -> None:
        """Take in what has come, as far as its turn is there."""
        if self._carrying:
            return  # the loop below goes on by itself
        self._carrying = True
        try:
            while self._input and not self._ended:
                if self._busy:
                    if not self._carry_body():
                        break
                elif not self._writable or not self._begin_request():
                    break
        except Invalid as error:
            self._refuse(error)
        finally:
            self._carrying = False
        if not self._ended:
            self.flow()

    def _begin_request(self) -> bool:
        """Take in a head, if it is whole.

        Raises:
            Invalid: it is not as it should be.
        """
        data, limits = self._input, self._proxy.limits
        if self._seen == 0:
            while data.startswith(b"\r\n"):  # some clients end a body with a line too many
                data = data[2:]
            if data is not self._input and not data:
                self._input = b""
                return False
        end = end_of_head(data, self._seen)
        if end > limits.head or (end < 0 and len(data) > limits.head):
            raise Invalid(f"The request's head is larger than {limits.head} bytes.", 431)
        if end < 0:
            if data and not data[:1].isalpha():  # another protocol, which would wait for us in turn
                raise Invalid("Invalid HTTP request received.")
            if not self._seen:
                self._deadline = self._proxy.loop.time() + limits.head_seconds
            self._input, self._seen = data, len(data)
            return False
        self._seen = 0
        self._begun = self._whole = False
        self.request = request = read_request(data[:end])
        self._busy = True
        self._patience = self._proxy.loop.time() + limits.body_seconds
        self._input = data[end:]
        self._start(request)
        return True

    def _start(self, request: Request) -> None:
        """Send a request on its way.

        Raises:
            Invalid: its body is not as it should be.
        """
        if (request.length or 0) > self._proxy.limits.body:
            raise self._too_large()
        self._heard = self._proxy.loop.time()
        part = self._take_body(request) if self._input and not request.body.done else b""
        path, mark, query = request.target.partition(b"?")
        if (reason := self._proxy.ready()) is not None:
            self._stand_in(path, reason)
            return
        target = self._proxy.paths.get(path)
        if target is None:
            target = request.target
        elif mark:
            target += (b"&" if b"?" in target else b"?") + query
        self._first = b"%b %b HTTP/1.1%b%b" % (request.method, target, request.fields, part)
        kept, self._kept = self._kept, None
        if kept is not None and kept.is_fit(self._heard):
            self._ask(kept)
        else:
            if kept is not None:
                kept.close()
            self._open()

    def _open(self) -> None:
        self._opening = self._proxy.loop.create_task(self._ask_anew())

    async def _ask_anew(self) -> None:
        try:
            upstream = await open_upstream(self._proxy.connect)
        except TimeoutError:
            self._fail(504, "It does not accept connections.")
        except Exception as error:  # whatever `connect` meets, its client must hear of it
            errno = error.errno if isinstance(error, OSError) else None
            reason = os.strerror(errno) if errno else type(error).__name__
            self._fail(502, f"It cannot be reached: {reason}.")
        else:
            self._ask(upstream)
            self._carry_on()
        finally:
            self._opening = None

    def _ask(self, upstream: Upstream) -> None:
        self._upstream = upstream
        first = self._first
        if not self.request.body.done or self.request.method not in _IDEMPOTENT:
            self._first = b""  # it will not be sent twice
        if not self._writable:
            upstream.read(False)
        upstream.ask(self, first)

    def _may_repeat(self, upstream: Upstream | None) -> bool:
        """Whether the request met a connection just closed, and another may carry it."""
        return bool(self._first) and upstream is not None and upstream.is_reused and not upstream.has_spoken

    def _carry_body(self) -> bool:
        """Pass more of the body on.

        Raises:
            Invalid: it is not as it should be.
        """
        body, upstream = self.request.body, self._upstream
        if body.done or (upstream is None and not self._whole):
            return False
        part = self._take_body(self.request)
        if upstream is not None and part:
            upstream.write(part)
        if body.done and self._whole:
            self._turn()
        return True

    def _take_body(self, request: Request) -> bytes:
        """What has come of the body.

        Raises:
            Invalid: it is not as it should be, or too large.
        """
        part, self._input = request.body.feed(self._input)
        # Each byte buys a little time: a body that comes drop by drop has an end.
        most = self._proxy.loop.time() + self._proxy.limits.body_seconds
        self._patience = min(self._patience + len(part) / _BODY_RATE, most)
        if request.body.size > self._proxy.limits.body:
            raise self._too_large()
        return part

    def _turn(self) -> None:
        """Request and response are whole."""
        upstream, self._upstream = self._upstream, None
        self._busy = False
        if upstream is not None and upstream.release():
            self._kept = upstream
        if self.request.close or self._proxy.closing:
            self._end()
        else:
            self._deadline = self._proxy.loop.time() + self._proxy.limits.idle_seconds

    def _tunnel(self, response: ResponseHead, first: bytes) -> None:
        """From here on, both sides speak what they have agreed on."""
        self._is_tunnel = True
        self.transport.write(response.head + b"\r\n" + first)
        early, self._input = self._input, b""
        if early and self._upstream is not None:
            self._upstream.write(early)
        self.flow()

    def _stay_half_closed(self, upstream: Upstream) -> bool:
        """Whether one side of a tunnel may still send."""
        if not (self._at_end and upstream.at_end):
            self._half_closed = self._proxy.loop.time()
            return True
        self._ended = True
        self._upstream = None
        upstream.close()
        return False

    # How it ends otherwise.

    def _stand_in(self, path: bytes, reason: str) -> None:
        """Answer in place of an application that is not ready: alive, since this process is."""
        if path == b"/" and self.request.method in (b"GET", b"HEAD"):
            self._respond(Response(200, b"true"))
        else:
            self._respond(not_ready(reason))

    def _too_large(self) -> Invalid:
        return Invalid(f"The request's body is larger than {self._proxy.limits.body} bytes.", 413)

    def _fail(self, status: int, reason: str) -> None:
        """The application is at fault."""
        log.warning("The application did not answer a request. %s", reason)
        text = f"The application did not answer. {reason}"
        self._respond(Response(status, error_body(text), headers=ERROR_OF_MODEL))

    def _refuse(self, error: Invalid) -> None:
        """The client is at fault: what follows cannot be told from what it should be."""
        self._let_go()
        if self._busy and self._begun:
            self._break_off()
        else:
            self._respond(caller_error(error.status, error.text), close=True)

    def _respond(self, response: Response, *, close: bool = False) -> None:
        """Answer in place of the application."""
        is_known = self._busy  # else the request's own head was at fault
        heard = is_known and self.request.body.done
        close = close or not heard or self.request.close or self._proxy.closing
        body = b"" if is_known and self.request.method == b"HEAD" else response.body
        lines = [status_line(response.status), b"content-type: %b\r\n" % response.content_type]
        lines.append(b"content-length: %d\r\n" % len(response.body))
        lines += [b"%b: %b\r\n" % header for header in response.headers]
        lines.append(b"connection: close\r\n\r\n" if close else b"\r\n")
        self.transport.write(b"".join(lines) + body)
        self._busy = False
        if not close:
            self._deadline = self._proxy.loop.time() + self._proxy.limits.idle_seconds
            self._carry_on()
        elif heard:
            self._end()
        else:
            self._linger()

    def _linger(self) -> None:
        """End our side; the client may read the answer before its own unread bytes reset the line."""
        self._ended = True
        self._input = b""
        self._deadline = self._proxy.loop.time() + _LINGER
        if not self._reading:
            self._reading = True
            self.transport.resume_reading()
        self._write_eof()

    def _write_eof(self) -> None:
        """Send no more; what the client says is still heard, unless it has just gone."""
        if not self.transport.is_closing():
            with contextlib.suppress(OSError):
                self.transport.write_eof()

    def _break_off(self) -> None:
        """End in a way by which the client sees that the response is not whole."""
        if self._is_tunnel or self._response_ends_with_connection:
            sock = self.transport.get_extra_info("socket")
            with contextlib.suppress(OSError):  # it has just gone by itself
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.cut()
        else:
            self._end()

    def _end(self) -> None:
        """Close when what was written has left."""
        self._ended = True
        self._let_go()
        self.transport.close()

    def _let_go(self) -> None:
        """Have nothing more to do with the application."""
        for upstream in (self._upstream, self._kept):
            if upstream is not None:
                upstream.abort()
        self._upstream = self._kept = None
        if self._opening is not None:
            self._opening.cancel()
