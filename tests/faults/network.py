"""A network between managers and PostgreSQL that can fall silent, be slow, or lead to another server."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass(eq=False)
class _Link:
    """One connection: both ends, and what its client has sent. A silent one stays so: its packets are lost."""

    client: socket.socket
    server: socket.socket
    sent: bytearray = field(default_factory=bytearray)
    is_silent: bool = False


class Network:
    """Forwards connections to `target`. While it is silent it accepts them, and drops all that is sent."""

    def __init__(self, target: int) -> None:
        """`target` is a port of this machine; it may be changed for later connections."""
        self.target = target
        self.rate: float | None = None  # bytes per second that each client receives; None for any number
        self._silent = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._links: list[_Link] = []

    @classmethod
    @contextmanager
    def running(cls, target: int) -> Iterator[Network]:
        network = cls(target)
        threading.Thread(target=network._accept, daemon=True).start()
        try:
            yield network
        finally:
            network._listener.close()
            network.cut()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Nothing arrives any more. Connections of before stay silent afterwards, too: packets are lost."""
        self._silent = True
        try:
            yield
        finally:
            self._silent = False

    def silence(self, sent: bytes) -> None:
        """Let those connections fall silent, now and for ever, whose client has sent this."""
        found = [link for link in self._links if sent in link.sent]
        assert found
        for link in found:
            link.is_silent = True

    def count(self, sent: bytes) -> int:
        """How often the clients of all connections have sent this."""
        return sum(link.sent.count(sent) for link in self._links)

    def cut(self) -> None:
        """End all connections."""
        links, self._links = self._links, []
        for each in [end for link in links for end in (link.client, link.server)]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                client = self._listener.accept()[0]
                threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with client, socket.socket() as server, suppress(OSError):
            if not self._silent:
                server.connect(("127.0.0.1", self.target))
            link = _Link(client, server, is_silent=self._silent)
            self._links.append(link)
            while True:
                ready = select.select([client] if link.is_silent else [client, server], [], [], 1.0)[0]
                link.is_silent = link.is_silent or self._silent
                for source in ready:
                    if not (data := source.recv(65536)):
                        return
                    if source is client:
                        link.sent += data
                    if not link.is_silent:
                        (server if source is client else client).sendall(data)
                        if self.rate is not None and source is server:
                            time.sleep(len(data) / self.rate)
