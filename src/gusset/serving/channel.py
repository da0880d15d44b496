"""Framing of the socket between supervisor and worker: whole messages, in order, in both directions.

`protocol.py` defines what the messages contain.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

_LENGTH = struct.Struct("!Q")


class Closed(Exception):
    """The other side has closed the connection."""


class Malformed(Exception):
    """An invalid message was received; the next one can still be received."""


class Channel:
    """Length-prefixed messages over a stream socket; any thread may send, one receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()
        self._unread = 0  # bytes left of a message that was too long

    def send(self, message: bytes) -> None:
        """Send one message whole.

        Raises:
            Closed: the other side cannot receive it any more.
        """
        try:
            with self._sending:
                self._socket.sendall(_LENGTH.pack(len(message)) + message)
        except OSError:
            raise Closed from None

    def receive(self, max_bytes: int | None = None) -> bytes:
        """Wait for the next message.

        Raises:
            Closed: there will be no more messages.
            Malformed: it is longer than `max_bytes`.
        """
        while self._unread:
            self._unread -= len(self._recv_some(self._unread))
        (length,) = _LENGTH.unpack(self._recv_exactly(_LENGTH.size))
        if max_bytes is not None and length > max_bytes:
            self._unread = length
            raise Malformed(f"it is longer than {max_bytes} bytes")
        return self._recv_exactly(length)

    def close(self) -> None:
        """Close the socket; a `receive` that waits in another thread raises `Closed`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _recv_exactly(self, size: int) -> bytes:
        parts = []
        while size:
            parts.append(self._recv_some(size))
            size -= len(parts[-1])
        return b"".join(parts)

    def _recv_some(self, size: int) -> bytes:
        try:
            part = self._socket.recv(min(size, 1 << 20))
        except OSError:
            part = b""
        if not part:
            raise Closed
        return part
