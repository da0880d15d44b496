"""Listening TCP sockets."""

from __future__ import annotations

import os
import socket

from gusset.errors import HostError

DRAIN_SECONDS = 30.0  # that a stopping server waits for requests under way


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket.

    Raises:
        HostError: the port is in use, may not be used, or there is no such address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise HostError(f"{host} cannot be listened on: {error.strerror}", hint="see --host") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        reason = os.strerror(error.errno or 0).lower()
        raise HostError(
            f"port {port} on {host} cannot be used: {reason}", hint="choose another one with --port"
        ) from None
    listener.setblocking(False)
    return listener
