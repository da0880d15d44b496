"""What the servers' client connections share: their limits, their deadlines, and how they end.

Used by the HTTP server and by the reverse proxy of custom images.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

SWEEP_SECONDS = 0.5  # between two checks of all deadlines
LINGER_SECONDS = 2.0  # how long a client may go on sending after the server has sent its last response


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may use: bytes and seconds."""

    head: int = 64 * 1024
    body: int = 100 * 1024 * 1024
    head_seconds: float = 30.0
    body_seconds: float = 60.0  # plus one second for each `body_rate` bytes that have arrived
    body_rate: float = 8 * 1024
    idle_seconds: float = 75.0
    stall_seconds: float = 60.0  # a client must take some of what is buffered for it within this time


class Connection(Protocol):
    """A client's connection, as `OpenConnections` manages it."""

    def finish(self) -> None:
        """Close now if no request is in flight, otherwise after its response."""

    def expire(self, now: float) -> None:
        """Check the deadlines. `now` is the event loop's time."""

    def abort(self) -> None:
        """Close at once."""


C = TypeVar("C", bound=Connection)


class OpenConnections(Generic[C]):
    """The open connections of one server: limits their number, checks their deadlines, drains them."""

    def __init__(self, most: int, *, on_sweep: Callable[[], object] = lambda: None) -> None:
        """`on_sweep` is called before each check of the deadlines."""
        self._most = most
        self._on_sweep = on_sweep
        self._connections: set[C] = set()
        self._closing = False
        self._empty = asyncio.Event()

    def __iter__(self) -> Iterator[C]:
        return iter(tuple(self._connections))

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, connection: C) -> bool:
        """Register a new connection; False when there are too many, and it must be closed."""
        if len(self._connections) >= self._most:
            return False
        self._connections.add(connection)
        return True

    def discard(self, connection: C) -> None:
        """Forget a connection that has ended."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    @property
    def closing(self) -> bool:
        """Whether no more connections are expected, and those that are open are to end."""
        return self._closing

    def start_sweeping(self) -> None:
        """Check all deadlines now and every `SWEEP_SECONDS`, until all have ended after `close`."""
        loop = asyncio.get_running_loop()
        self._on_sweep()
        now = loop.time()
        for connection in self:
            connection.expire(now)
        if self._connections or not self._closing:
            loop.call_later(SWEEP_SECONDS, self.start_sweeping)

    def close(self) -> None:
        """Expect no more connections."""
        self._closing = True

    async def drain(self, seconds: float | None = None) -> None:
        """Let requests in flight finish, and return when all connections have ended.

        What takes longer than `seconds` is aborted; None sets no limit.
        """
        self.close()
        for connection in self:
            connection.finish()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._until_empty()
        self.abort()
        await self._until_empty()

    def abort(self) -> None:
        """Close all connections at once."""
        for connection in self:
            connection.abort()

    async def _until_empty(self) -> None:
        while self._connections:
            self._empty.clear()
            await self._empty.wait()


class StallDetector:
    """Notices a client that takes nothing of what is buffered for it."""

    __slots__ = ("_deadline", "_seconds", "unsent")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = 0.0
        self.unsent = 0  # bytes that were buffered at the last check

    def check(self, transport: asyncio.WriteTransport, now: float) -> bool:
        """Whether the buffer has held the same number of bytes for too long."""
        if (unsent := transport.get_write_buffer_size()) != self.unsent:
            self.unsent = unsent
            self._deadline = now + self._seconds
        return unsent > 0 and now >= self._deadline


def send_eof(transport: asyncio.WriteTransport) -> None:
    """Send no more, but go on reading; over TLS, which cannot do that, close.

    If a server closes while a client is still sending, the client's system
    may discard the response before the client has read it.
    """
    if transport.is_closing():
        return
    if transport.can_write_eof():
        with contextlib.suppress(OSError):  # the client has just gone
            transport.write_eof()
    else:
        transport.close()


def most_connections() -> int:
    """How many clients may be connected at a time, so that the process itself can still open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1_000_000 if soft == resource.RLIM_INFINITY else max(soft - 200, 50)
