"""Limits on the requests of each client, and on the memory of all of them together."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gusset.addresses import network_of

if TYPE_CHECKING:
    from gusset.runtime.exchange import Exchange


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bytes and seconds for each client, and the memory for all requests together."""

    head: int = 64 * 1024
    body: int = 100 * 1024 * 1024
    head_seconds: float = 30.0  # also for a TLS handshake
    body_seconds: float = 60.0  # plus one second for each `body_rate` bytes that have arrived
    body_rate: float = 8 * 1024
    idle_seconds: float = 75.0
    stall_seconds: float = 60.0  # a client must take some of what is buffered for it within this time
    memory: int = 1024 * 1024 * 1024  # bytes of all requests together; one address may have half of them


class HasPeer(Protocol):
    """A connection whose other end is known."""

    peer: tuple[str, int] | None
    """The address and port of the client."""


def address_of(connection: HasPeer) -> str:
    """The client that a connection counts as: its address, of IPv6 the /64."""
    return network_of(connection.peer[0] if connection.peer else None)


class RequestMemory:
    """Bounds the memory of the requests that are being received or handled, in all and of each address."""

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


class ConnectionMemory:
    """What the requests of one connection take of a server's `RequestMemory`."""

    __slots__ = ("_connection", "_memory", "unfinished")

    def __init__(self, memory: RequestMemory, connection: HasPeer) -> None:
        self._memory = memory
        self._connection = connection
        self.unfinished = 0  # bytes that are counted for the request that is arriving

    def count(self, size: int) -> bool:
        """Count `size` bytes for the request that is arriving; whether there is memory for them."""
        more = size - self.unfinished
        if more > 0:
            if not self._memory.take(address_of(self._connection), more):
                return False
            self.unfinished = size
        return True

    def finish(self) -> int:
        """The request has arrived. Returns its bytes, which are counted until `release`."""
        counted, self.unfinished = self.unfinished, 0
        return counted

    def release(self, exchange: Exchange) -> None:
        """Count a request no longer."""
        if exchange.counted_bytes:
            self._memory.give(address_of(self._connection), exchange.counted_bytes)
            exchange.counted_bytes = 0

    def release_unfinished(self) -> None:
        """Count the request that is arriving no longer."""
        if self.unfinished:
            self._memory.give(address_of(self._connection), self.unfinished)
            self.unfinished = 0
