"""What the servers' client connections share: their limits, their deadlines, and how they end.

Used by the HTTP server and by the reverse proxy of custom images.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import resource
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from gusset.addresses import network_of

SWEEP_SECONDS = 0.5  # between two checks of all deadlines
_EVICTED_SHARE = 50  # of so many connections, one is closed at a time to make room
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
    memory: int = 1024 * 1024 * 1024  # bytes of all large bodies together; of those of one address the half


class HasPeer(Protocol):
    """A connection whose other end is known."""

    peer: tuple[str, int] | None
    """The address and port of the client."""


class Connection(HasPeer, Protocol):
    """A client's connection, as `OpenConnections` manages it."""

    @property
    def eviction_rank(self) -> int | None:
        """What closing the connection would lose: 0 for an idle one, None while a request is handled."""

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
        self._connections: dict[C, None] = {}  # the oldest first
        self._closing = False
        self._empty = asyncio.Event()

    def __iter__(self) -> Iterator[C]:
        return iter(tuple(self._connections))

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, connection: C) -> bool:
        """Register a new connection; False when there are too many, and it must be closed.

        When the number is reached, others are closed first: see `_evict`.
        """
        if len(self._connections) >= self._most and not self._evict():
            return False
        self._connections[connection] = None
        return True

    def _evict(self) -> bool:
        """Close some connections that wait for their client; whether there were any.

        Those of the address that has most come first, of them idle ones, then those whose head is
        incomplete, then those whose body is or that take their response slowly; the oldest first. So
        slow clients cannot keep others out.
        """
        counts = Counter(address_of(connection) for connection in self._connections)
        waiting = [
            (-counts[address_of(connection)], rank, age, connection)
            for age, connection in enumerate(self._connections)
            if (rank := connection.eviction_rank) is not None
        ]
        victims = heapq.nsmallest(max(1, self._most // _EVICTED_SHARE), waiting, key=lambda each: each[:3])
        for *_, connection in victims:
            self.discard(connection)
            connection.abort()
        return bool(victims)

    def discard(self, connection: C) -> None:
        """Forget a connection that has ended."""
        self._connections.pop(connection, None)
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


def address_of(connection: HasPeer) -> str:
    """The client that a connection counts as: its address, of IPv6 the /64."""
    return network_of(connection.peer[0] if connection.peer else None)


class BodyMemory:
    """Bounds the memory of the bodies that are being received or handled, in all and of each address."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes in all; one address may have half of them."""
        self._limit = limit
        self._used = 0
        self._used_by: defaultdict[str, int] = defaultdict(int)

    def take(self, address: str, size: int) -> bool:
        """Count `size` more bytes for an address; False, without counting them, beyond a limit."""
        if self._used + size > self._limit or self._used_by[address] + size > self._limit // 2:
            return False
        self._used += size
        self._used_by[address] += size
        return True

    def give(self, address: str, size: int) -> None:
        """Count `size` bytes no longer."""
        self._used -= size
        self._used_by[address] -= size
        if not self._used_by[address]:
            del self._used_by[address]


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
