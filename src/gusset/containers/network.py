"""Connections to the server in a container, also to one that listens on its own 127.0.0.1 only."""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import os
import socket
from pathlib import Path

from gusset.errors import HostError

_CLONE_NEWNET = 0x40000000


class Inside:
    """Makes sockets in the network of a container, from a thread that has entered it. Needs root."""

    def __init__(self, pid: int, port: int) -> None:
        """`pid` is a process of the container's."""
        self._port = port
        self._namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        # One thread, which never leaves the container's network again.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "gusset-network", initializer=self._enter)

    def _enter(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(self._namespace, _CLONE_NEWNET) != 0:
            raise HostError(f"the container's network cannot be entered: {os.strerror(ctypes.get_errno())}")

    async def connect(self) -> socket.socket:
        """A connected socket that does not block.

        Raises:
            OSError: nobody listens there (yet).
        """
        loop = asyncio.get_running_loop()
        made = await loop.run_in_executor(self._thread, _sockets)
        return await _connected(made, self._port)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        os.close(self._namespace)


class Outside:
    """Connects to a port of this machine: one that is published, or of a container on the host's network."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def connect(self) -> socket.socket:
        """See `Inside.connect`."""
        return await _connected(_sockets(), self._port)

    def close(self) -> None:
        """Nothing is held."""


def may_enter() -> bool:
    """Whether this process may enter the networks of containers: root may, with its capabilities."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> 21 & 1)  # CAP_SYS_ADMIN
    return False


def _sockets() -> dict[str, socket.socket]:
    made = {}
    for address, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
        try:
            made[address] = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:  # a kernel without that family
            continue
    return made


async def _connected(made: dict[str, socket.socket], port: int) -> socket.socket:
    """The first of the sockets that finds a server; the others are closed."""
    loop = asyncio.get_running_loop()
    fault = OSError("no address family")
    kept = None
    try:
        for address, sock in made.items():
            try:
                await loop.sock_connect(sock, (address, port))
            except OSError as error:
                fault = error if isinstance(error, ConnectionRefusedError) else fault
                continue
            kept = sock
            kept.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return kept
    finally:
        for sock in made.values():
            if sock is not kept:
                sock.close()
    raise fault
