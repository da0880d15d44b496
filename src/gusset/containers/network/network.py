"""Connections to the server in a container, also to one that listens on its own 127.0.0.1 only."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from gusset.containers.network.netns_helper import ADDRESSES, CLONE_NEWNET, enter, sockets
from gusset.runtime.environment import child_environment


class Network(Protocol):
    """A way to a server."""

    async def connect(self) -> socket.socket:
        """A connected socket that does not block.

        Raises:
            OSError: nobody listens there (yet).
        """

    def close(self) -> None:
        """Let go of what was held for it."""


class EnteredNetns:
    """Makes sockets in the network of a container, from a thread that has entered it. Needs root.

    Raises:
        OSError: the container has ended.
    """

    def __init__(self, pid: int, port: int) -> None:
        """`pid` is a process of the container's."""
        self._port = port
        self._namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._entered = False
        # One thread, which never leaves the container's network again.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "gusset-network")

    def _make(self) -> list[socket.socket]:
        if not self._entered:
            enter(self._namespace, CLONE_NEWNET)
            self._entered = True
        return sockets()

    async def connect(self) -> socket.socket:
        """See `Network.connect`."""
        made = await asyncio.get_running_loop().run_in_executor(self._thread, self._make)
        return await _connected(made, self._port)

    def close(self) -> None:
        """See `Network.close`."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        os.close(self._namespace)


class HelperNetns:
    """The same without root, for a container of our own account's: through a `doorway`."""

    def __init__(self, pid: int, port: int) -> None:
        """`pid` is a process of the container's."""
        self._port = port
        self._ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "gusset.containers.network.netns_helper",
                str(pid),
                str(theirs.fileno()),
            ],
            pass_fds=[theirs.fileno()],
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "gusset-network")

    def _make(self) -> list[socket.socket]:
        self._ours.send(b".", socket.MSG_NOSIGNAL)
        data, descriptors, _, _ = socket.recv_fds(self._ours, 1, len(ADDRESSES))
        if not data:
            raise ConnectionRefusedError("the container's network cannot be entered")
        return [socket.socket(fileno=each) for each in descriptors]

    async def connect(self) -> socket.socket:
        """See `Network.connect`."""
        made = await asyncio.get_running_loop().run_in_executor(self._thread, self._make)
        for each in made:
            each.setblocking(False)
        return await _connected(made, self._port)

    def close(self) -> None:
        """See `Network.close`."""
        self._ours.shutdown(socket.SHUT_RDWR)  # ends the process, and a wait for it
        self._thread.shutdown(cancel_futures=True)
        self._ours.close()
        self._process.wait()


class HostNetwork:
    """Connects to a port of this machine, for a container on the host's network."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def connect(self) -> socket.socket:
        """See `Network.connect`."""
        return await _connected(sockets(), self._port)

    def close(self) -> None:
        """Nothing is held."""


class PublishedPort:
    """Connects to the door of a `sidecar`, which asks for a word first."""

    def __init__(self, address: tuple[str, int] | str, word: str) -> None:
        """`address` is a host and a port, or a socket's path."""
        self._address = address
        self._word = f"{word}\n".encode()

    async def connect(self) -> socket.socket:
        """See `Network.connect`; that nobody listens behind the door shows as an end at once."""
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, self._address)
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_sendall(sock, self._word)
        except BaseException:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        """Nothing is held."""


def may_enter() -> bool:
    """Whether this process may enter the networks of all containers: root may, with its capabilities."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> 21 & 1)  # CAP_SYS_ADMIN
    return False


async def _connected(made: Sequence[socket.socket], port: int) -> socket.socket:
    """The first of the sockets that finds a server; the others are closed."""
    loop = asyncio.get_running_loop()
    fault = OSError("no address family")
    kept = None
    try:
        for sock in made:
            try:
                await loop.sock_connect(sock, (ADDRESSES[sock.family], port))
            except OSError as error:
                fault = error if isinstance(error, ConnectionRefusedError) else fault
                continue
            kept = sock
            kept.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return kept
    finally:
        for sock in made:
            if sock is not kept:
                sock.close()
    raise fault
