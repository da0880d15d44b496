"""Assembles requests from a client's bytes, and refuses what is too large or not HTTP."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Final, Protocol

import httptools

from gusset.runtime.exchange import Exchange, ResponseWriter
from gusset.runtime.limits import ConnectionMemory, Limits, RequestMemory
from gusset.runtime.repeated_head import RepeatedHead
from gusset.runtime.responses import RETRY, Response

Gate = Callable[[Exchange], Response | None]
"""Decides about a request when its head is complete, before its body is read.

Returns None to let it pass, or the response that refuses it. A refusal is sent with the
headers that gates have added to the response, such as those that let a web page read it.
"""
RefusalRenderer = Callable[[Exchange | None, int, str], Response]


@dataclass(frozen=True, kw_only=True)
class RequestRules:
    """What a server accepts.

    A request passes through the `gates` in order; the first refusal counts.
    `body_limit` returns how many bytes the body of a request may have. A request
    for which `skips_body` is true is passed to the handler without its body, and
    the connection closes after its response. If that is not known at once, the function
    returns an awaitable, and no more is read until it is done. `memory` counts the requests.
    `takes_over` says for which requests the handler will call `hand_over`.
    `render_refusal` makes the response to a request that the parser refuses,
    from a status and a sentence; the request is None when its head was at fault.
    """

    limits: Limits
    memory: RequestMemory
    gates: tuple[Gate, ...]
    skips_body: Callable[[Exchange], bool | Awaitable[bool]] | None
    body_limit: Callable[[Exchange], int] | None
    takes_over: Callable[[Exchange], bool]
    render_refusal: RefusalRenderer

    def render_busy(self, exchange: Exchange | None, text: str) -> Response:
        """A 503 that says when to try again."""
        response = self.render_refusal(exchange, 503, text)
        return replace(response, headers=(*response.headers, RETRY))


# Bytes of a request that are not counted, unless it waits for others: about what the connection itself takes.
_UNCOUNTED: Final = 4 * 1024
_OBJECTS: Final = 2 * 1024  # bytes that a request takes beside its head and body, at least
_FRAMING_RATIO: Final = 8  # bytes of framing for each byte of content; chunks of one byte need six
_NOT_ASCII: Final = re.compile(rb"[\x80-\xff]")
_OFFER = (b"upgrade", b"http2-settings")  # in a Connection header, beside an offer of another protocol


class ParserConnection(ResponseWriter, Protocol):
    """The connection whose bytes are parsed."""

    def send_continue(self) -> None:
        """Have the client send the body, if its request is next."""

    def hold_body(self, exchange: Exchange, is_skipped: Awaitable[bool]) -> None:
        """Stop reading until it is known whether the body is skipped; then call `skip_body`, or read on."""


class RequestParser:
    """The requests of one connection.

    Whole requests are appended to `requests`. Once there is a `refusal`,
    nothing more is parsed: the connection sends it after the responses to
    the requests before it, and closes.

    It stays one class: each callback of httptools works on the same unfinished request.
    """

    def __init__(
        self, rules: RequestRules, connection: ParserConnection, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.rules = rules
        self._limits = rules.limits
        limit = rules.limits.head
        self._unchecked = limit if limit < _UNCOUNTED else _UNCOUNTED  # bytes of a head that is not large
        self._connection = connection
        self.memory = ConnectionMemory(rules.memory, connection)
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self.requests: deque[Exchange] = deque()
        self.refusal: Response | None = None
        self.is_head_refused = False  # the refused request is a HEAD: its response has no body
        self.is_closed = False  # what follows is not parsed: the connection closes after the last request
        self.has_begun = False  # the client has begun to send its first request
        self.in_message = False
        self.rest = b""  # what follows a request whose connection will be handed over
        self._head_size = 0  # bytes of the current head, including those of the last read
        self._read_size = 0  # bytes of the last read
        self._declined = False  # the current request offers a protocol that is not taken up
        self._repeated: RepeatedHead | None = None  # the last head, if the one before it was the same
        self._last = b""  # the last read, if it was small and a request began with it
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._fields: dict[bytes, bytes] = {}
        self._exchange: Exchange | None = None  # the request whose body is arriving
        self._parts: list[bytes] = []
        self._large_head = 0  # bytes of the complete head, if they matter
        self._body_size = 0
        self._framing = 0  # bytes of a chunked body that are not content: sizes, extensions, trailers
        self._most = 0  # bytes that its body may have
        # When its head was complete, by the event loop's clock; not set before it matters.
        self._body_began = 0.0

    def feed(self, data: bytes) -> None:
        """Parse what the client has sent."""
        self._read_size = size = len(data)
        repeated, last = self._repeated, self._last
        if repeated is not None and size == repeated.request_size and data.startswith(repeated.data):
            self._take_repeated(repeated, data)
            return
        self._last = b"" if self.in_message or size > self._unchecked else data
        if self._exchange is None:
            self._head_size += self._read_size
        body_size = self._body_size
        self._feed(data)
        if not self.in_message:
            if size == len(last) and self._last:
                self._repeated = RepeatedHead.learn(data, last)
                if self._repeated is not None:
                    self._last = b""  # there may be thousands of idle connections
            return
        if self._exchange is None:
            if self._head_size > self._limits.head:
                self._refuse_head()
            elif self._head_size > _UNCOUNTED:
                self._count(self._head_size)
        else:
            self._framing += self._read_size - max(self._body_size - body_size, 0)
            if self._framing > self._limits.head + _FRAMING_RATIO * self._body_size:
                self._refuse(431, "The trailers or the chunk extensions are too large.")

    def body_deadline(self) -> float | None:
        """When the unfinished body must be complete, on the event loop's clock; None while there is none."""
        if self._exchange is None:
            return None
        if not self._body_began:
            self._body_began = self._loop.time()
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
            head = b""
            if self._declined:
                line = (self._parser.get_method(), self._url, self._parser.get_http_version().encode())
                head = _head_without_offer(line, self._headers)
            self._parser = httptools.HttpRequestParser(self)
            self._declined = False
            rest = data[upgrade.args[0] :]
            if not head and self.requests and self.rules.takes_over(self.requests[-1]):
                self.rest = rest
            elif (head or rest) and self.refusal is None:
                self._feed(head + rest)
        except httptools.HttpParserError:
            self._refuse(400, "Invalid HTTP request received.")

    def _take_repeated(self, repeated: RepeatedHead, data: bytes) -> None:
        """Take a whole request with a known head, instead of httptools."""
        self._body_size = 0  # everything else is as the previous request, which was as small, left it
        exchange = self._exchange = repeated.make_exchange(self._connection)
        self._url, self._headers, self._fields = repeated.url, exchange.headers, exchange.fields
        self._check_head_complete(exchange, offers_protocol=False)
        if repeated.size < len(data):
            self.on_body(data[repeated.size :])
        self.on_message_complete()

    # Called by httptools.

    def on_message_begin(self) -> None:
        if self.has_begun:
            self._begin()
        self.in_message = True
        self.has_begun = True
        self._repeated = None

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._exchange is not None:
            return  # a trailer, which is never a header
        self._headers.append((name, value))
        if (lower := name.lower()) not in self._fields:
            self._fields[lower] = value

    def on_headers_complete(self) -> None:
        if self.is_closed:
            return
        parser, fields = self._parser, self._fields
        unchecked = self._unchecked
        if self._head_size > unchecked or self._read_size > unchecked:  # otherwise the head is not large
            self._check_head()
        exchange = Exchange(self._connection, parser.get_method(), self._headers, fields)
        missing_or_repeated = b"host" not in fields or len(fields) < len(self._headers)
        if missing_or_repeated and (fault := _find_host_fault(parser, fields, self._headers)) is not None:
            self._refuse(400, fault)
        url = self._url
        if not url.isascii():
            self._url = url = _NOT_ASCII.sub(_percent_encoded, url)
        if url[:1] == b"/" and b"#" not in url:
            exchange.path, _, exchange.query = url.partition(b"?")
        else:
            _take_target(exchange, url)
        offers_protocol = parser.should_upgrade()
        if offers_protocol and exchange.method != b"CONNECT" and not self.rules.takes_over(exchange):
            self._declined = True
            return
        exchange.keep_alive = keep = parser.should_keep_alive()
        # HTTP/1.0 keeps a connection open only when the client asks for it.
        if not keep or b"connection" in fields:
            exchange.is_http_1_0 = parser.get_http_version() == "1.0"
        self._exchange = exchange
        self._check_head_complete(exchange, offers_protocol=offers_protocol)

    def _check_head_complete(self, exchange: Exchange, *, offers_protocol: bool) -> None:
        """Apply the rules to a request whose head is complete."""
        fields = exchange.fields
        if self.refusal is None:
            for gate in self.rules.gates:
                if (refusal := gate(exchange)) is not None:
                    added = exchange.response_headers
                    self._set_refusal(
                        replace(refusal, headers=(*refusal.headers, *added)) if added else refusal
                    )
                    break
        length = fields.get(b"content-length")
        if length is not None or b"transfer-encoding" in fields:
            skips = self.rules.skips_body
            if self.refusal is None and skips is not None and length != b"0":
                is_skipped = skips(exchange)
                if is_skipped is True:
                    self.skip_body(exchange)
                    return
                if is_skipped is not False:
                    self._connection.hold_body(exchange, is_skipped)
            self._check_body(exchange, length, offers_protocol=offers_protocol)
        if self.refusal is None and (expected := fields.get(b"expect")):  # an empty one expects nothing
            self._expect(expected, exchange)

    def skip_body(self, exchange: Exchange) -> None:
        """Pass on the unfinished request without its body, and parse nothing more."""
        exchange.keep_alive = False
        exchange.counted_bytes = self.memory.finish()
        exchange.received_at = perf_counter()
        self.requests.append(exchange)
        self.is_closed = True

    def _check_head(self) -> None:
        self._large_head = _measure_head(self._url, self._headers)
        if self._large_head > self._limits.head:
            self._refuse_head()
        elif self._large_head > _UNCOUNTED:
            self._count(self._large_head)

    def _check_body(self, exchange: Exchange, length: bytes | None, *, offers_protocol: bool) -> None:
        if self.refusal is not None:
            return
        if offers_protocol and (length or b"transfer-encoding" in self._fields):
            # httptools would leave the body unread, and parse it as the next request.
            self._refuse(400, "A request with a body cannot ask for another protocol.")
            return
        limit = self.rules.body_limit
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
            size = self._large_head + self._body_size
            if size <= _UNCOUNTED or self._count(size):
                self._parts.append(data)

    def _count(self, size: int) -> bool:
        """Count `size` bytes of the unfinished request. If there is no memory for them, refuse it."""
        if self.memory.count(size):
            return True
        self.memory.release_unfinished()
        if self.refusal is None:
            text = "The server is busy with other large requests. Try again later."
            self._set_refusal(self.rules.render_busy(self._exchange, text))
        return False

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
        # Requests that wait for others of their connection are counted even if they are small: many may wait.
        if self.requests and not self._count(
            _OBJECTS + _measure_head(self._url, self._headers) + self._body_size
        ):
            return
        if self.memory.unfinished:
            exchange.counted_bytes = self.memory.finish()
        exchange.received_at = perf_counter()
        self.requests.append(exchange)

    def _expect(self, expected: bytes, exchange: Exchange) -> None:
        if expected.lower() != b"100-continue":
            self._refuse(417, "Only 100-continue can be expected.")
        elif not exchange.is_http_1_0:
            self._connection.send_continue()

    def _refuse_head(self) -> None:
        self._refuse(431, f"The request's head is larger than {self._limits.head} bytes.")

    def _refuse_body(self) -> None:
        self._refuse(413, f"The request's body is larger than {self._most} bytes.")

    def _refuse(self, status: int, text: str) -> None:
        self.memory.release_unfinished()
        if self.refusal is None:
            self._set_refusal(self.rules.render_refusal(self._exchange, status, text))

    def _set_refusal(self, refusal: Response) -> None:
        self.refusal = refusal
        self.is_head_refused = self._parser.get_method() == b"HEAD"


def _percent_encoded(match: re.Match[bytes]) -> bytes:
    """A byte that no target may have, in the form in which it may.

    Older versions of httptools let it pass, and Starlette decodes what should be ASCII.
    """
    return b"%%%02X" % match[0][0]


def _take_target(exchange: Exchange, url: bytes) -> None:
    """Take the path and the query of a target that is not only a path, and its host if it has one."""
    if b"#" in url:  # no client should send a fragment; some do
        url = url.partition(b"#")[0]
    if b"://" in url and url[:1] != b"/":  # the absolute form, which proxies send
        # Any, since httptools promises bytes but has None for a part that is missing.
        parsed: Any = httptools.parse_url(url)  # raises for what is no URL: 400
        exchange.path, exchange.query = parsed.path or b"/", parsed.query or b""
        # Its host replaces that of the header: RFC 9112, 3.2.2.
        host = url.partition(b"://")[2].partition(b"/")[0].partition(b"?")[0].rpartition(b"@")[2]
        exchange.fields[b"host"] = host
        exchange.headers[:] = [header for header in exchange.headers if header[0].lower() != b"host"]
        exchange.headers.insert(0, (b"host", host))
    else:
        exchange.path, _, exchange.query = url.partition(b"?")


def _head_without_offer(line: tuple[bytes, bytes, bytes], headers: list[tuple[bytes, bytes]]) -> bytes:
    """The head of a request without its offer of another protocol, such as HTTP/2.

    httptools would take what follows such a head, even a body, for the other
    protocol. `line` is the request's method, target and version.
    """
    lines = [b"%b %b HTTP/%b\r\n" % line]
    for name, value in headers:
        lower = name.lower()
        if lower in (b"upgrade", b"http2-settings"):
            continue
        if lower == b"connection":
            listed = [each.strip() for each in value.split(b",")]
            value = b", ".join(each for each in listed if each.lower() not in _OFFER)
        lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join((*lines, b"\r\n"))


def _find_host_fault(
    parser: httptools.HttpRequestParser, fields: dict[bytes, bytes], headers: list[tuple[bytes, bytes]]
) -> str | None:
    """What RFC 9112, 3.2 refuses: HTTP/1.1 without a Host, and any request with several."""
    if b"host" not in fields:
        return "The request has no Host." if parser.get_http_version() != "1.0" else None
    if len(headers) > len(fields) and _count_hosts(headers) > 1:
        return "The request has more than one Host."
    return None


def _measure_head(url: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    return len(url) + sum(len(name) + len(value) for name, value in headers)


def _count_hosts(headers: list[tuple[bytes, bytes]]) -> int:
    return sum(name.lower() == b"host" for name, _ in headers)
