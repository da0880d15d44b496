"""Listening TCP sockets."""

from __future__ import annotations

import errno
import os
import socket

from gusset.addresses import http_url, is_wildcard
from gusset.errors import HostError


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket, non-blocking. Port 0 takes a free port.

    Raises:
        HostError: the port is in use or not permitted, or this machine has no such address.
    """
    # As bytes: Python encodes text as an international name, for which it imports large tables.
    name = host.encode() if host.isascii() else host
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except UnicodeError:  # of the encoding as an international name
        raise HostError(f"cannot listen on {host}: it is not the name of a host", hint="see --host") from None
    except OSError as error:
        raise HostError(f"cannot listen on {host}: {error.strerror}", hint="see --host") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        reason = os.strerror(error.errno or 0).lower()
        is_host = error.errno == errno.EADDRNOTAVAIL
        raise HostError(
            f"cannot listen on {host} port {port}: {reason}",
            hint="choose an address of this machine with --host" if is_host else "choose another with --port",
        ) from None
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket, *, secure: bool = False) -> str:
    """The URL of what is served on a listening socket, for clients on this machine; `secure` is https."""
    host, port = listener.getsockname()[:2]
    return http_url("localhost" if is_wildcard(host) else host, port, scheme="https" if secure else "http")
