"""Ports for servers that a test starts at a port of its choice, or starts again at the same one."""

from __future__ import annotations

import itertools
import os
import random
import socket

# Below the ports that the kernel gives to clients and to servers at port 0: while a server is down,
# nobody gets its port. Each of pytest's workers has a thousand of its own.
_FIRST = 20_000 + 1_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw9").removeprefix("gw"))
_numbers = itertools.count(random.randrange(1_000))


def free_port() -> int:
    """A port that is free on all addresses of this machine, and that no other test gets for a long time."""
    for number in itertools.islice(_numbers, 1_000):
        port = _FIRST + number % 1_000
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:  # in use
                continue
            return port
    raise AssertionError(f"all ports from {_FIRST} on are in use")


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server accepts connections there."""
    with socket.socket() as sock:
        return sock.connect_ex((host, port)) == 0
