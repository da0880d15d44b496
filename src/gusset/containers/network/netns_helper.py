"""Opens sockets in a container's network: `python -P -m gusset.containers.network.netns_helper PID FD`.

A process of its own, because only a single-threaded process may enter the user
namespace whose capabilities it needs. It holds no secret. For each byte that it
reads from the socket FD it sends back two sockets, until FD is closed.
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
    """Move this thread into the namespace of that descriptor.

    Raises:
        OSError: it may not enter.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, kind) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def sockets() -> list[socket.socket]:
    """One non-blocking socket for each family of `ADDRESSES`, in the network of this thread."""
    opened = []
    for family in ADDRESSES:
        with contextlib.suppress(OSError):  # a kernel without that family
            opened.append(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
    return opened


def main(pid: int, descriptor: int) -> int:
    """Enter the network of the process `pid`; send sockets for each byte from `descriptor`."""
    for kind, flag in (("user", _CLONE_NEWUSER), ("net", CLONE_NEWNET)):
        with open(f"/proc/{pid}/ns/{kind}") as namespace:  # noqa: PTH123  # pathlib is slow to import
            enter(namespace.fileno(), flag)
    with socket.socket(fileno=descriptor) as requests:
        while requests.recv(1):
            opened = sockets()
            socket.send_fds(requests, [b"."], [each.fileno() for each in opened])
            for each in opened:
                each.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
