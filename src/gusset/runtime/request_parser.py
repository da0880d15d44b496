"""Assembles requests from a client's bytes, and refuses what is too large or not HTTP."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

import httptools

from gusset.runtime.exchange import Exchange
from gusset.runtime.responses import Response

if TYPE_CHECKING:
    from gusset.runtime.http_server import HttpConnection, HttpServer


class RequestParser:
    """The requests of one connection.

    Whole requests are appended to `requests`. Once there is a `refusal`,
    nothing more is parsed: the connection sends it after the responses to
    the requests before it, and closes.
    """

    def __init__(self, server: HttpServer, connection: HttpConnection) -> None:
        self._server = server
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self.requests: deque[Exchange] = deque()
        self.refusal: Response | None = None
        self.has_begun = False  # the client has begun to send its first request
        self.in_message = False
        self.rest = b""  # what follows a request whose connection will be handed over
        self._head_size = 0  # bytes of the current head, including those of the last read
        self._read_size = 0  # bytes of the last read
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._fields: dict[bytes, bytes] = {}
        self._exchange: Exchange | None = None  # the request whose body is arriving
        self._parts: list[bytes] = []
        self._body_size = 0
        self._most = 0  # bytes that its body may have
        self._body_began = 0.0

    def feed(self, data: bytes) -> None:
        """Parse what the client has sent."""
        self._read_size = len(data)
        if self._exchange is None:
            self._head_size += self._read_size
        self._feed(data)
        if self.in_message and self._exchange is None and self._head_size > self._server.limits.head:
            self._refuse_head()

    def body_deadline(self) -> float | None:
        """When the unfinished body must be complete, on the event loop's clock; None while there is none."""
        if self._exchange is None:
            return None
        limits = self._server.limits
        return self._body_began + limits.body_seconds + self._body_size / limits.body_rate

    def time_out(self) -> None:
        """Refuse the unfinished request: it took too long."""
        self._refuse(408, "The request took too long to arrive.")

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # A connection that is not handed over continues in HTTP: the upgrade is declined.
            self._parser = httptools.HttpRequestParser(self)
            rest = data[upgrade.args[0] :]
            if self.requests and self._server.takes_over(self.requests[-1]):
                self.rest = rest
            elif rest and self.refusal is None:
                self._feed(rest)
        except httptools.HttpParserError:
            self._refuse(400, "Invalid HTTP request received.")

    # Called by httptools.

    def on_message_begin(self) -> None:
        self._begin()
        self.in_message = True
        self.has_begun = True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        self._fields.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        parser, fields = self._parser, self._fields
        limit = self._server.limits.head
        if self._head_size > limit or self._read_size > limit:  # otherwise the head cannot be too large
            size = len(self._url) + sum(len(name) + len(value) for name, value in self._headers)
            if size > limit:
                self._refuse_head()
        exchange = Exchange(self._connection, parser.get_method(), self._headers, fields)
        url = self._url
        if b"#" in url:  # no client should send a fragment; some do
            url = url.partition(b"#")[0]
        if b"://" in url and url[:1] != b"/":  # the absolute form, which proxies send
            parsed = httptools.parse_url(url)  # raises for what is no URL: 400
            exchange.path, exchange.query = parsed.path or b"/", parsed.query or b""
        else:
            exchange.path, _, exchange.query = url.partition(b"?")
        exchange.keep_alive = keep = parser.should_keep_alive()
        # HTTP/1.0 keeps a connection open only when the client asks for it.
        if not keep or b"connection" in fields:
            exchange.is_old = parser.get_http_version() == "1.0"
        exchange.upgrade = parser.should_upgrade()
        self._exchange = exchange
        self._body_began = self._loop.time()
        length = fields.get(b"content-length")
        if length is not None or b"transfer-encoding" in fields:
            self._check_body(exchange, length)
        if self.refusal is None and (expected := fields.get(b"expect")):  # an empty one expects nothing
            self._expect(expected, exchange)

    def _check_body(self, exchange: Exchange, length: bytes | None) -> None:
        if exchange.upgrade and (length or b"transfer-encoding" in self._fields):
            # httptools would leave the body unread, and parse it as the next request.
            self._refuse(400, "A request with a body cannot ask for another protocol.")
            return
        check = self._server.check_head
        allowed = check(exchange) if check is not None else self._server.limits.body
        if isinstance(allowed, Response):
            self.refusal = self.refusal or allowed
            return
        self._most = allowed
        if length is not None and int(length) > allowed:
            self._refuse_body()

    def on_body(self, data: bytes) -> None:
        self._body_size += len(data)
        if self._body_size > self._most:
            self._refuse_body()
        elif self.refusal is None:
            self._parts.append(data)

    def on_message_complete(self) -> None:
        exchange = self._exchange
        self.in_message = False
        self._exchange = None
        self._head_size = 0
        if exchange is None or self.refusal is not None:
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
        self._refuse(431, f"The request's head is larger than {self._server.limits.head} bytes.")

    def _refuse_body(self) -> None:
        self._refuse(413, f"The request's body is larger than {self._most} bytes.")

    def _refuse(self, status: int, text: str) -> None:
        if self.refusal is None:
            self.refusal = self._server.render_refusal(self._exchange, status, text)
