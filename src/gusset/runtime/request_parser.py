"""Assembles requests from a client's bytes, and refuses what is too large or not HTTP."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import httptools

from gusset.runtime.connections import BodyMemory, Limits, address_of
from gusset.runtime.exchange import Exchange, ResponseWriter
from gusset.runtime.responses import Response

RefusalRenderer = Callable[[Exchange | None, int, str], Response]


@dataclass(frozen=True, kw_only=True)
class RequestRules:
    """What a server accepts.

    `gate` is called with each request when its head is complete, before its body
    is read; a response that it returns refuses the request. `body_limit` returns
    how many bytes the body of a request may have. A request for which `skips_body`
    is true is passed to the handler without its body, and the connection closes
    after its response. `memory` counts large bodies. `takes_over` says for which
    requests the handler will call `hand_over`. `render_refusal` makes the
    response to a request that the parser refuses, from a status and a sentence;
    the request is None when its head was at fault.
    """

    limits: Limits
    memory: BodyMemory
    gate: Callable[[Exchange], Response | None] | None
    skips_body: Callable[[Exchange], bool] | None
    body_limit: Callable[[Exchange], int] | None
    takes_over: Callable[[Exchange], bool]
    render_refusal: RefusalRenderer


_RETRY = (b"retry-after", b"1")
_SMALL_BODY = 64 * 1024  # bytes; the memory of smaller bodies is not counted
_FRAMING_RATIO = 8  # bytes of framing for each byte of content; chunks of one byte need six
_OFFER = (b"upgrade", b"http2-settings")  # in a Connection header, beside an offer of another protocol


class ParserConnection(ResponseWriter, Protocol):
    """The connection whose bytes are parsed."""

    def send_continue(self) -> None:
        """Have the client send the body, if its request is next."""


class RequestParser:
    """The requests of one connection.

    Whole requests are appended to `requests`. Once there is a `refusal`,
    nothing more is parsed: the connection sends it after the responses to
    the requests before it, and closes.
    """

    def __init__(self, rules: RequestRules, connection: ParserConnection) -> None:
        self._rules = rules
        self._limits = rules.limits
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self.requests: deque[Exchange] = deque()
        self.refusal: Response | None = None
        self.is_closed = False  # what follows is not parsed: the connection closes after the last request
        self.has_begun = False  # the client has begun to send its first request
        self.in_message = False
        self.rest = b""  # what follows a request whose connection will be handed over
        self._head_size = 0  # bytes of the current head, including those of the last read
        self._read_size = 0  # bytes of the last read
        self._declined = False  # the current request offers a protocol that is not taken up
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._fields: dict[bytes, bytes] = {}
        self._exchange: Exchange | None = None  # the request whose body is arriving
        self._parts: list[bytes] = []
        self._body_size = 0
        self._framing = 0  # bytes of a chunked body that are not content: sizes, extensions, trailers
        self._most = 0  # bytes that its body may have
        self._body_began = 0.0

    def feed(self, data: bytes) -> None:
        """Parse what the client has sent."""
        self._read_size = len(data)
        if self._exchange is None:
            self._head_size += self._read_size
        body_size = self._body_size
        self._feed(data)
        if not self.in_message:
            return
        if self._exchange is None:
            if self._head_size > self._limits.head:
                self._refuse_head()
        else:
            self._framing += self._read_size - max(self._body_size - body_size, 0)
            if self._framing > self._limits.head + _FRAMING_RATIO * self._body_size:
                self._refuse(431, "The trailers or the chunk extensions are too large.")

    def body_deadline(self) -> float | None:
        """When the unfinished body must be complete, on the event loop's clock; None while there is none."""
        if self._exchange is None:
            return None
        limits = self._limits
        return self._body_began + limits.body_seconds + self._body_size / limits.body_rate

    def time_out(self) -> None:
        """Refuse the unfinished request: it took too long."""
        self._refuse(408, "The request took too long to arrive.")

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # A connection that is not handed over continues in HTTP.
            head = self._head_without_offer() if self._declined else b""
            self._parser = httptools.HttpRequestParser(self)
            self._declined = False
            rest = data[upgrade.args[0] :]
            if not head and self.requests and self._rules.takes_over(self.requests[-1]):
                self.rest = rest
            elif (head or rest) and self.refusal is None:
                self._feed(head + rest)
        except httptools.HttpParserError:
            self._refuse(400, "Invalid HTTP request received.")

    def _head_without_offer(self) -> bytes:
        """The head of the current request without its offer of another protocol, such as HTTP/2.

        httptools would take what follows such a head, even a body, for the other protocol.
        """
        version = self._parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b\r\n" % (self._parser.get_method(), self._url, version)]
        for name, value in self._headers:
            lower = name.lower()
            if lower in (b"upgrade", b"http2-settings"):
                continue
            if lower == b"connection":
                listed = [each.strip() for each in value.split(b",")]
                value = b", ".join(each for each in listed if each.lower() not in _OFFER)
            lines.append(b"%b: %b\r\n" % (name, value))
        return b"".join((*lines, b"\r\n"))

    # Called by httptools.

    def on_message_begin(self) -> None:
        self._begin()
        self.in_message = True
        self.has_begun = True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._exchange is not None:
            return  # a trailer, which is never a header
        self._headers.append((name, value))
        self._fields.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        if self.is_closed:
            return
        parser, fields = self._parser, self._fields
        limit = self._limits.head
        if self._head_size > limit or self._read_size > limit:  # otherwise the head cannot be too large
            size = len(self._url) + sum(len(name) + len(value) for name, value in self._headers)
            if size > limit:
                self._refuse_head()
        exchange = Exchange(self._connection, parser.get_method(), self._headers, fields)
        if b"host" not in fields or len(fields) < len(self._headers):  # some header is missing or repeated
            self._check_host()
        url = self._url
        if url[:1] == b"/" and b"#" not in url:
            exchange.path, _, exchange.query = url.partition(b"?")
        else:
            self._take_target(exchange)
        if parser.should_upgrade() and exchange.method != b"CONNECT" and not self._rules.takes_over(exchange):
            self._declined = True
            return
        exchange.keep_alive = keep = parser.should_keep_alive()
        # HTTP/1.0 keeps a connection open only when the client asks for it.
        if not keep or b"connection" in fields:
            exchange.is_old = parser.get_http_version() == "1.0"
        self._exchange = exchange
        self._body_began = self._loop.time()
        if self.refusal is None and self._rules.gate is not None:
            self.refusal = self._rules.gate(exchange)
        length = fields.get(b"content-length")
        if length is not None or b"transfer-encoding" in fields:
            skips = self._rules.skips_body
            if self.refusal is None and skips is not None and skips(exchange):
                exchange.keep_alive = False
                exchange.began = time.perf_counter()
                self.requests.append(exchange)
                self.is_closed = True
                return
            self._check_body(exchange, length)
        if self.refusal is None and (expected := fields.get(b"expect")):  # an empty one expects nothing
            self._expect(expected, exchange)

    def _take_target(self, exchange: Exchange) -> None:
        url = self._url
        if b"#" in url:  # no client should send a fragment; some do
            url = url.partition(b"#")[0]
        if b"://" in url and url[:1] != b"/":  # the absolute form, which proxies send
            parsed = httptools.parse_url(url)  # raises for what is no URL: 400
            exchange.path, exchange.query = parsed.path or b"/", parsed.query or b""
            # Its host replaces that of the header: RFC 9112, 3.2.2.
            host = url.partition(b"://")[2].partition(b"/")[0].partition(b"?")[0].rpartition(b"@")[2]
            self._fields[b"host"] = host
            self._headers[:] = [(name, value) for name, value in self._headers if name.lower() != b"host"]
            self._headers.insert(0, (b"host", host))
        else:
            exchange.path, _, exchange.query = url.partition(b"?")

    def _check_host(self) -> None:
        """Refuse what RFC 9112, 3.2 does: HTTP/1.1 without a Host, and any request with several."""
        if self.refusal is not None:
            return
        if b"host" not in self._fields:
            if self._parser.get_http_version() != "1.0":
                self._refuse(400, "The request has no Host.")
        elif len(self._headers) > len(self._fields) and _count_hosts(self._headers) > 1:
            self._refuse(400, "The request has more than one Host.")

    def _check_body(self, exchange: Exchange, length: bytes | None) -> None:
        if self.refusal is not None:
            return
        if self._parser.should_upgrade() and (length or b"transfer-encoding" in self._fields):
            # httptools would leave the body unread, and parse it as the next request.
            self._refuse(400, "A request with a body cannot ask for another protocol.")
            return
        limit = self._rules.body_limit
        self._most = limit(exchange) if limit is not None else self._limits.body
        if length is not None and int(length) > self._most:
            self._refuse_body()

    def on_body(self, data: bytes) -> None:
        if self.is_closed:
            return
        self._body_size += len(data)
        if self._body_size > self._most:
            self._refuse_body()
        elif self.refusal is None:
            if self._body_size > _SMALL_BODY and not self._count_body():
                self._refuse(503, "The server is busy with other large requests. Try again later.", _RETRY)
            else:
                self._parts.append(data)

    def _count_body(self) -> bool:
        """Count what has come of a large body; whether there is memory for it."""
        exchange = self._exchange
        assert exchange is not None  # noqa: S101  # its body is arriving
        more = self._body_size - exchange.counted_bytes
        if not self._rules.memory.take(address_of(self._connection), more):
            return False
        exchange.counted_bytes = self._body_size
        return True

    def release(self, exchange: Exchange | None) -> None:
        """Count the memory of a request's body no longer."""
        if exchange is not None and exchange.counted_bytes:
            self._rules.memory.give(address_of(self._connection), exchange.counted_bytes)
            exchange.counted_bytes = 0

    @property
    def unfinished(self) -> Exchange | None:
        """The request whose body is arriving."""
        return self._exchange

    def on_message_complete(self) -> None:
        exchange = self._exchange
        self.in_message = self._declined  # its head is parsed once more
        self._exchange = None
        self._head_size = 0
        if exchange is None or self.refusal is not None or self.is_closed:
            return
        parts, self._parts = self._parts, []
        exchange.body = parts[0] if len(parts) == 1 else b"".join(parts)
        exchange.began = time.perf_counter()
        self.requests.append(exchange)

    def _expect(self, expected: bytes, exchange: Exchange) -> None:
        if expected.lower() != b"100-continue":
            self._refuse(417, "Only 100-continue can be expected.")
        elif not exchange.is_old:
            self._connection.send_continue()

    def _refuse_head(self) -> None:
        self._refuse(431, f"The request's head is larger than {self._limits.head} bytes.")

    def _refuse_body(self) -> None:
        self._refuse(413, f"The request's body is larger than {self._most} bytes.")

    def _refuse(self, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
        self.release(self._exchange)
        if self.refusal is None:
            refusal = self._rules.render_refusal(self._exchange, status, text)
            self.refusal = replace(refusal, headers=(*refusal.headers, *headers))


def _count_hosts(headers: list[tuple[bytes, bytes]]) -> int:
    return sum(name.lower() == b"host" for name, _ in headers)
