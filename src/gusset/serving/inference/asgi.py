"""The Starlette request that a model's method gets, and how the model learns that its client disconnected.

Imported only for a model that has imported Starlette or FastAPI itself.
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
    """Lets a model notice that its client has disconnected, by `is_disconnected` or `watch_disconnect`."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._disconnected: asyncio.Event | None = None  # made when first awaited
        self._watchers: set[threading.Event] = set()

    def on_disconnect(self) -> None:
        """The client has disconnected. Called on the loop."""
        if self._disconnected is not None:
            self._disconnected.set()
        for watcher in tuple(self._watchers):
            watcher.set()

    async def receive(self) -> Message:
        """ASGI's `receive` after the body: the only message left is the disconnect."""
        if not self._exchange.disconnected:
            if self._disconnected is None:
                self._disconnected = asyncio.Event()
            await self._disconnected.wait()
        return {"type": "http.disconnect"}

    @contextlib.contextmanager
    def watch(self) -> Iterator[threading.Event]:
        """An event for synchronous code, set when the client disconnects."""
        event = threading.Event()
        self._watchers.add(event)
        if self._exchange.disconnected:
            event.set()
        try:
            yield event
        finally:
            self._watchers.discard(event)


def make_request(exchange: Exchange, body: bytes, disconnect_watcher: DisconnectWatcher) -> Request:
    """The request that a model's method gets. Its body has been read already."""
    scope = make_scope(exchange)
    scope["state"]["watch_disconnect"] = disconnect_watcher.watch
    request = Request(scope, disconnect_watcher.receive)
    request._body = body  # where Starlette itself keeps a body that it has read
    return request
