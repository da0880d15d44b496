"""Notices to systemd, by the protocol of sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(address: str | None, state: str) -> None:
    """Send `state`, such as "READY=1", to the socket that NOTIFY_SOCKET names; None is no socket.

    Failures are ignored, as systemd's own library recommends: the service works without.
    """
    if not address:
        return
    if address.startswith("@"):  # of the abstract namespace
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(state.encode(), socket.MSG_DONTWAIT, os.fsencode(address))
