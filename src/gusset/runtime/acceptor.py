"""Accepts the connections of a listening socket, with TLS or without, for the HTTP server and the proxy."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any

from gusset.runtime.connections import Admission, OpenConnections
from gusset.runtime.tls import ServerTls

log = logging.getLogger("gusset.http")

_BACKLOG = 1024
_SHARED_PAUSE = 0.001  # seconds in which other processes may accept, after one connection on a shared socket
_ROOM_PAUSE = 0.01  # seconds in which connections that make room are closed
_NO_ROOM_PAUSE = 1.0  # seconds until the next attempt when no connection could make room
_FIRST_REQUEST = 0.5  # seconds in which a handshake may still end, and a request begin, on a draining server


class Acceptor:
    """Accepts connections, and counts those with TLS from the start of their handshakes.

    Without TLS, on a socket of its own, asyncio's server accepts: that takes a
    fifth less CPU time per connection than a loop in Python, and each connection
    counts itself at once. In the other cases the difference is negligible or one
    connection is to be accepted at a time.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        connections: OpenConnections,
        *,
        tls: ServerTls | None,
        handshake_seconds: float,
        shared: bool,
    ) -> None:
        """`make_protocol` makes the protocol of a new connection, which adds itself to `connections`.

        When other processes accept on the listener, too (`shared`), one connection
        is accepted at a time, so that a burst spreads over the processes.
        """
        self._listener = listener
        self._make_protocol = make_protocol
        self._connections = connections
        self._tls = tls
        self._handshake_seconds = handshake_seconds
        self._shared = shared
        self._server: asyncio.Server | None = None
        self._is_open = False
        self._opening: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Accept from now on. The listener belongs to the acceptor."""
        self._is_open = True
        if self._tls is None and not self._shared:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(
                self._make_protocol, sock=self._listener, backlog=_BACKLOG
            )
        else:
            self._resume()

    def close(self) -> None:
        """Accept no more, and close the listener. Handshakes under way continue."""
        self._is_open = False
        if self._server is not None:
            self._server.close()
        else:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()

    def _resume(self) -> None:
        if self._is_open:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except (BlockingIOError, ConnectionError):  # another process has it, or the client has gone
            return
        except OSError as error:  # no descriptor is free: the client waits in the socket's queue until one is
            if self._connections.make_room():
                self._pause(_ROOM_PAUSE)
            else:
                log.error("A connection cannot be accepted: %s", error.strerror)  # noqa: TRY400
                self._pause(_NO_ROOM_PAUSE)
            return
        self._open(sock, address)
        if self._shared:
            self._pause(_SHARED_PAUSE)

    def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        loop.call_later(seconds, self._resume)

    def _open(self, sock: socket.socket, address: Any) -> None:
        if self._tls is None:
            opening = self._connect(sock)
        else:
            handshake = _Handshake(sock, address, self._make_protocol, self._connections)
            if self._connections.add(handshake) is Admission.NOTHING:
                sock.close()
                return
            opening = self._shake_hands(sock, handshake, self._tls)
        task = asyncio.get_running_loop().create_task(opening)
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client has just gone
            await asyncio.get_running_loop().connect_accepted_socket(self._make_protocol, sock)

    async def _shake_hands(self, sock: socket.socket, handshake: _Handshake, tls: ServerTls) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: handshake,
                sock,
                ssl=tls.context,
                ssl_handshake_timeout=self._handshake_seconds,
            )
        except OSError:  # it failed, took too long or was aborted
            pass
        finally:
            self._connections.discard(handshake)


class _Handshake(asyncio.Protocol):
    """A TLS handshake. It counts as an idle connection; after it, another protocol has the connection."""

    eviction_rank = 0

    def __init__(
        self,
        sock: socket.socket,
        address: Any,
        make_protocol: Callable[[], asyncio.Protocol],
        connections: OpenConnections,
    ) -> None:
        self.peer: tuple[str, int] | None = address[:2]
        self._sock = sock
        self._make_protocol = make_protocol
        self._connections = connections
        self._deadline = float("inf")

    def connection_made(self, transport: Any) -> None:
        """Called by asyncio after the handshake."""
        self._connections.discard(self)
        protocol = self._make_protocol()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)

    def fileno(self) -> int:
        return self._sock.fileno()

    def finish(self) -> None:
        self._deadline = asyncio.get_running_loop().time() + _FIRST_REQUEST

    def expire(self, now: float) -> None:
        if now >= self._deadline:
            self.abort()

    def abort(self) -> None:
        with contextlib.suppress(OSError):  # the client has just gone
            self._sock.shutdown(socket.SHUT_RDWR)
