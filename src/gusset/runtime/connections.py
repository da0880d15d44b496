"""The open connections of a server: their number, their deadlines, and how they are drained.

Used by the HTTP server and by the reverse proxy of custom images.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import heapq
import os
import resource
from collections.abc import Callable, Collection, Iterator
from typing import Protocol

from gusset.runtime.limits import HasPeer, address_of

SWEEP_SECONDS = 0.5  # between two checks of all deadlines
_EVICTED_SHARE = 50  # of so many connections, one is closed at a time to make room
_FOR_PROBES = 16  # connections that may still send probes when requests in flight have taken all others
_FREE_DESCRIPTORS = 32  # when fewer are left to the process, connections make room
_CHECKED_SHARE = 8  # of so many connections, one is checked whether it leaves that many
_NEVER = 2**31  # no file descriptor is that large


class Connection(HasPeer, Protocol):
    """A client's connection, as `OpenConnections` manages it."""

    @property
    def eviction_rank(self) -> int | None:
        """What closing the connection would lose: 0 for an idle one, None while a request is handled."""

    def fileno(self) -> int:
        """The file descriptor of the socket; -1 once it is closed."""

    def finish(self) -> None:
        """Close now if no request is in flight, otherwise after its response."""

    def expire(self, now: float) -> None:
        """Check the deadlines. `now` is the event loop's time."""

    def abort(self) -> None:
        """Close at once."""


class Admission(enum.Enum):
    """What a new connection may do."""

    EVERYTHING = enum.auto()
    PROBES = enum.auto()  # nothing else, since all connections are in use
    NOTHING = enum.auto()  # it must be closed


class OpenConnections:
    """The open connections of one server: limits their number, checks their deadlines, drains them.

    One address may have three quarters of them. Websockets may be three quarters
    of all, and those of one address half of all, so that requests find room.
    """

    def __init__(self, most: int, *, on_sweep: Callable[[], object] = lambda: None) -> None:
        """`most` connections may be open. `on_sweep` is called before each check of the deadlines."""
        self._most = most
        self._most_of_one = most * 3 // 4
        self._most_upgraded = most * 3 // 4
        self._most_upgraded_of_one = most // 2
        self._on_sweep = on_sweep
        self._open: dict[Connection, str] = {}  # the oldest first, with the address that each counts for
        self._counts: dict[str, int] = {}  # of each address, without those for probes
        self._for_probes: dict[Connection, None] = {}  # the oldest first
        self._upgraded: set[Connection] = set()
        self._last_descriptor = _last_descriptor()
        self._closing = False
        self._empty = asyncio.Event()

    def __iter__(self) -> Iterator[Connection]:
        return iter(tuple(self._open))

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Connection) -> Admission:
        """Count a new connection until `discard`; if it may do nothing, it is not counted.

        When there are too many, others are closed first: see `_evict`.
        """
        if len(self._open) % _CHECKED_SHARE == 0:
            self._free_descriptors(connection.fileno())
        address = address_of(connection)
        of_one = self._counts.get(address, 0)
        if of_one >= self._most_of_one or len(self._open) - len(self._for_probes) >= self._most:
            admission = self._replace_others(address)
        else:
            admission = Admission.EVERYTHING
        if admission is Admission.NOTHING:
            return admission
        if admission is Admission.PROBES:
            self._for_probes[connection] = None
        else:
            self._count(address, 1)
        self._open[connection] = address
        if self._closing:
            connection.finish()
        return admission

    def discard(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        address = self._open.pop(connection, None)
        if address is None:
            return
        if connection in self._for_probes:
            del self._for_probes[connection]
        else:
            self._count(address, -1)
        self._upgraded.discard(connection)
        if not self._open:
            self._empty.set()

    def upgrade(self, connection: Connection, successor: Connection) -> bool:
        """Count `successor`, a websocket, instead of the connection; False if there are too many of them."""
        address = self._open[connection]
        of_one = sum(self._open[each] == address for each in self._upgraded)
        if len(self._upgraded) >= self._most_upgraded or of_one >= self._most_upgraded_of_one:
            return False
        self.discard(connection)
        self._open[successor] = address
        self._count(address, 1)
        self._upgraded.add(successor)
        if self._closing:
            successor.finish()
        return True

    def make_room(self) -> bool:
        """No file descriptor is free: close some connections that wait for their client.

        Returns whether there were any.
        """
        return self._evict(self._open, _FREE_DESCRIPTORS)

    def _replace_others(self, address: str) -> Admission:
        """Make room for a connection of `address` when it, or all together, have as many as they may."""
        others = [each for each in self._open if each not in self._for_probes]
        if self._counts.get(address, 0) >= self._most_of_one:
            others = [each for each in others if self._open[each] == address]
        if self._evict(others, max(1, self._most // _EVICTED_SHARE)):
            return Admission.EVERYTHING
        if len(self._for_probes) < _FOR_PROBES or self._evict(self._for_probes, 1):
            return Admission.PROBES
        return Admission.NOTHING

    def _count(self, address: str, change: int) -> None:
        self._counts[address] = count = self._counts.get(address, 0) + change
        if not count:
            del self._counts[address]

    def _evict(self, connections: Collection[Connection], most: int) -> bool:
        """Close up to `most` of the connections that wait for their client; whether there were any.

        Those of the address that has most come first, of them idle ones and TLS handshakes, then those
        whose head is incomplete, then those whose body is or that take their response slowly; the oldest
        first. So slow clients cannot keep others out.
        """
        waiting = [
            (-self._counts.get(self._open[connection], 0), rank, age, connection)
            for age, connection in enumerate(connections)
            if (rank := connection.eviction_rank) is not None
        ]
        victims = heapq.nsmallest(most, waiting, key=lambda each: each[:3])
        for *_, connection in victims:
            self.discard(connection)
            connection.abort()
        return bool(victims)

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
        self._keep_descriptors_free()
        if self._open or not self._closing:
            loop.call_later(SWEEP_SECONDS, self.start_sweeping)

    def _keep_descriptors_free(self) -> None:
        """Make room if the process can hardly open files, whoever has opened so many."""
        try:
            descriptor = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            self.make_room()
        else:
            os.close(descriptor)
            self._free_descriptors(descriptor)

    def _free_descriptors(self, newest: int) -> None:
        """Make room if too few are free: all below `newest` are in use, since the system gives the lowest."""
        if newest >= self._last_descriptor:
            self._evict(self._open, newest - self._last_descriptor + 1)

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
        while self._open:
            self._empty.clear()
            await self._empty.wait()


def most_connections() -> int:
    """How many clients may be connected at a time, so that the process itself can still open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1_000_000 if soft == resource.RLIM_INFINITY else max(soft - 200, 50)


def _last_descriptor() -> int:
    """A connection with this file descriptor, or a higher one, leaves the process too few."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _NEVER if soft == resource.RLIM_INFINITY else soft - _FREE_DESCRIPTORS
