"""The open connections of a server: their number, their deadlines, and how they are drained.

Used by the HTTP server and by the reverse proxy of custom images.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import heapq
import logging
import os
import resource
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Protocol

from gusset.bugs import log_bug
from gusset.runtime.limits import HasPeer, address_of

log = logging.getLogger("gusset.http")

SWEEP_SECONDS = 0.5  # between two checks of deadlines
_CHECKED = 1000  # connections whose deadlines are checked at a time; more where there are many
_PARTS = 8  # in which many connections are checked
_EVICTED_SHARE = 50  # of so many connections, one is closed at a time to make room
_FOR_PROBES = 16  # connections that may still send probes when requests in flight have taken all others
_SPARE_FILES = 32  # that the process must still be able to open; else new connections replace others
_LEAST_FILES = 8  # with fewer, connections are closed at once
_LEAST = 16  # connections that may be open in any case
_MANY = 1_000_000
_OPEN_FILES = Path("/proc/self/fd")


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

    A connection counts from when it is accepted until its socket closes, also
    during a TLS handshake and as a websocket. One address may have three quarters
    of all. Websockets may be three quarters, and those of one address half, so
    that requests find room.
    """

    def __init__(self, most: int, *, on_sweep: Callable[[], object] = lambda: None) -> None:
        """`most` connections may be open. `on_sweep` is called before each check of the deadlines."""
        self._most = most
        self._share = max(1, most // _EVICTED_SHARE)
        self._room = most  # the number that may be open now
        self._room_of_one = most * 3 // 4
        self._most_upgraded = most * 3 // 4
        self._most_upgraded_of_one = most // 2
        self._on_sweep = on_sweep
        self._open: dict[Connection, str] = {}  # the oldest first, with the address that each counts for
        self._counts: dict[str, int] = {}  # of each address, without those for probes
        self._for_probes: dict[Connection, None] = {}  # the oldest first
        self._upgraded: set[Connection] = set()
        self._unchecked: list[Connection] = []  # whose deadlines are checked next, from the end
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
        address = address_of(connection)
        of_one = self._counts.get(address, 0)
        if of_one >= self._room_of_one or len(self._open) - len(self._for_probes) >= self._room:
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
        return self._evict(self._open, self._share)

    def _replace_others(self, address: str) -> Admission:
        """Make room for a connection of `address` when it, or all together, have as many as they may."""
        others = [each for each in self._open if each not in self._for_probes]
        if self._counts.get(address, 0) >= self._room_of_one:
            others = [each for each in others if self._open[each] == address]
        if self._evict(others, self._share):
            return Admission.EVERYTHING
        if len(self._for_probes) < _FOR_PROBES or self._evict(self._for_probes, 1):
            return Admission.PROBES
        return Admission.NOTHING

    def _count(self, address: str, change: int) -> None:
        self._counts[address] = count = self._counts.get(address, 0) + change
        if not count:
            del self._counts[address]

    def _evict(self, connections: Collection[Connection], most: int) -> bool:
        """Close up to `most` of the connections that wait for their client. Returns whether there were any.

        The address with the most connections comes first; of each, idle ones and TLS handshakes, then those
        with an incomplete head, then those with an incomplete body or a slowly read response; the oldest
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
        """Check deadlines now and every `SWEEP_SECONDS`, until all have ended after `close`.

        If there are many, only a part is checked each time, so each one within `_PARTS` times that.
        """
        for step in (self._on_sweep, self._check_deadlines, self._fit_files):
            try:
                step()
            except Exception as error:  # without the next sweep no connection would have deadlines any more
                log_bug(log, error)
        if self._open or not self._closing:
            asyncio.get_running_loop().call_later(SWEEP_SECONDS, self.start_sweeping)

    def _check_deadlines(self) -> None:
        now = asyncio.get_running_loop().time()
        if not self._unchecked:
            self._unchecked = list(self._open)
        for _ in range(min(max(_CHECKED, len(self._open) // _PARTS), len(self._unchecked))):
            connection = self._unchecked.pop()
            if connection not in self._open:
                continue
            try:
                connection.expire(now)
            except Exception as error:
                log_bug(log, error)
                connection.abort()

    def _fit_files(self) -> None:
        """Limit the connections so that the process can still open files, whatever has opened the others."""
        free = _free_files()
        self._room = min(self._most, max(_LEAST, len(self._open) + free - _SPARE_FILES))
        self._room_of_one = self._room * 3 // 4
        if free < _LEAST_FILES:
            self._evict(self._open, _LEAST_FILES - free)

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

    def release_in_child(self) -> None:
        """In a forked child process: keep no connection open that the parent closes."""
        null = os.open(os.devnull, os.O_RDWR)
        for connection in self:
            if (descriptor := connection.fileno()) >= 0:
                os.dup2(null, descriptor, inheritable=False)
        os.close(null)

    async def _until_empty(self) -> None:
        while self._open:
            self._empty.clear()
            await self._empty.wait()


def most_connections() -> int:
    """How many clients may be connected at a time, so that the process itself can still open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MANY if soft == resource.RLIM_INFINITY else max(soft - 200, 50)


def _free_files() -> int:
    """How many files the process can still open; many where the system does not say how many are open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MANY
    try:
        # Linux before 6.2 gives a size of 0.
        return soft - (_OPEN_FILES.stat().st_size or sum(1 for _ in _OPEN_FILES.iterdir()))
    except FileNotFoundError:
        return _MANY
    except OSError:  # not even the folder could be opened
        return 0
