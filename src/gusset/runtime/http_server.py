"""HTTP/1.1 on asyncio: parses requests, keeps order and limits, writes responses.

Knows nothing of models. One `Connection` per client; requests of a connection
are answered one after the other, in order. A `handler` gets each request as an
`Exchange` and answers it, at once or later, on the loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from typing import Any

import httptools
import orjson

log = logging.getLogger("gusset.serving")

JSON = b"application/json"
_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_JOINABLE = 64 * 1024  # bytes; a larger body is not copied to stand beside its head
_PIPELINED = 16  # requests that may wait on one connection before it is read no further
_STAND_BACK = 0.001  # seconds in which others may accept, after one connection on a shared socket
_NO_ROOM = 1.0  # seconds until the next try, when no descriptor was free for a connection
_FIRST_REQUEST = 0.5  # seconds in which a client that has just come may still ask a server that drains
_LINGER = 2.0  # seconds in which a refused client may still finish sending

Handler = Callable[["Exchange"], None]
Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may use: bytes and seconds."""

    head: int = 64 * 1024
    body: int = 100 * 1024 * 1024
    head_seconds: float = 30.0
    body_seconds: float = 60.0  # and on top of it a second per `body_rate` bytes
    body_rate: int = 8 * 1024
    idle_seconds: float = 75.0
    stall_seconds: float = 60.0  # in which a client must take something of what waits for it


class Exchange:
    """One request, and the one way to answer it: whole, by `respond`, or in parts, from `start` to `end`.

    `gone` turns true when the client leaves before the answer is complete;
    `on_gone` is then called, if set. `writable` is false while the client has
    more waiting for it than it takes; `on_writable` is called when that has
    changed. Everything here belongs to the loop's thread, but other threads
    may read `gone` and `writable`.
    """

    __slots__ = (
        "_connection",
        "_fields",
        "began",
        "body",
        "counted_as",
        "gone",
        "headers",
        "is_old",
        "keep_alive",
        "method",
        "on_gone",
        "on_writable",
        "path",
        "query",
        "upgrade",
        "writable",
    )

    def __init__(
        self,
        connection: Connection,
        method: bytes,
        path: bytes,
        query: bytes,
        headers: list[tuple[bytes, bytes]],
        fields: dict[bytes, bytes],
        keep_alive: bool,
    ) -> None:
        self._connection = connection
        self._fields = fields
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.keep_alive = keep_alive
        self.is_old = False  # HTTP/1.0, which has no chunks
        self.upgrade = False  # another protocol is asked for
        self.body = b""
        self.counted_as: str | None = None  # its route, for those who observe
        self.began = 0.0  # when the request was complete, on the clock of time.perf_counter()
        self.gone = False
        self.writable = True
        self.on_gone: Callable[[], object] | None = None
        self.on_writable: Callable[[], object] | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first header of that name, given in lower case."""
        return self._fields.get(name)

    def respond(self, status: int, body: bytes, content_type: bytes = JSON, headers: Headers = ()) -> None:
        """Answer, once. Nothing happens when the client has gone."""
        if not self.gone:
            self._connection.respond(self, status, body, content_type, headers)

    def limit_silence(self, seconds: float) -> None:
        """Cut the answer when from now on there is nothing to write for so long."""
        if not self.gone:
            self._connection.limit_silence(seconds)

    def start(self, status: int, headers: Headers, first: bytes = b"") -> None:
        """Begin an answer in parts; `headers` has its content type, and its length when that is known.

        `first` leaves together with the head.
        """
        if not self.gone:
            self._connection.start(self, status, headers, first)

    def write(self, data: bytes) -> None:
        """Send the next part: made by `chunk`, unless the length is known or `is_old`."""
        if not self.gone:
            self._connection.write(data)

    def end(self, last: bytes = b"") -> None:
        """Complete an answer in parts, with `last`."""
        if not self.gone:
            self._connection.end(self, last)

    def cut(self) -> None:
        """Break off an answer in parts, so that the client sees that it is not whole."""
        if not self.gone:
            self._connection.cut()

    def hand_over(self, protocol: asyncio.Protocol) -> None:
        """Give the connection to a protocol that speaks what was asked for; it gets the request's bytes."""
        if not self.gone:
            self._connection.hand_over(self, protocol)

    @property
    def transport(self) -> asyncio.Transport:
        """The connection's transport, to ask it about the client."""
        transport: asyncio.Transport = self._connection.transport
        return transport


def chunk(data: bytes) -> bytes:
    """One chunk of a body without a known length."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


class HttpServer:
    """The connections of one listening socket, and the clock that their limits go by."""

    def __init__(
        self,
        handler: Handler,
        *,
        limits: Limits | None = None,
        one_request_each: bool = False,
        takes_over: Callable[[Exchange], bool] = lambda exchange: False,
        observe: Callable[[Exchange, int], object] = lambda exchange, status: None,
    ) -> None:
        """`one_request_each` closes every connection after its first response.

        `takes_over` tells for which requests the handler will call `hand_over`;
        `observe` gets each request that is over, with its status, 499 for one
        whose client has left.
        """
        self.handler = handler
        self.observe = observe
        self.takes_over = takes_over
        self.limits = limits or Limits()
        self.closing = one_request_each
        self.connections: set[Connection] = set()
        self.most = most_connections()
        self.date = b""
        self._close_listener: Callable[[], object] | None = None
        self._opening: set[asyncio.Task[Any]] = set()
        self._accepting = False
        self._empty = asyncio.Event()

    async def start(self, listener: socket.socket, *, shared: bool = False) -> None:
        """Accept on `listener`, which the server owns from now on.

        When other processes accept on it, too (`shared`), one connection is
        taken at a time, so that a burst of them spreads.
        """
        loop = asyncio.get_running_loop()
        self._accepting = True
        self._sweep()
        if shared:
            loop.add_reader(listener, self._accept, listener)
            self._close_listener = partial(self._let_others_accept, listener)
        else:
            self._close_listener = (await loop.create_server(lambda: Connection(self), sock=listener)).close

    def stop_accepting(self) -> None:
        """Close the listening socket; connections go on."""
        self._accepting = False
        if self._close_listener is not None:
            self._close_listener()
            self._close_listener = None

    def _accept(self, listener: socket.socket) -> None:
        loop, pause = asyncio.get_running_loop(), _STAND_BACK
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionError):  # another one has it, or it has gone
            return
        except OSError as error:  # no descriptor is free: whoever waits is taken up when one is
            log.error("A connection cannot be accepted: %s", error.strerror)  # noqa: TRY400
            pause = _NO_ROOM
        else:
            task = loop.create_task(loop.connect_accepted_socket(lambda: Connection(self), sock))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        loop.remove_reader(listener)
        loop.call_later(pause, self._accept_again, listener)

    def _accept_again(self, listener: socket.socket) -> None:
        if self._accepting:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _let_others_accept(self, listener: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(listener)
        listener.close()

    async def drain(self) -> None:
        """Accept no more, let requests under way be answered, and return when all have gone."""
        self.stop_accepting()
        self.closing = True
        for connection in tuple(self.connections):
            connection.finish()
        while self.connections:
            self._empty.clear()
            await self._empty.wait()

    def let_go(self) -> None:
        """In a process forked from ours: hold no connection open that we close."""
        null = os.open(os.devnull, os.O_RDWR)
        for connection in self.connections:
            if (sock := connection.transport.get_extra_info("socket")) is not None and sock.fileno() >= 0:
                os.dup2(null, sock.fileno(), inheritable=False)
        os.close(null)

    def forget(self, connection: Connection) -> None:
        """A connection calls this when it has ended."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    def _sweep(self) -> None:
        """Twice a second: renew the date, and end what has taken too long."""
        loop = asyncio.get_running_loop()
        self.date = b"date: " + formatdate(usegmt=True).encode() + b"\r\n"
        now = loop.time()
        for connection in tuple(self.connections):
            connection.expire(now)
        if self._accepting or self.connections:
            loop.call_later(0.5, self._sweep)


class Connection(asyncio.Protocol):
    """One client. Parses ahead a little, hands over one request at a time."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Exchange] = deque()
        self._current: Exchange | None = None
        self._refusal: tuple[int, str] | None = None
        self._advancing = False
        self._ended = False  # nothing that arrives is looked at any more
        self._reading = True
        self._writable = True
        self._untaken = 0  # bytes that waited for the client when last looked at,
        self._stalled = 0.0  # and when it must have taken some of them
        self._silence: float | None = None  # how long the answer under way may be silent
        self._parted = False  # the answer under way has begun
        self._status = 0  # of the answer under way
        self._deadline = 0.0
        self._in_message = False
        self._is_new = True  # nothing has been asked yet
        self._head_arrived = 0
        self._just_read = 0
        self._beyond = b""  # what came after a request for another protocol
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._fields: dict[bytes, bytes] = {}
        self._incoming: Exchange | None = None
        self._parts: list[bytes] = []
        self._body_size = 0
        self._body_began = 0.0

    # What asyncio calls.

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if len(self._server.connections) >= self._server.most:
            self._ended = True
            self.transport.abort()
            return
        self._server.connections.add(self)
        self._deadline = self._loop.time() + self._server.limits.head_seconds

    def connection_lost(self, error: Exception | None) -> None:
        self._server.forget(self)
        self._ended = True
        left = [*self._waiting] if self._current is None else [self._current, *self._waiting]
        self._waiting.clear()
        for exchange in left:
            exchange.gone = True
            self._server.observe(exchange, 499)
            if exchange.on_gone is not None:
                exchange.on_gone()

    def data_received(self, data: bytes) -> None:
        if self._ended or self._refusal is not None:
            return
        if not self._in_message:
            self._deadline = self._loop.time() + self._server.limits.head_seconds
        self._just_read = len(data)
        if self._incoming is None:
            self._head_arrived += self._just_read
        self._feed(data)
        if self._in_message:
            self._look_at_unfinished()
        if len(self._waiting) > _PIPELINED and self._reading:
            self._reading = False
            self.transport.pause_reading()
        self._advance()

    def eof_received(self) -> bool:
        return False  # a client that half-closes counts as gone

    def pause_writing(self) -> None:
        self._writable = False
        if self._current is not None:
            self._current.writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if (exchange := self._current) is not None:
            exchange.writable = True
            if self._silence is not None:  # it was the client who kept us waiting
                self._deadline = self._loop.time() + self._silence
            if exchange.on_writable is not None:
                exchange.on_writable()
        self._advance()

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._begin()
        self._in_message = True
        self._is_new = False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        self._fields.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        parser = self._parser
        limit = self._server.limits.head
        if self._head_arrived > limit or self._just_read > limit:  # else the head cannot be as large
            size = len(self._url) + sum(len(name) + len(value) for name, value in self._headers)
            if size > limit:
                self._refuse_head()
        path, _, query = self._url.partition(b"?")
        keep = parser.should_keep_alive()
        exchange = Exchange(self, parser.get_method(), path, query, self._headers, self._fields, keep)
        # HTTP/1.0 keeps a connection only when it says so.
        if not keep or b"connection" in self._fields:
            exchange.is_old = parser.get_http_version() == "1.0"
        exchange.upgrade = parser.should_upgrade()
        self._incoming = exchange
        self._body_began = self._loop.time()
        length = exchange.header(b"content-length")
        if exchange.upgrade and (length or exchange.header(b"transfer-encoding")):
            # The parser would leave the body unread, and take it for the next request.
            self._refuse(400, "A request with a body cannot ask for another protocol.")
            return
        if length is not None and int(length) > self._server.limits.body:
            self._refuse_body()
        elif expected := exchange.header(b"expect"):  # an empty one expects nothing
            self._expect(expected, exchange)

    def on_body(self, data: bytes) -> None:
        self._body_size += len(data)
        if self._body_size > self._server.limits.body:
            self._refuse_body()
        elif self._refusal is None:
            self._parts.append(data)

    def on_message_complete(self) -> None:
        exchange = self._incoming
        self._in_message = False
        self._incoming = None
        self._head_arrived = 0
        if exchange is None or self._refusal is not None:
            return
        parts, self._parts = self._parts, []
        exchange.body = parts[0] if len(parts) == 1 else b"".join(parts)
        exchange.began = time.perf_counter()
        self._waiting.append(exchange)

    # What exchanges and the server call.

    def respond(
        self, exchange: Exchange, status: int, body: bytes, content_type: bytes, headers: Headers
    ) -> None:
        """Write the response to the current request and turn to the next one."""
        if exchange is not self._current or self._parted:
            raise RuntimeError("this request has been answered already")
        keep = exchange.keep_alive and not self._server.closing
        head = self._head(status, len(body), content_type, headers, keep)
        if exchange.method == b"HEAD":
            self.transport.write(head)
        elif len(body) < _JOINABLE:
            self.transport.write(head + body)
        else:
            self.transport.writelines((head, body))
        exchange.keep_alive = keep
        self._answered(exchange, status)

    def limit_silence(self, seconds: float) -> None:
        """Cut the answer under way when nothing is written for so long."""
        self._silence = seconds
        self._deadline = self._loop.time() + seconds

    def start(self, exchange: Exchange, status: int, headers: Headers, first: bytes) -> None:
        """Write the head of an answer in parts, and its first part."""
        if exchange is not self._current or self._parted:
            raise RuntimeError("this request has been answered already")
        head = b"%b%b" % (status_line(status), self._server.date)
        has_length = False
        for name, value in headers:
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
        self._parted = True
        self._status = status
        self.write(head + first)

    def write(self, data: bytes) -> None:
        """Write a part."""
        if self._silence is not None:
            self._deadline = self._loop.time() + self._silence
        self.transport.write(data)

    def end(self, exchange: Exchange, last: bytes) -> None:
        """Write the last part and turn to the next request."""
        if last:
            self.transport.write(last)
        self._answered(exchange, self._status)

    def cut(self) -> None:
        """Break the connection off, with what has been written on its way."""
        self._ended = True
        self._waiting.clear()
        self._deadline = 0.0
        self.transport.close()

    def hand_over(self, exchange: Exchange, protocol: asyncio.Protocol) -> None:
        """The client speaks with `protocol` from now on, which gets the request's head first."""
        self._current = None
        self._waiting.clear()
        self._ended = True
        self._server.forget(self)
        target = exchange.path + (b"?" + exchange.query if exchange.query else b"")
        head = [b"%b %b HTTP/1.1\r\n" % (exchange.method, target)]
        head += [b"%b: %b\r\n" % header for header in exchange.headers]
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.data_received(b"".join((*head, b"\r\n", self._beyond)))

    def _answered(self, exchange: Exchange, status: int) -> None:
        self._server.observe(exchange, status)
        self._current = None
        self._parted = False
        self._silence = None
        if exchange.keep_alive:
            self._deadline = self._loop.time() + self._server.limits.idle_seconds
            self._advance()
        else:
            self._waiting.clear()
            self._close_gently()

    def finish(self) -> None:
        """Close now when nothing is under way, else after the response; let one that is new ask first."""
        if self._current is None and not self._waiting and not self._in_message:
            if self._is_new:
                self._deadline = min(self._deadline, self._loop.time() + _FIRST_REQUEST)
                return
            self._ended = True
            self.transport.close()

    def expire(self, now: float) -> None:
        """End the connection when its client has kept it waiting for too long."""
        if (untaken := self.transport.get_write_buffer_size()) != self._untaken:
            self._untaken = untaken
            self._stalled = now + self._server.limits.stall_seconds
        if untaken:
            if now >= self._stalled:
                self.transport.abort()
            return
        if now < self._deadline:
            return
        if self._ended:
            self.transport.abort()
        elif self._current is not None or self._waiting:
            if self._silence is not None:
                log.warning("A stream was silent for more than %g s; it is cut.", self._silence)
                self.transport.abort()
            return  # else it is we who are slow
        elif self._in_message:
            self._refuse(408, "The request took too long to arrive.")
            self._advance()
        else:
            self._ended = True
            self.transport.close()

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Unless the handler hands the connection over, nobody here speaks the other protocol: go on
            # in HTTP, as whoever offers it must allow for.
            self._parser = httptools.HttpRequestParser(self)
            rest = data[upgrade.args[0] :]
            if self._waiting and self._server.takes_over(self._waiting[-1]):
                self._beyond = rest
            elif rest and self._refusal is None:
                self._feed(rest)
        except httptools.HttpParserError:
            self._refuse(400, "Invalid HTTP request received.")

    def _look_at_unfinished(self) -> None:
        limits = self._server.limits
        if self._incoming is not None:
            self._deadline = self._body_began + limits.body_seconds + self._body_size / limits.body_rate
        elif self._head_arrived > limits.head:
            self._refuse_head()

    def _expect(self, expected: bytes, exchange: Exchange) -> None:
        if expected.lower() != b"100-continue":
            self._refuse(417, "Only 100-continue can be expected.")
        elif self._current is None and not self._waiting and not exchange.is_old:
            self.transport.write(_CONTINUE)

    def _refuse_head(self) -> None:
        self._refuse(431, f"The request's head is larger than {self._server.limits.head} bytes.")

    def _refuse_body(self) -> None:
        self._refuse(413, f"The request's body is larger than {self._server.limits.body} bytes.")

    def _refuse(self, status: int, text: str) -> None:
        """Answer so after the requests that came before, then close."""
        if self._refusal is None:
            self._refusal = (status, text)

    def _advance(self) -> None:
        """Hand over what waits, one request at a time."""
        if self._advancing:
            return  # a handler that answers at once: the loop below goes on by itself
        self._advancing = True
        try:
            while self._current is None and self._waiting and self._writable and not self._ended:
                exchange = self._current = self._waiting.popleft()
                self._server.handler(exchange)
        finally:
            self._advancing = False
        if self._current is None and not self._waiting and self._refusal is not None and not self._ended:
            self._send_refusal(*self._refusal)
        if not self._reading and len(self._waiting) <= _PIPELINED and not self._ended:
            self._reading = True
            self.transport.resume_reading()

    def _send_refusal(self, status: int, text: str) -> None:
        body = error_body(text)
        self.transport.write(self._head(status, len(body), JSON, ERROR_OF_CALLER, False) + body)
        self._close_gently()

    def _close_gently(self) -> None:
        """End our side; the client may read the response before its own unread bytes reset the line."""
        self._ended = True
        self._deadline = self._loop.time() + _LINGER
        if self._in_message and self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _head(self, status: int, length: int, content_type: bytes, headers: Headers, keep: bool) -> bytes:
        head = b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b" % (
            status_line(status),
            content_type,
            length,
            self._server.date,
        )
        for name, value in headers:
            head += b"%b: %b\r\n" % (name, value)
        return head + (b"\r\n" if keep else b"connection: close\r\n\r\n")


def most_connections() -> int:
    """How many clients may be connected at a time, so that the process itself can still open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1_000_000 if soft == resource.RLIM_INFINITY else max(soft - 200, 50)


def status_line(status: int) -> bytes:
    """Of a response; also for a status that has no name."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def error_body(text: str) -> bytes:
    """The body of every error response."""
    return orjson.dumps({"error": text})


def error_headers(code: int) -> Headers:
    """The headers that tell clients whose fault it was: 500 the server's, 600 the model's, 700 their own."""
    return ((b"x-baseten-error-source", b"04"), (b"x-baseten-error-code", b"%d" % code))


ERROR_OF_CALLER = error_headers(700)
