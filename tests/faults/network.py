"""A network between managers and PostgreSQL that can fall silent, or lead to another server."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Network:
    """Forwards connections to `target`. While it is silent it accepts them, and drops all that is sent."""

    def __init__(self, target: int) -> None:
        """`target` is a port of this machine; it may be changed for later connections."""
        self.target = target
        self._silent = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []

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

    def cut(self) -> None:
        """End all connections."""
        pairs, self._pairs = self._pairs, []
        for each in [end for pair in pairs for end in pair]:
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
            self._pairs.append((client, server))
            dropped = self._silent
            while True:
                ready = select.select([client] if dropped else [client, server], [], [], 1.0)[0]
                dropped = dropped or self._silent
                for source in ready:
                    if not (data := source.recv(65536)):
                        return
                    if not dropped:
                        (server if source is client else client).sendall(data)
