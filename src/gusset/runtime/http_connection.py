"""One client of an HTTP server: its requests in order, their responses, its deadlines and its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from gusset.runtime.connections import Admission, OpenConnections
from gusset.runtime.exchange import AcceptedHeader, Exchange, Headers, MakeSuccessor
from gusset.runtime.limits import Limits
from gusset.runtime.request_parser import RequestParser, RequestRules
from gusset.runtime.responses import TOO_MANY_WEBSOCKETS, Response, status_line
from gusset.runtime.transports import LINGER_SECONDS, StallDetector, descriptor_of, peer_of, send_eof

log = logging.getLogger("gusset.http")

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_JOINABLE: Final = 64 * 1024  # bytes; a larger body is not copied to be sent in one write with its head
_PIPELINED: Final = 16  # requests that may wait on one connection before reading pauses
_FIRST_REQUEST = 0.5  # seconds in which a new client may still send its first request to a draining server


@dataclass(kw_only=True, slots=True)
class ServerState:
    """What the connections of one server share."""

    handler: Callable[[Exchange], None]
    limits: Limits
    rules: RequestRules
    rules_for_probes: RequestRules  # of connections that may send nothing else
    observe: Callable[[Exchange, int], object]  # see `HttpServer`
    connections: OpenConnections
    closing: bool  # each connection closes after its response
    date: bytes  # the line of the Date header


class HttpConnection(asyncio.Protocol):
    """One client: passes its requests to the handler in order, and writes the responses.

    Of its public methods six are asyncio's callbacks, two are for the parser, seven are those of
    `Exchange`, and five are for `OpenConnections`. It stays one class: reading, responding and
    deadlines share one state, and a second object would cost each request time.
    """

    transport: asyncio.Transport

    def __init__(self, server: ServerState) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser = RequestParser(server.rules, self, self._loop)
        self._memory = self._parser.memory
        self._waiting = self._parser.requests
        self._current: Exchange | None = None
        self._advancing = False
        self._ended = False  # whatever arrives is ignored
        self._reading = True
        self._held: asyncio.Future[bool] | None = (
            None  # whether the unfinished body is skipped, once it is done
        )
        self._continues = False  # the client waits for `100 Continue` before it sends the body that is held
        self._writable = True
        self._stall = StallDetector(server.limits.stall_seconds)
        self._silence: float | None = None  # how long the current response may be silent
        self._started = False  # the current response is sent in parts, and its head has been
        self._status = 0  # of the response that was started
        self._deadline = 0.0
        self.peer: tuple[str, int] | None = None
        self.accepted: AcceptedHeader | None = None

    # Called by asyncio.

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.peer = peer_of(transport)
        self._deadline = self._loop.time() + self._server.limits.head_seconds
        admission = self._server.connections.add(self)
        if admission is Admission.PROBES:
            self._parser.rules = self._server.rules_for_probes
        elif admission is Admission.NOTHING:
            self._ended = True
            transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        self._ended = True
        self._memory.release_unfinished()
        if self._current is None and not self._waiting:
            return
        left = [*self._waiting] if self._current is None else [self._current, *self._waiting]
        self._waiting.clear()
        for exchange in left:
            self._memory.release(exchange)
            exchange.disconnected = True
            self._server.observe(exchange, 499)
            if exchange.on_disconnect is not None:
                exchange.on_disconnect()

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        if self._ended or parser.refusal is not None or parser.is_closed:
            return
        begins = not parser.in_message
        parser.feed(data)
        if parser.in_message:
            if (deadline := parser.body_deadline()) is not None:
                self._deadline = deadline
            elif begins:
                self._deadline = self._loop.time() + self._server.limits.head_seconds
        if len(self._waiting) > _PIPELINED:
            self._pause_reading()
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
        if self._held is not None:
            self._continues = True
        elif self._current is None and not self._waiting:
            self.transport.write(_CONTINUE)

    def hold_body(self, exchange: Exchange, is_skipped: Awaitable[bool]) -> None:
        """Stop reading until it is known whether the body is skipped; then call `skip_body`, or read on."""
        self._held = asyncio.ensure_future(is_skipped)
        self._held.add_done_callback(partial(self._end_hold, exchange))
        self._pause_reading()

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
        """Send the head of a response that comes in parts, and the first part."""
        self._check_turn(exchange)
        head = b"%b%b" % (status_line(status), self._server.date)
        has_length = False
        for name, value in (*headers, *exchange.response_headers):
            head += b"%b: %b\r\n" % (name, value)
            has_length = has_length or name.lower() == b"content-length"
        bodiless = exchange.method == b"HEAD" or status in (204, 304)
        if not has_length and not bodiless:
            if exchange.is_http_1_0:
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

    def hand_over(self, exchange: Exchange, make_successor: MakeSuccessor) -> None:
        """From now on another protocol has the connection; it gets the request's head first."""
        connections = self._server.connections
        upgraded = UpgradedConnection(self.transport, self.peer)
        if not connections.upgrade(self, upgraded):
            exchange.keep_alive = False
            busy = self._server.rules.render_busy(exchange, TOO_MANY_WEBSOCKETS)
            exchange.respond(busy.status, busy.body, busy.content_type, busy.headers)
            return
        self._current = None
        self._memory.release(exchange)
        self._drop_waiting()
        self._ended = True
        target = exchange.path + (b"?" + exchange.query if exchange.query else b"")
        head = [b"%b %b HTTP/1.1\r\n" % (exchange.method, target)]
        head += [b"%b: %b\r\n" % header for header in exchange.headers]
        protocol = make_successor(partial(connections.discard, upgraded))
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.data_received(b"".join((*head, b"\r\n", self._parser.rest)))

    # Called by the server's `OpenConnections`.

    def fileno(self) -> int:
        return descriptor_of(self.transport)

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

    def _pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self.transport.pause_reading()

    def _end_hold(self, exchange: Exchange, is_skipped: asyncio.Future[bool]) -> None:
        continues, self._continues = self._continues, False
        self._held = None
        if self._parser.unfinished is exchange and self._parser.refusal is None and not self._ended:
            if is_skipped.result():
                self._parser.skip_body(exchange)
            elif continues:
                self.send_continue()
        self._advance()

    def _drop_waiting(self) -> None:
        """Forget the requests that wait for their turn."""
        for exchange in self._waiting:
            self._memory.release(exchange)
        self._waiting.clear()

    def _check_turn(self, exchange: Exchange) -> None:
        if exchange is not self._current or self._started:
            raise RuntimeError("a response to this request was sent or started already")

    def _responded(self, exchange: Exchange, status: int) -> None:
        self._server.observe(exchange, status)
        if exchange.counted_bytes:
            self._memory.release(exchange)
        # What they refer to usually refers to the exchange: only a garbage collection would end the cycle.
        exchange.on_disconnect = exchange.on_writable = None
        self._current = None
        self._started = False
        self._silence = None
        if exchange.keep_alive:
            self._deadline = self._loop.time() + self._server.limits.idle_seconds
            if self._waiting or not self._reading or self._parser.refusal is not None:
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
        if self._reading or self._held is not None or self._ended:
            return
        if len(self._waiting) <= _PIPELINED:
            self._reading = True
            self.transport.resume_reading()

    def _send_refusal(self, refusal: Response) -> None:
        status, body, kind = refusal.status, refusal.body, refusal.content_type
        head = _head(status, len(body), kind, headers=refusal.headers, date=self._server.date, keep=False)
        self.transport.write(head if self._parser.is_head_refused else head + body)
        self._close_gently()

    def _close_gently(self) -> None:
        """Close; a client that is still sending gets time to read the response."""
        self._ended = True
        self._deadline = self._loop.time() + LINGER_SECONDS
        if self._parser.in_message:
            send_eof(self.transport)
        else:
            self.transport.close()


class UpgradedConnection:
    """A connection that was handed over to another protocol. It counts until that protocol has lost it."""

    eviction_rank = None

    def __init__(self, transport: asyncio.Transport, peer: tuple[str, int] | None) -> None:
        self.peer = peer
        self._transport = transport
        self._deadline = float("inf")

    def fileno(self) -> int:
        return descriptor_of(self._transport)

    def finish(self) -> None:
        """Give the protocol, whose owner closes it, a while to send what it has written."""
        self._deadline = asyncio.get_running_loop().time() + LINGER_SECONDS

    def expire(self, now: float) -> None:
        if now >= self._deadline:
            self.abort()

    def abort(self) -> None:
        self._transport.abort()


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
