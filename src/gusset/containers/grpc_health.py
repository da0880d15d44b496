"""Calls the standard health service of a gRPC server.

https://grpc.io/docs/guides/health-checking/ has the protocol. The two messages have one field each, so
they are written and read here; HTTP/2 is the library h2's.
"""

# Imports in functions: the library h2 is an optional extra.

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable
from socket import socket
from typing import Any

from gusset.errors import UsageError

METHOD = "grpc.health.v1.Health/Check"

_STREAM = 1
_READ = 64 * 1024  # bytes
_MAX_RESPONSE = 1024  # bytes; the message has two
_EMPTY_MESSAGE = b"\0\0\0\0\0"  # not compressed, no bytes
_UNIMPLEMENTED = "12"
_STATUS_FIELD = 0x08  # field 1, a variable-length integer


class GrpcHealth(enum.Enum):
    """The status of a gRPC server as a whole."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    NOT_OFFERED = -1  # it responds, but has no health service

    @property
    def is_ready(self) -> bool:
        return self in (GrpcHealth.SERVING, GrpcHealth.NOT_OFFERED)


def check_library() -> None:
    """Raise UsageError if the library for HTTP/2 is not installed."""
    try:
        import h2  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError(
            "images that serve gRPC need the library h2", hint="pip install 'gusset[grpc]'"
        ) from None


async def check_health(connect: Callable[[], Awaitable[socket]]) -> GrpcHealth:
    """The health of the server that `connect` connects to. The caller limits how long it may take.

    Raises:
        OSError: the server cannot be reached, does not speak gRPC, or refused the call.
    """
    from h2.connection import H2Connection
    from h2.exceptions import ProtocolError

    loop = asyncio.get_running_loop()
    call, connection = _Call(), H2Connection()
    with await connect() as sock:
        connection.initiate_connection()
        connection.send_headers(_STREAM, _HEADERS)
        connection.send_data(_STREAM, _EMPTY_MESSAGE, end_stream=True)
        while not call.has_ended:
            await loop.sock_sendall(sock, connection.data_to_send())
            received = await loop.sock_recv(sock, _READ)
            if not received:
                raise ConnectionError(f"it closed the connection during {METHOD}")
            try:
                for event in connection.receive_data(received):
                    call.handle(event)
            except ProtocolError as error:
                raise ConnectionError(f"it does not speak HTTP/2: {type(error).__name__}") from None
    return call.result()


_HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", f"/{METHOD}"),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("user-agent", "gusset"),
]


class _Call:
    """What the server has responded so far."""

    def __init__(self) -> None:
        self.has_ended = False
        self._message = b""
        self._headers: dict[str, str] = {}

    def handle(self, event: Any) -> None:
        """Note one of h2's events.

        Raises:
            OSError: the call failed.
        """
        kind = type(event).__name__
        if kind in ("ResponseReceived", "TrailersReceived"):
            self._headers |= {_text(name): _text(value) for name, value in event.headers}
        elif kind == "DataReceived":
            self._message += event.data
            if len(self._message) > _MAX_RESPONSE:
                raise ConnectionError(f"its response to {METHOD} is too large")
        elif kind in ("StreamReset", "ConnectionTerminated"):
            raise ConnectionError(f"it ended {METHOD} with HTTP/2's error {int(event.error_code)}")
        self.has_ended = self.has_ended or kind == "StreamEnded"

    def result(self) -> GrpcHealth:
        """The status that the server responded with.

        Raises:
            OSError: it responded with an error, or with something else.
        """
        status = self._headers.get("grpc-status")
        if status == _UNIMPLEMENTED:
            return GrpcHealth.NOT_OFFERED
        if status != "0":
            found = "no grpc-status" if status is None else f"grpc-status {status}"
            raise ConnectionError(f"its response to {METHOD} has {found}")
        message = self._message[len(_EMPTY_MESSAGE) :]
        if message[:1] != bytes([_STATUS_FIELD]) or len(message) < 2:
            return GrpcHealth.UNKNOWN  # a field that has its default is left out
        return GrpcHealth(message[1]) if message[1] in (1, 2) else GrpcHealth.UNKNOWN


def _text(value: bytes | str) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
