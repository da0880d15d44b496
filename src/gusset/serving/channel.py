"""The socket between supervisor and worker: whole messages, in order, both ways.

What the supervisor sends is pickled, since a config holds whatever YAML can
say. What the worker sends is JSON, since it shares its process with the
model's code, and a pickle from there could run anything in the supervisor.
"""

from __future__ import annotations

import contextlib
import pickle
import socket
import struct
import threading
from typing import Any

import orjson

_LENGTH = struct.Struct("!Q")
_LONGEST_REPORT = 16 * 1024 * 1024


class Closed(Exception):
    """The other side has gone."""


class Channel:
    """Length-prefixed messages over a stream socket; any thread may send, one receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()

    def send(self, message: bytes) -> None:
        """Send one message whole.

        Raises:
            Closed: nobody will receive it.
        """
        try:
            with self._sending:
                self._socket.sendall(_LENGTH.pack(len(message)) + message)
        except OSError:
            raise Closed from None

    def receive(self, longest: int | None = None) -> bytes:
        """Wait for the next message.

        Raises:
            Closed: there will be none, or it would be longer than `longest` bytes.
        """
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if longest is not None and length > longest:
            raise Closed
        return self._exactly(length)

    def close(self) -> None:
        """Close; a `receive` that waits in another thread ends with `Closed`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = self._socket.recv(min(size, 1 << 20))
            except OSError:
                part = b""
            if not part:
                raise Closed
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class Orders:
    """Supervisor to worker: dicts of a config's types and of raw values."""

    @staticmethod
    def send(channel: Channel, order: dict[str, Any]) -> None:
        channel.send(pickle.dumps(order, protocol=5))

    @staticmethod
    def receive(channel: Channel) -> dict[str, Any]:
        order: dict[str, Any] = pickle.loads(channel.receive())  # noqa: S301  # from our own parent
        return order


class Reports:
    """Worker to supervisor: JSON objects, taken with the care that user code deserves."""

    @staticmethod
    def send(channel: Channel, report: dict[str, Any]) -> None:
        channel.send(orjson.dumps(report))

    @staticmethod
    def receive(channel: Channel) -> dict[str, Any]:
        try:
            report = orjson.loads(channel.receive(_LONGEST_REPORT))
        except orjson.JSONDecodeError:
            raise Closed from None
        return report if isinstance(report, dict) else {}
