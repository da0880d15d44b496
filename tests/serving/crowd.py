"""A server that can open few files, and the clients that crowd it."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

from tests.serving.conftest import PATIENCE

FILES = 256  # that the server can open
CLIENTS = 150
PROBES = ("/", "/v1/models/model")
HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
ORDINARY = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"  # not a probe


class CrowdedServer:
    """The server, as its clients see it."""

    def __init__(self, address: str, context: ssl.SSLContext | None, errors: Path) -> None:
        self.address = address
        self.port = int(address.rpartition(":")[2])
        self.context = context
        self._errors = errors

    @property
    def printed(self) -> str:
        return self._errors.read_text()

    def connect(self, host: str = "127.0.0.1", *, handshake: bool = True) -> socket.socket:
        """A connection from the address `host` of this machine."""
        sock = socket.create_connection(("127.0.0.1", self.port), PATIENCE, source_address=(host, 0))
        if self.context is None or not handshake:
            return sock
        return self.context.wrap_socket(sock, server_hostname="127.0.0.1")

    def request(self, data: bytes, host: str = "127.0.0.1") -> bytes:
        """The response to a request on a connection of its own."""
        with self.connect(host) as client:
            client.sendall(data)
            return read_response(client)

    def check_serves(self, host: str = "127.0.0.1") -> None:
        """Probes and ordinary requests of a client at `host` get their responses."""
        self.check_probes(host)
        response = self.request(ORDINARY, host)
        assert response.startswith(b"HTTP/1.1 200 "), response

    def check_probes(self, host: str = "127.0.0.1") -> None:
        for path in PROBES:
            response = self.request(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode(), host)
            assert response.startswith(b"HTTP/1.1 200 "), response

    @contextlib.contextmanager
    def crowd(self, sent: bytes, *, handshake: bool = True) -> Iterator[list[socket.socket]]:
        """More connections than the server keeps, each of which sends the beginning of something, or a request.

        The responses to requests are awaited, so that the connections are idle.
        """
        with contextlib.ExitStack() as stack:
            clients = []
            for _ in range(CLIENTS):
                client = stack.enter_context(self.connect(handshake=handshake))
                with contextlib.suppress(OSError):  # it was closed at once
                    client.sendall(sent)
                clients.append(client)
            if sent.endswith(b"\r\n\r\n"):
                for client in clients:
                    with contextlib.suppress(OSError):  # it was closed to make room
                        read_response(client)
            yield clients


def read_response(client: socket.socket) -> bytes:
    """A response with a content length; what there is if the server closes before."""
    data = b""
    while part := client.recv(65_536):
        data += part
        head, end, body = data.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if end and len(body) >= int(length or 0):
            break
    return data
