"""One HTTP request and its response, as request handlers see them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

JSON: Final = b"application/json"
LAST_CHUNK: Final = b"0\r\n\r\n"

Headers = Iterable[tuple[bytes, bytes]]
MakeSuccessor = Callable[[Callable[[], object]], asyncio.Protocol]
"""Makes the protocol that takes over a connection and that calls the argument once it is lost."""
KnownKeys: TypeAlias = tuple[tuple[str, bytes], ...]
"""Callers and digests of their keys. A new set is a new object, even with the same content."""


def chunk(data: bytes) -> bytes:
    """One chunk of a body whose length is not known in advance."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass(frozen=True, slots=True)
class AcceptedHeader:
    """The `Authorization` header of a caller, as accepted while the `known` keys counted."""

    header: bytes = field(repr=False)
    caller: str
    known: KnownKeys = field(repr=False)


class ResponseWriter(Protocol):
    """The connection of an exchange. Its methods are those of `Exchange`."""

    transport: asyncio.Transport
    peer: tuple[str, int] | None
    accepted: AcceptedHeader | None

    def respond(
        self, exchange: Exchange, status: int, body: bytes, content_type: bytes, headers: Headers
    ) -> None: ...
    def start(self, exchange: Exchange, status: int, headers: Headers, first: bytes) -> None: ...
    def write(self, data: bytes) -> None: ...
    def end(self, exchange: Exchange, last: bytes) -> None: ...
    def cut(self) -> None: ...
    def limit_silence(self, seconds: float) -> None: ...
    def hand_over(self, exchange: Exchange, make_successor: MakeSuccessor) -> None: ...


class Exchange:
    """One request and its response, sent whole by `respond` or in parts from `start` to `end`.

    `disconnected` becomes true when the client disconnects before the response is
    complete; `on_disconnect` is then called, if set. `writable` is false while too
    much is buffered for the client; `on_writable` is called when that ends.
    All of this belongs to the event loop's thread. But other threads may read
    `disconnected` and `writable`, and before the response is started they may set
    `on_writable` and call `limit_silence`.
    """

    __slots__ = (
        "_connection",
        "body",
        "counted_bytes",
        "disconnected",
        "fields",
        "headers",
        "is_http_1_0",
        "keep_alive",
        "method",
        "on_disconnect",
        "on_writable",
        "path",
        "query",
        "received_at",
        "response_headers",
        "route",
        "writable",
    )

    def __init__(
        self,
        connection: ResponseWriter,
        method: bytes,
        headers: list[tuple[bytes, bytes]],
        fields: dict[bytes, bytes],
    ) -> None:
        """`headers` are as the client sent them, `fields` the first of each name in lower case."""
        self._connection = connection
        self.fields = fields
        self.method = method
        self.headers = headers
        self.path = b""
        self.query = b""
        self.keep_alive = False
        self.is_http_1_0 = False  # such a response cannot be sent in chunks
        self.body = b""
        self.counted_bytes = 0  # in the server's `RequestMemory`
        self.response_headers: tuple[tuple[bytes, bytes], ...] = ()  # in addition to those of the handler
        self.route: str | None = None  # its name in metrics; probes have none and are not counted
        self.received_at = 0.0  # when the request was complete, by time.perf_counter()
        self.disconnected = False
        self.writable = True
        self.on_disconnect: Callable[[], object] | None = None
        self.on_writable: Callable[[], object] | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first header of that name, given in lower case."""
        return self.fields.get(name)

    def respond(self, status: int, body: bytes, content_type: bytes = JSON, headers: Headers = ()) -> None:
        """Send the whole response. Does nothing when the client has disconnected.

        Raises:
            RuntimeError: a response was sent or started already.
        """
        if not self.disconnected:
            self._connection.respond(self, status, body, content_type, headers)

    def start(self, status: int, headers: Headers, first: bytes = b"") -> None:
        """Start a response in parts; `headers` include its content type, and its length when that is known.

        `first` is sent together with the head.

        Raises:
            RuntimeError: a response was sent or started already.
        """
        if not self.disconnected:
            self._connection.start(self, status, headers, first)

    def write(self, data: bytes) -> None:
        """Send the next part: made by `chunk`, unless the length is known or `is_http_1_0`."""
        if not self.disconnected:
            self._connection.write(data)

    def end(self, last: bytes = b"") -> None:
        """Complete a response in parts, with `last`."""
        if not self.disconnected:
            self._connection.end(self, last)

    def cut(self) -> None:
        """Break off a response in parts, so that the client sees that it is incomplete."""
        if not self.disconnected:
            self._connection.cut()

    def limit_silence(self, seconds: float) -> None:
        """Abort the response when nothing is written to it for so long."""
        if not self.disconnected:
            self._connection.limit_silence(seconds)

    def hand_over(self, make_successor: MakeSuccessor) -> None:
        """Give the connection to the protocol that the client asked for; it gets the request's bytes.

        Responds with 503 instead when too many connections have been handed over.
        """
        if not self.disconnected:
            self._connection.hand_over(self, make_successor)

    @property
    def accepted(self) -> AcceptedHeader | None:
        """What the connection remembers of the caller of an earlier request."""
        return self._connection.accepted

    @accepted.setter
    def accepted(self, accepted: AcceptedHeader) -> None:
        self._connection.accepted = accepted

    @property
    def transport(self) -> asyncio.Transport:
        """The connection's transport."""
        return self._connection.transport

    @property
    def peer(self) -> tuple[str, int] | None:
        """The address and port of the other end, as they were when it connected."""
        return self._connection.peer
