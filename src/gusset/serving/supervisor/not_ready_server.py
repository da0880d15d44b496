"""Responds on the deployment's port while no replica does."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection

from gusset.runtime.exchange import Exchange
from gusset.runtime.http_server import HttpServer
from gusset.runtime.request_parser import Gate
from gusset.runtime.responses import respond_not_ready
from gusset.runtime.tls import ServerTls
from gusset.serving.supervisor.replica import ReplicaState

_REASONS = {
    ReplicaState.STARTING: "It is starting.",
    ReplicaState.LOADING: "It is loading.",
    ReplicaState.FAILED: "It has failed and will be restarted.",
    ReplicaState.STOPPING: "It is stopping.",
}


class NotReadyServer:
    """Liveness is 200; everything else is 503 with the reason why no replica is ready."""

    def __init__(
        self,
        listener: socket.socket,
        states: Callable[[], Collection[ReplicaState]],
        *,
        is_fetching: Callable[[], bool],
        gates: tuple[Gate | None, ...],
        tls: ServerTls | None,
    ) -> None:
        """`states` returns those of all replicas, `is_fetching` whether they wait for downloads.

        For `gates` see `RequestRules`.
        """
        self._gates = gates
        self._listener = listener
        self._states = states
        self._is_fetching = is_fetching
        self._tls = tls
        self._server: HttpServer | None = None

    async def start(self) -> None:
        """Accept connections, unless it does so already.

        Raises:
            OSError: the system gives no more files.
        """
        if self._server is None:
            listener = self._listener.dup()
            self._server = HttpServer(self._respond, one_request_each=True, gates=self._gates)
            # `shared`: when asyncio's own server is closed, it drops connections that it has just accepted.
            await self._server.start(listener, shared=True, tls=self._tls)

    def stop(self) -> None:
        """Accept no more connections; requests in flight finish."""
        if self._server is not None:
            self._server.stop_accepting()
            self._server = None

    def _respond(self, exchange: Exchange) -> None:
        states = set(self._states())
        if self._is_fetching() and not states & {ReplicaState.FAILED, ReplicaState.STOPPING}:
            respond_not_ready(exchange, "Its weights or data are being downloaded.")
            return
        reason = next((text for state, text in _REASONS.items() if state in states), None)
        respond_not_ready(exchange, reason or "It was not ready a moment ago; try again.")
