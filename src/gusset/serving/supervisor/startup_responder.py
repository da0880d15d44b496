"""Responds on the deployment's port while the deployment is still being prepared.

That may take minutes, for example to make the model's environment, and it blocks
the main thread. So this is a thread with an event loop of its own.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable

from gusset.runtime.http_server import HttpServer
from gusset.runtime.request_parser import Gate
from gusset.runtime.responses import respond_not_ready
from gusset.runtime.tls import ServerTls

_DELAY = 0.5  # seconds; a start that is faster needs no event loop for this
_DRAIN = 2.0  # seconds for requests in flight


class StartupResponder:
    """Liveness is 200; everything else is 503 with the reason."""

    def __init__(
        self,
        listener: socket.socket,
        reason: Callable[[], str],
        *,
        gates: tuple[Gate | None, ...],
        tls: ServerTls | None,
    ) -> None:
        """`reason` is called on the responder's thread. For `gates` see `RequestRules`."""
        self._listener = listener
        self._reason = reason
        self._gates = gates
        self._tls = tls
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="startup responder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Accept no more connections, and return when requests in flight have their responses."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        if not self._stopped.wait(_DELAY):
            asyncio.run(self._respond_until_stopped())

    async def _respond_until_stopped(self) -> None:
        server = HttpServer(
            lambda exchange: respond_not_ready(exchange, self._reason()),
            one_request_each=True,
            gates=self._gates,
        )
        # `shared`: when asyncio's own server is closed, it drops connections that it has just accepted.
        await server.start(self._listener.dup(), shared=True, tls=self._tls)
        await asyncio.to_thread(self._stopped.wait)
        await server.drain(_DRAIN)
