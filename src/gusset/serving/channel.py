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
from collections.abc import Callable, Mapping
from typing import Any

import orjson

_LENGTH = struct.Struct("!Q")
_LONGEST_REPORT = 16 * 1024 * 1024


class Closed(Exception):
    """The other side has gone."""


class Malformed(Exception):
    """A message arrived that means nothing to us; the next one may be received all the same."""


class Channel:
    """Length-prefixed messages over a stream socket; any thread may send, one receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()
        self._unread = 0  # bytes of a message that was too long

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
            Closed: there will be none.
            Malformed: it is longer than `longest` bytes.
        """
        while self._unread:
            self._unread -= len(self._part(self._unread))
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if longest is not None and length > longest:
            self._unread = length
            raise Malformed(f"it is longer than {longest} bytes")
        return self._exactly(length)

    def close(self) -> None:
        """Close; a `receive` that waits in another thread ends with `Closed`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            parts.append(self._part(size))
            size -= len(parts[-1])
        return b"".join(parts)

    def _part(self, size: int) -> bytes:
        try:
            part = self._socket.recv(min(size, 1 << 20))
        except OSError:
            part = b""
        if not part:
            raise Closed
        return part


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
        """Wait for the next report; its event is known, and each of its fields is of the right type.

        Raises:
            Closed: there will be none.
            Malformed: what came is no report. The reason quotes nothing of it: it may hold a value.
        """
        try:
            report = orjson.loads(channel.receive(_LONGEST_REPORT))
        except orjson.JSONDecodeError:
            raise Malformed("it is not JSON") from None
        event = report.get("event") if isinstance(report, dict) else None
        if not isinstance(event, str) or event not in _FIELDS:
            raise Malformed("its event is unknown")
        for name, is_right in _FIELDS[event].items():
            if not is_right(report.get(name)):
                raise Malformed(f"its {name} is of the wrong type")
        known: dict[str, Any] = report
        return known


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_versions(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(number, int | None) for number in value.values())


# What a worker may report, by its event, and what the fields that belong to it must be.
_FIELDS: Mapping[str, Mapping[str, Callable[[object], bool]]] = {
    "holding": {"versions": _are_versions},
    "loading": {},
    "ready": {},
    "drained": {},
    "failed": {"step": _is_text, "trace": _is_text},
}
