"""Makes sockets in a container's network: `python -P -m gusset.containers.network.netns_helper PID FD`.

A process of its own, since only one with a single thread may enter the user
namespace in which it has the right to. It asks nothing and holds no value: for
each byte on the socket FD it hands back two sockets, until that closes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys

_CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

ADDRESSES = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def enter(namespace: int, kind: int) -> None:
    """Have this thread be in the namespace of that descriptor.

    Raises:
        OSError: it may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, kind) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def sockets() -> list[socket.socket]:
    """One for each family of `ADDRESSES`, of the network that this thread is in."""
    made = []
    for family in ADDRESSES:
        with contextlib.suppress(OSError):  # a kernel without that family
            made.append(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
    return made


def main(pid: int, descriptor: int) -> int:
    """`pid` is a process of the container's."""
    for kind, flag in (("user", _CLONE_NEWUSER), ("net", CLONE_NEWNET)):
        with open(f"/proc/{pid}/ns/{kind}") as namespace:  # noqa: PTH123  # pathlib is slow to import
            enter(namespace.fileno(), flag)
    with socket.socket(fileno=descriptor) as asked:
        while asked.recv(1):
            made = sockets()
            socket.send_fds(asked, [b"."], [each.fileno() for each in made])
            for each in made:
                each.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
