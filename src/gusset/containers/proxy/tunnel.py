"""A client and the application after a switch of protocols: bytes both ways, until both sides have ended."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Protocol

from gusset.containers.proxy.upstream import Upstream
from gusset.runtime.transports import send_eof

log = logging.getLogger("gusset")


class TunnelClient(Protocol):
    """The client's connection, as a tunnel uses it."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport

    def update_reading(self) -> None:
        """Read from the client only as fast as the application takes what it sends."""

    def close(self, *, reset: bool = False) -> None:
        """Close once what was written has been sent; or at once with a reset."""

    def abort(self) -> None:
        """Close at once."""


class Tunnel:
    """Passes bytes on as they are. When one side sends no more, the other may continue for a while."""

    def __init__(
        self,
        client: TunnelClient,
        upstream: Upstream,
        *,
        silent_seconds: float,
        half_closed_seconds: float,
    ) -> None:
        """`silent_seconds`: for how long the tunnel may pass no byte.

        `half_closed_seconds`: how long one side may still send after the other has ended.
        """
        self._client = client
        self.upstream = upstream
        self._silent_seconds = silent_seconds
        self._half_closed_seconds = half_closed_seconds
        self._client_at_end = False
        self._has_ended = False  # both sides have
        self._deadline = math.inf  # once one side has ended

    def send(self, data: bytes) -> None:
        """Pass on what the client has sent."""
        self.upstream.write(data)

    def end_of_client(self) -> bool:
        """Tell the application that the client sends no more; returns whether its connection stays open."""
        self._client_at_end = True
        self.upstream.write_eof()
        return self._stays_open()

    def expire(self, now: float) -> None:
        """End a tunnel that has been silent, or half-closed, for too long."""
        if now >= self._deadline:
            self._client.abort()
        elif now >= self.upstream.touched + self._silent_seconds:
            log.warning("The application was silent for more than %g s.", self._silent_seconds)
            self._client.close(reset=True)

    def abandon(self) -> None:
        """Drop the connection to the application, unless it is about to close by itself."""
        if not self._has_ended:
            self.upstream.abort()

    # Called by the upstream connection.

    def write(self, data: bytes) -> None:
        self._client.transport.write(data)

    def half_close(self) -> None:
        send_eof(self._client.transport)
        if not self._stays_open():
            self._client.transport.close()

    def lost(self, fault: str | None) -> None:
        """End the client's connection: by a reset, if the application's was broken."""
        self._client.close(reset=fault is not None)

    def flow(self) -> None:
        self._client.update_reading()

    def _stays_open(self) -> bool:
        """Whether one of the two sides may still send."""
        if self._client_at_end and self.upstream.at_end:
            self._has_ended = True
            self.upstream.close()
            return False
        self._deadline = self._client.loop.time() + self._half_closed_seconds
        return True
