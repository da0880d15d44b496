"""The reverse proxy of custom images: Truss's routes on one side, the image's server on the other.

Bytes are passed on as they come, both ways and with back-pressure: bodies are
not buffered as a whole, and headers, chunks and websocket frames arrive as they
were sent. Only what HTTP reserves for a single hop is removed.

`client_connection` reads a client's requests one after the other. Each is a
`ProxiedRequest`, which sends it to the application over an `Upstream` and passes
the response back; after a switch of protocols a `Tunnel` takes over.
`http_messages` parses heads and finds the ends of bodies.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gusset.containers.proxy.client_connection import ClientConnection
from gusset.containers.proxy.proxied_request import Application
from gusset.containers.proxy.upstream import Connect
from gusset.runtime.acceptor import Acceptor
from gusset.runtime.browser_rules import BrowserRules
from gusset.runtime.caller_auth import CallerAuth
from gusset.runtime.connections import OpenConnections, most_connections
from gusset.runtime.exposition import caller_metrics, head, masked_metrics
from gusset.runtime.limits import Limits
from gusset.runtime.tls import ServerTls
from gusset.secrets.hits import Hit


@dataclass(frozen=True)
class Routes:
    """The application's own paths for the routes of a Truss model."""

    predict: str
    readiness: str
    liveness: str


class Proxy:
    """Passes requests from one listening socket to the application."""

    def __init__(
        self,
        connect: Connect,
        routes: Routes,
        *,
        ready: Callable[[], str | None],
        caller_auth: CallerAuth | None = None,
        read_seconds: float = 18_030.0,
        limits: Limits | None = None,
        browser_rules: BrowserRules | None = None,
        hits: Callable[[], Mapping[Hit, int]] = dict,
        is_grpc: bool = False,
    ) -> None:
        """`connect` returns a connected non-blocking TCP socket to the application.

        `ready` returns None when requests may pass, else the reason for a 503.
        With `caller_auth` only callers may send requests; the application does not
        get their keys. `read_seconds` is how long the application may be silent.
        `browser_rules` say which web pages may send requests. `hits` says how often
        values were masked, for gusset's metrics. With `is_grpc` the application speaks
        gRPC: connections with HTTP/2 are passed on whole.
        """
        self._hits = hits
        self._application = Application(
            connect=connect,
            paths=_paths(routes),
            ready=ready,
            caller_auth=caller_auth,
            read_seconds=read_seconds,
            limits=limits or Limits(),
            browser_rules=browser_rules,
            exposition=self._exposition,
            is_grpc=is_grpc,
        )
        # Each client connection may need a second descriptor, for its connection to the application.
        self.connections = OpenConnections(most_connections() // 2, on_sweep=self._on_sweep)
        self._tls: ServerTls | None = None
        self._acceptor: Acceptor | None = None

    async def start(self, listener: socket.socket, *, tls: ServerTls | None = None) -> None:
        """Accept on `listener`, which the proxy owns from now on; with `tls`, encrypted connections."""
        self._tls = tls
        self.connections.start_sweeping()
        self._acceptor = Acceptor(
            listener,
            lambda: ClientConnection(self._application, self.connections),
            self.connections,
            tls=tls,
            handshake_seconds=self._application.limits.head_seconds,
            shared=False,
        )
        await self._acceptor.start()

    async def drain(self, seconds: float) -> None:
        """Accept no more, let requests in flight finish, and return when all connections have ended.

        What takes longer than `seconds` is aborted.
        """
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None
        await self.connections.drain(seconds)

    def _exposition(self) -> bytes:
        application = self._application
        lines = [
            *head("gusset_model_ready", "gauge", "Whether requests reach the application."),
            f"gusset_model_ready {int(application.ready() is None)}",
            *masked_metrics(self._hits()),
            *caller_metrics(application.caller_auth),
        ]
        return "\n".join(lines).encode() + b"\n"

    def _on_sweep(self) -> None:
        if self._tls is not None:
            self._tls.refresh()


def _paths(routes: Routes) -> dict[bytes, bytes]:
    """The application's path for each path of a Truss model."""
    predict, readiness = routes.predict.encode(), routes.readiness.encode()
    return {
        b"/": routes.liveness.encode(),
        b"/v1/models/model": readiness,
        b"/v1/models/model/loaded": readiness,
        b"/v1/models/model:predict": predict,
        b"/v1/models/model%3Apredict": predict,
        b"/v1/models/model%3apredict": predict,
        b"/predict": predict,
        b"/v1/websocket": predict,
    }
