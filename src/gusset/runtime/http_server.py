"""HTTP/1.1 on asyncio: what the connections of one listening socket have in common.

Serves models and the secret manager, and knows of neither. Each connection has
one `HttpConnection`; its requests are handled one after the other. A request
handler gets each as an `Exchange` and responds at once or later, on the event
loop's thread.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from gusset.runtime.acceptor import Acceptor
from gusset.runtime.connections import OpenConnections, most_connections
from gusset.runtime.exchange import Exchange
from gusset.runtime.http_connection import HttpConnection, ServerState
from gusset.runtime.limits import Limits, RequestMemory
from gusset.runtime.request_parser import Gate, RefusalRenderer, RequestRules
from gusset.runtime.responses import ALL_IN_USE, Response, caller_error

if TYPE_CHECKING:
    from gusset.runtime.tls import ServerTls

RequestHandler = Callable[[Exchange], None]


class HttpServer:
    """The connections of one listening socket."""

    def __init__(
        self,
        handler: RequestHandler,
        *,
        limits: Limits | None = None,
        one_request_each: bool = False,
        gates: tuple[Gate | None, ...] = (),
        is_probe: Callable[[Exchange], bool] = lambda exchange: True,
        skips_body: Callable[[Exchange], bool | Awaitable[bool]] | None = None,
        body_limit: Callable[[Exchange], int] | None = None,
        render_refusal: RefusalRenderer = lambda exchange, status, text: caller_error(status, text),
        takes_over: Callable[[Exchange], bool] = lambda exchange: False,
        observe: Callable[[Exchange, int], object] = lambda exchange, status: None,
    ) -> None:
        """`one_request_each` closes every connection after its first response.

        `gates`, `skips_body`, `body_limit`, `render_refusal` and `takes_over` are explained at
        `RequestRules`; without `body_limit` it is that of `limits`. `is_probe` says which requests
        are handled even when requests in flight and websockets take all connections.
        `observe` gets each handled request when it is over, with the status of
        its response, or 499 if the connection ended before.
        """
        limits = limits or Limits()
        rules = RequestRules(
            limits=limits,
            memory=RequestMemory(limits.memory),
            gates=tuple(gate for gate in gates if gate is not None),
            skips_body=skips_body,
            body_limit=body_limit,
            takes_over=takes_over,
            render_refusal=render_refusal,
        )

        def refuse_all_but_probes(exchange: Exchange) -> Response | None:
            return None if is_probe(exchange) else rules.render_busy(exchange, ALL_IN_USE)

        self.connections = OpenConnections(most_connections(), on_sweep=self._on_sweep)
        self._state = ServerState(
            handler=handler,
            limits=limits,
            rules=rules,
            rules_for_probes=replace(rules, gates=(*rules.gates, refuse_all_but_probes)),
            observe=observe,
            connections=self.connections,
            closing=one_request_each,
            date=b"",
        )
        self._acceptor: Acceptor | None = None
        self._tls: ServerTls | None = None

    async def start(
        self, listener: socket.socket, *, shared: bool = False, tls: ServerTls | None = None
    ) -> None:
        """Accept on `listener`, which the server owns from now on.

        `shared`: other processes accept on it, too; see `Acceptor`. With `tls` the
        connections are encrypted; its files are read again when they change.
        """
        self._tls = tls
        self.connections.start_sweeping()
        self._acceptor = Acceptor(
            listener,
            lambda: HttpConnection(self._state),
            self.connections,
            tls=tls,
            handshake_seconds=self._state.limits.head_seconds,
            shared=shared,
        )
        await self._acceptor.start()

    def stop_accepting(self) -> None:
        """Close the listening socket; open connections continue."""
        self.connections.close()
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None

    async def drain(self, seconds: float | None = None) -> None:
        """Accept no more, let requests in flight finish, and return when all connections have ended.

        What takes longer than `seconds` is aborted; None sets no limit.
        """
        self.stop_accepting()
        self._state.closing = True
        await self.connections.drain(seconds)

    def _on_sweep(self) -> None:
        if self._tls is not None:
            self._tls.refresh()
        self._state.date = b"date: " + http_date(time.time()).encode() + b"\r\n"


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def http_date(seconds: float) -> str:
    """A time since the epoch as HTTP writes it. In English, whatever the locale that a model has set.

    `email.utils.formatdate` does the same, but its imports would make up a tenth of a server's start.
    """
    now = time.gmtime(seconds)
    day = f"{_DAYS[now.tm_wday]}, {now.tm_mday:02} {_MONTHS[now.tm_mon - 1]} {now.tm_year:04}"
    return f"{day} {now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02} GMT"
