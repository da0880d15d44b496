"""What client connections need to know of their transports, and how they end them."""

from __future__ import annotations

import asyncio
import contextlib

LINGER_SECONDS = 2.0  # how long a client may go on sending after the server has sent its last response


def peer_of(transport: asyncio.BaseTransport) -> tuple[str, int] | None:
    """The address and port of the client."""
    peer = transport.get_extra_info("peername")
    return peer[:2] if isinstance(peer, tuple) else None


def descriptor_of(transport: asyncio.BaseTransport) -> int:
    """The file descriptor of the socket; -1 once it is closed."""
    sock = transport.get_extra_info("socket")
    return -1 if sock is None else int(sock.fileno())


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
