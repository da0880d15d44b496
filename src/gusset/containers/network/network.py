"""Connections to the server in a container, even to one that listens only on the container's 127.0.0.1."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from gusset.containers.network.netns_helper import ADDRESSES, CLONE_NEWNET, enter, sockets
from gusset.runtime.environment import child_environment

_REACH_SECONDS = 1.0
_CAP_SYS_ADMIN = 21  # its bit in a set of capabilities


class Network(Protocol):
    """Connects to a server."""

    async def connect(self) -> socket.socket:
        """A connected, non-blocking socket.

        Raises:
            OSError: nothing listens there (yet).
        """

    def close(self) -> None:
        """Release what was opened for it."""


class EnteredNetns:
    """Opens sockets in a container's network, on a thread that has entered it. Needs root."""

    def __init__(self, namespace: int, port: int) -> None:
        """Takes ownership of `namespace`, a descriptor of a network namespace."""
        self._port = port
        self._namespace = namespace
        self._entered = False
        # One thread, which stays in the container's network for good.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "gusset-network")

    @classmethod
    def open(cls, pid: int, port: int) -> EnteredNetns:
        """For the container of the process `pid`.

        Raises:
            OSError: the container has ended, or the system gives no more files.
        """
        return cls(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC), port)

    async def connect(self) -> socket.socket:
        """See `Network.connect`."""
        opened = await asyncio.get_running_loop().run_in_executor(self._thread, self._open_sockets)
        return await _connect_any(opened, self._port)

    def _open_sockets(self) -> list[socket.socket]:
        if not self._entered:
            enter(self._namespace, CLONE_NEWNET)
            self._entered = True
        return sockets()

    def close(self) -> None:
        """See `Network.close`."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        os.close(self._namespace)


class HelperNetns:
    """Like `EnteredNetns` without root, for a container of this account, by a `netns_helper` process."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket, port: int) -> None:
        """Takes ownership of the process and of gusset's end of its socket."""
        self._process = process
        self._socket = sock
        self._port = port
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "gusset-network")

    @classmethod
    def start(cls, pid: int, port: int) -> HelperNetns:
        """For the container of the process `pid`.

        Raises:
            OSError: the system gives no more processes or files.
        """
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as stack, theirs:
            stack.enter_context(ours)
            process = subprocess.Popen(
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
            stack.pop_all()
        return cls(process, ours, port)

    async def connect(self) -> socket.socket:
        """See `Network.connect`."""
        opened = await asyncio.get_running_loop().run_in_executor(self._thread, self._request_sockets)
        for each in opened:
            each.setblocking(False)
        return await _connect_any(opened, self._port)

    def _request_sockets(self) -> list[socket.socket]:
        self._socket.send(b".", socket.MSG_NOSIGNAL)
        data, descriptors, _, _ = socket.recv_fds(self._socket, 1, len(ADDRESSES))
        if not data:
            raise ConnectionRefusedError("the container's network cannot be entered")
        return [socket.socket(fileno=each) for each in descriptors]

    def close(self) -> None:
        """See `Network.close`."""
        self._socket.shutdown(socket.SHUT_RDWR)  # ends the process, and a `recv_fds` that waits for it
        self._thread.shutdown(cancel_futures=True)
        self._socket.close()
        self._process.wait()


class HostNetwork:
    """Connects to a port of this machine, for a container on the host's network."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def connect(self) -> socket.socket:
        """See `Network.connect`."""
        return await _connect_any(sockets(), self._port)

    def close(self) -> None:
        """Nothing to release."""


class PublishedPort:
    """Connects to the published port of a sidecar, which forwards connections that begin with a password."""

    def __init__(self, address: tuple[str, int] | str, password: str) -> None:
        """`address` is a host and a port, or a socket's path."""
        self._address = address
        self._first_line = f"{password}\n".encode()

    async def connect(self) -> socket.socket:
        """See `Network.connect`. If no server listens behind the port, the connection ends at once."""
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, self._address)
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_sendall(sock, self._first_line)
        except BaseException:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        """Nothing to release."""


def is_reachable(address: str, port: int) -> bool:
    """Whether something listens there that this process can connect to."""
    try:
        with socket.create_connection((address, port), timeout=_REACH_SECONDS):
            return True
    except OSError:
        return False


def may_enter() -> bool:
    """Whether this process may enter the networks of all containers, which needs CAP_SYS_ADMIN."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False


async def _connect_any(candidates: Sequence[socket.socket], port: int) -> socket.socket:
    """The first of the sockets that connects; the others are closed."""
    loop = asyncio.get_running_loop()
    failure = OSError("no address family")
    connected = None
    try:
        for sock in candidates:
            try:
                await loop.sock_connect(sock, (ADDRESSES[sock.family], port))
            except OSError as error:
                failure = error if isinstance(error, ConnectionRefusedError) else failure
                continue
            connected = sock
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connected
    finally:
        for sock in candidates:
            if sock is not connected:
                sock.close()
    raise failure
