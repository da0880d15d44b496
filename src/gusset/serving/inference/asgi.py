"""What models see of HTTP: Starlette's requests, responses and websockets, over our own connections.

Imported only for a model that has imported Starlette itself, or FastAPI.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from starlette.requests import Request

from gusset.runtime.asgi import Message, make_scope
from gusset.runtime.exchange import Exchange


class DisconnectWatcher:
    """Whether a client is still there; asked by `is_disconnected` and by `watch_disconnect`."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._left: asyncio.Event | None = None
        self._watchers: set[threading.Event] = set()

    def on_disconnect(self) -> None:
        """The client has gone. Called on the loop."""
        if self._left is not None:
            self._left.set()
        for watcher in tuple(self._watchers):
            watcher.set()

    async def receive(self) -> Message:
        """ASGI's `receive` after the body: there is nothing more to come but the client's leaving."""
        if not self._exchange.gone:
            if self._left is None:
                self._left = asyncio.Event()
            await self._left.wait()
        return {"type": "http.disconnect"}

    @contextlib.contextmanager
    def watch(self) -> Iterator[threading.Event]:
        """An event for synchronous code, which is set when the client leaves."""
        event = threading.Event()
        self._watchers.add(event)
        if self._exchange.gone:
            event.set()
        try:
            yield event
        finally:
            self._watchers.discard(event)


def request_of(exchange: Exchange, body: bytes, disconnect_watcher: DisconnectWatcher) -> Request:
    """The request as a model's method gets it. Its body has been read already."""
    scope = make_scope(exchange)
    scope["state"]["watch_disconnect"] = disconnect_watcher.watch
    request = Request(scope, disconnect_watcher.receive)
    request._body = body  # as Starlette keeps it once it has been read
    return request
