"""HTTP/1.1 on asyncio: accepts connections, keeps requests in order, enforces limits, writes responses.

Serves models and the secret manager, and knows of neither. Each connection has
one `HttpConnection`; its requests are handled one after the other. A request
handler gets each as an `Exchange` and responds at once or later, on the event
loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, Any

from gusset.runtime.connections import (
    LINGER_SECONDS,
    BodyMemory,
    Limits,
    OpenConnections,
    StallDetector,
    most_connections,
    send_eof,
)
from gusset.runtime.exchange import Exchange, Headers
from gusset.runtime.request_parser import RefusalRenderer, RequestParser, RequestRules
from gusset.runtime.responses import Response, caller_error, status_line

if TYPE_CHECKING:
    from gusset.runtime.tls import ServerTls

log = logging.getLogger("gusset.http")

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_JOINABLE = 64 * 1024  # bytes; a larger body is not copied to be sent in one write with its head
_PIPELINED = 16  # requests that may wait on one connection before reading pauses
_ACCEPT_PAUSE = 0.001  # seconds in which other processes may accept, after one connection on a shared socket
_NO_DESCRIPTOR_PAUSE = 1.0  # seconds until the next attempt to accept, when no file descriptor was free
_FIRST_REQUEST = 0.5  # seconds in which a new client may still send its first request to a draining server

RequestHandler = Callable[[Exchange], None]


class HttpServer:
    """The connections of one listening socket."""

    def __init__(
        self,
        handler: RequestHandler,
        *,
        limits: Limits | None = None,
        one_request_each: bool = False,
        gate: Callable[[Exchange], Response | None] | None = None,
        skips_body: Callable[[Exchange], bool] | None = None,
        body_limit: Callable[[Exchange], int] | None = None,
        render_refusal: RefusalRenderer = lambda exchange, status, text: caller_error(status, text),
        takes_over: Callable[[Exchange], bool] = lambda exchange: False,
        observe: Callable[[Exchange, int], object] = lambda exchange, status: None,
    ) -> None:
        """`one_request_each` closes every connection after its first response.

        `gate`, `skips_body`, `body_limit`, `render_refusal` and `takes_over` are explained at
        `RequestRules`; without `body_limit` it is that of `limits`.
        `observe` gets each handled request when it is over, with the status of
        its response, or 499 when the client disconnected before.
        """
        self.handler = handler
        self.limits = limits or Limits()
        self.rules = RequestRules(
            limits=self.limits,
            memory=BodyMemory(self.limits.memory),
            gate=gate,
            skips_body=skips_body,
            body_limit=body_limit,
            takes_over=takes_over,
            render_refusal=render_refusal,
        )
        self.observe = observe
        self.closing = one_request_each
        self.connections: OpenConnections[HttpConnection] = OpenConnections(
            most_connections(), on_sweep=self._on_sweep
        )
        self.date = b""
        self._close_listener: Callable[[], object] | None = None
        self._opening: set[asyncio.Task[Any]] = set()
        self._accepting = False
        self._tls: ServerTls | None = None

    async def start(
        self, listener: socket.socket, *, shared: bool = False, tls: ServerTls | None = None
    ) -> None:
        """Accept on `listener`, which the server owns from now on.

        When other processes accept on it, too (`shared`), one connection is
        accepted at a time, so that a burst spreads over the processes. With `tls`
        the connections are encrypted; its files are read again when they change.
        """
        loop = asyncio.get_running_loop()
        self._accepting = True
        self._tls = tls
        self.connections.start_sweeping()
        if shared:
            loop.add_reader(listener, self._accept, listener)
            self._close_listener = partial(self._stop_sharing, listener)
        else:
            server = await loop.create_server(
                lambda: HttpConnection(self),
                sock=listener,
                ssl=tls.context if tls else None,
                ssl_handshake_timeout=self.limits.head_seconds if tls else None,
                backlog=1024,
            )
            self._close_listener = server.close

    def stop_accepting(self) -> None:
        """Close the listening socket; open connections continue."""
        self.connections.close()
        self._accepting = False
        if self._close_listener is not None:
            self._close_listener()
            self._close_listener = None

    def _accept(self, listener: socket.socket) -> None:
        loop, pause = asyncio.get_running_loop(), _ACCEPT_PAUSE
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionError):  # another process has it, or the client has gone
            return
        except OSError as error:  # no descriptor is free: the client waits in the socket's queue until one is
            log.error("A connection cannot be accepted: %s", error.strerror)  # noqa: TRY400
            pause = _NO_DESCRIPTOR_PAUSE
        else:
            task = loop.create_task(self._open(sock))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        loop.remove_reader(listener)
        loop.call_later(pause, self._accept_again, listener)

    async def _open(self, sock: socket.socket) -> None:
        tls, loop = self._tls, asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # the TLS handshake failed or took too long
            await loop.connect_accepted_socket(
                lambda: HttpConnection(self),
                sock,
                ssl=tls.context if tls else None,
                ssl_handshake_timeout=self.limits.head_seconds if tls else None,
            )

    def _accept_again(self, listener: socket.socket) -> None:
        if self._accepting:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _stop_sharing(self, listener: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(listener)
        listener.close()

    async def drain(self, seconds: float | None = None) -> None:
        """Accept no more, let requests in flight finish, and return when all connections have ended.

        What takes longer than `seconds` is aborted; None sets no limit.
        """
        self.stop_accepting()
        self.closing = True
        await self.connections.drain(seconds)

    def release_in_child(self) -> None:
        """In a forked child process: keep no connection open that the parent closes."""
        null = os.open(os.devnull, os.O_RDWR)
        for connection in self.connections:
            sock = connection.transport.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                os.dup2(null, sock.fileno(), inheritable=False)
        os.close(null)

    def _on_sweep(self) -> None:
        if self._tls is not None:
            self._tls.refresh()
        self.date = b"date: " + formatdate(usegmt=True).encode() + b"\r\n"


class HttpConnection(asyncio.Protocol):
    """One client: passes its requests to the handler in order, and writes the responses.

    Of its public methods six are asyncio's callbacks, seven are those of `Exchange`.
    """

    transport: asyncio.Transport

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser = RequestParser(server.rules, self)
        self._waiting = self._parser.requests
        self._current: Exchange | None = None
        self._advancing = False
        self._ended = False  # whatever arrives is ignored
        self._reading = True
        self._writable = True
        self._stall = StallDetector(server.limits.stall_seconds)
        self._silence: float | None = None  # how long the current response may be silent
        self._started = False  # the current response is sent in parts, and its head has been
        self._status = 0  # of the response that was started
        self._deadline = 0.0
        self.peer: tuple[str, int] | None = None

    # Called by asyncio.

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if not self._server.connections.add(self):
            self._ended = True
            transport.abort()
            return
        peer = transport.get_extra_info("peername")
        self.peer = peer[:2] if isinstance(peer, tuple) else None
        self._deadline = self._loop.time() + self._server.limits.head_seconds

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        self._ended = True
        left = [*self._waiting] if self._current is None else [self._current, *self._waiting]
        self._drop_waiting()
        for each in (self._current, self._parser.unfinished):
            self._parser.release(each)
        for exchange in left:
            exchange.gone = True
            self._server.observe(exchange, 499)
            if exchange.on_gone is not None:
                exchange.on_gone()

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        if self._ended or parser.refusal is not None or parser.is_closed:
            return
        if not parser.in_message:
            self._deadline = self._loop.time() + self._server.limits.head_seconds
        parser.feed(data)
        if parser.in_message and (deadline := parser.body_deadline()) is not None:
            self._deadline = deadline
        if len(self._waiting) > _PIPELINED and self._reading:
            self._reading = False
            self.transport.pause_reading()
        self._advance()

    def eof_received(self) -> bool:
        return False  # a client that half-closes counts as disconnected

    def pause_writing(self) -> None:
        self._writable = False
        if self._current is not None:
            self._current.writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if (exchange := self._current) is not None:
            exchange.writable = True
            if self._silence is not None:  # it was the client that was slow
                self._deadline = self._loop.time() + self._silence
            if exchange.on_writable is not None:
                exchange.on_writable()
        self._advance()

    # Called by the parser.

    def send_continue(self) -> None:
        """Have the client send the body, if its request is next."""
        if self._current is None and not self._waiting:
            self.transport.write(_CONTINUE)

    # Called by exchanges.

    def respond(
        self, exchange: Exchange, status: int, body: bytes, content_type: bytes, headers: Headers
    ) -> None:
        """Send the whole response and turn to the next request."""
        self._check_turn(exchange)
        keep = exchange.keep_alive and not self._server.closing
        if exchange.response_headers:
            headers = (*headers, *exchange.response_headers)
        head = _head(status, len(body), content_type, headers=headers, date=self._server.date, keep=keep)
        if exchange.method == b"HEAD":
            self.transport.write(head)
        elif len(body) < _JOINABLE:
            self.transport.write(head + body)
        else:
            self.transport.writelines((head, body))
        exchange.keep_alive = keep
        self._responded(exchange, status)

    def start(self, exchange: Exchange, status: int, headers: Headers, first: bytes) -> None:
        """Send the head of a response in parts, and its first part."""
        self._check_turn(exchange)
        head = b"%b%b" % (status_line(status), self._server.date)
        has_length = False
        for name, value in (*headers, *exchange.response_headers):
            head += b"%b: %b\r\n" % (name, value)
            has_length = has_length or name.lower() == b"content-length"
        bodiless = exchange.method == b"HEAD" or status in (204, 304)
        if not has_length and not bodiless:
            if exchange.is_old:
                exchange.keep_alive = False
            else:
                head += b"transfer-encoding: chunked\r\n"
        exchange.keep_alive = exchange.keep_alive and not self._server.closing
        head += b"\r\n" if exchange.keep_alive else b"connection: close\r\n\r\n"
        self._started = True
        self._status = status
        self.write(head + first)

    def write(self, data: bytes) -> None:
        """Send a part."""
        if self._silence is not None:
            self._deadline = self._loop.time() + self._silence
        self.transport.write(data)

    def end(self, exchange: Exchange, last: bytes) -> None:
        """Send the last part and turn to the next request."""
        if last:
            self.transport.write(last)
        self._responded(exchange, self._status)

    def cut(self) -> None:
        """Close once what was written has been sent."""
        self._ended = True
        self._drop_waiting()
        self._deadline = 0.0
        self.transport.close()

    def limit_silence(self, seconds: float) -> None:
        """Abort the current response when nothing is written for so long."""
        self._silence = seconds
        self._deadline = self._loop.time() + seconds

    def hand_over(self, exchange: Exchange, protocol: asyncio.Protocol) -> None:
        """From now on `protocol` has the connection; it gets the request's head first."""
        self._current = None
        self._parser.release(exchange)
        self._drop_waiting()
        self._ended = True
        self._server.connections.discard(self)
        target = exchange.path + (b"?" + exchange.query if exchange.query else b"")
        head = [b"%b %b HTTP/1.1\r\n" % (exchange.method, target)]
        head += [b"%b: %b\r\n" % header for header in exchange.headers]
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.data_received(b"".join((*head, b"\r\n", self._parser.rest)))

    # Called by the server's `OpenConnections`.

    def finish(self) -> None:
        if self._current is None and not self._waiting and not self._parser.in_message:
            if not self._parser.has_begun:
                self._deadline = min(self._deadline, self._loop.time() + _FIRST_REQUEST)
                return
            self._ended = True
            self.transport.close()

    def abort(self) -> None:
        self._ended = True
        self.transport.abort()

    def expire(self, now: float) -> None:
        is_stalled = self._stall.check(self.transport, now)
        if is_stalled:
            self.abort()
        if self._stall.unsent or now < self._deadline:
            return
        if self._ended:
            self.abort()
        elif self._current is not None or self._waiting:
            if self._silence is not None:
                log.warning("A stream was silent for more than %g s and is aborted.", self._silence)
                self.abort()
            # Otherwise it is the handler that is slow, not the client.
        elif self._parser.in_message:
            self._parser.time_out()
            self._advance()
        else:
            self._ended = True
            self.transport.close()

    @property
    def eviction_rank(self) -> int | None:
        if self._current is not None or self._waiting:
            return None
        if self._parser.in_message and not self._ended:
            return 1 if self._parser.unfinished is None else 2
        return 2 if self.transport.get_write_buffer_size() else 0

    def _drop_waiting(self) -> None:
        """Forget the requests that wait for their turn."""
        for exchange in self._waiting:
            self._parser.release(exchange)
        self._waiting.clear()

    def _check_turn(self, exchange: Exchange) -> None:
        if exchange is not self._current or self._started:
            raise RuntimeError("a response to this request was sent or started already")

    def _responded(self, exchange: Exchange, status: int) -> None:
        self._server.observe(exchange, status)
        if exchange.counted_bytes:
            self._parser.release(exchange)
        self._current = None
        self._started = False
        self._silence = None
        if exchange.keep_alive:
            self._deadline = self._loop.time() + self._server.limits.idle_seconds
            self._advance()
        else:
            self._drop_waiting()
            self._close_gently()

    def _advance(self) -> None:
        """Pass waiting requests to the handler, one at a time."""
        if self._advancing:
            return  # the handler responded at once: the loop below continues
        self._advancing = True
        try:
            while self._current is None and self._waiting and self._writable and not self._ended:
                exchange = self._current = self._waiting.popleft()
                self._server.handler(exchange)
        finally:
            self._advancing = False
        refusal = self._parser.refusal
        if refusal is not None and self._current is None and not self._waiting and not self._ended:
            self._send_refusal(refusal)
        if not self._reading and len(self._waiting) <= _PIPELINED and not self._ended:
            self._reading = True
            self.transport.resume_reading()

    def _send_refusal(self, refusal: Response) -> None:
        status, body, kind = refusal.status, refusal.body, refusal.content_type
        head = _head(status, len(body), kind, headers=refusal.headers, date=self._server.date, keep=False)
        self.transport.write(head + body)
        self._close_gently()

    def _close_gently(self) -> None:
        """Close; a client that is still sending gets time to read the response."""
        self._ended = True
        self._deadline = self._loop.time() + LINGER_SECONDS
        if self._parser.in_message:
            send_eof(self.transport)
        else:
            self.transport.close()


def _head(
    status: int, length: int, content_type: bytes, *, headers: Headers, date: bytes, keep: bool
) -> bytes:
    """The head of a whole response. `date` is the line of the Date header."""
    head = b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b" % (
        status_line(status),
        content_type,
        length,
        date,
    )
    for name, value in headers:
        head += b"%b: %b\r\n" % (name, value)
    return head + (b"\r\n" if keep else b"connection: close\r\n\r\n")
