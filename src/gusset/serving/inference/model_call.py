"""One request on its way through a model's methods."""

# Imports in functions: Starlette is imported at the first request that needs it.

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Final

from gusset.runtime.exchange import Exchange
from gusset.runtime.responses import Response

if TYPE_CHECKING:
    from starlette.requests import Request

    from gusset.runtime.asgi import AsgiSender
    from gusset.serving.inference.asgi import DisconnectWatcher
    from gusset.serving.inference.streams import ResponseStream

REQUEST_ID: Final = b"x-baseten-request-id"
# The time in which a model that has the request may notice the disconnect before it is cancelled.
_NOTICE_SECONDS: Final = 30.0
_NEVER: Final = math.inf


class ModelCall:
    """A request with what its processing needs; `on_disconnect` is called when its client disconnects."""

    __slots__ = (
        "_disconnect_watcher",
        "_must_stop_at",
        "_request",
        "body",
        "exchange",
        "output",
        "request_id",
        "task",
        "uses_msgpack",
    )

    def __init__(self, exchange: Exchange, request_id: bytes) -> None:
        self.exchange = exchange
        self.request_id = request_id
        self.body = exchange.body  # kept for a method that takes the request
        self.uses_msgpack = False
        self.task: asyncio.Task[None] | None = None  # cancelled when the client disconnects
        self.output: ResponseStream | AsgiSender | None = None  # likewise notified
        self._disconnect_watcher: DisconnectWatcher | None = None
        self._request: Request | None = None
        self._must_stop_at = _NEVER  # by time.monotonic()
        exchange.on_disconnect = self.on_disconnect

    def on_disconnect(self) -> None:
        if self._disconnect_watcher is not None:
            self._disconnect_watcher.on_disconnect()
        if self.output is not None:
            self.output.on_disconnect()
        if self._request is None:
            self._must_stop_at = 0.0
            if self.task is not None:
                self.task.cancel()
            return
        # A model that has the request can see that its client has left, and abort the work in its own way.
        self._must_stop_at = time.monotonic() + _NOTICE_SECONDS
        if self.task is not None:
            timer = asyncio.get_running_loop().call_later(_NOTICE_SECONDS, self.task.cancel)
            self.task.add_done_callback(lambda task: timer.cancel())

    @property
    def must_stop(self) -> bool:
        """Whether a generator is to be closed: its client has left, and its time to notice has passed."""
        return self.exchange.disconnected and time.monotonic() >= self._must_stop_at

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The headers of every response to this request."""
        return ((REQUEST_ID, self.request_id),)

    # Starlette is imported only for a model that uses it.

    @property
    def disconnect_watcher(self) -> DisconnectWatcher:
        if self._disconnect_watcher is None:
            from gusset.serving.inference.asgi import DisconnectWatcher

            self._disconnect_watcher = DisconnectWatcher(self.exchange)
        return self._disconnect_watcher

    @property
    def request(self) -> Request:
        """The request as a Starlette object; all methods get the same one."""
        if self._request is None:
            from gusset.serving.inference.asgi import make_request

            self._request = make_request(self.exchange, self.body, self.disconnect_watcher)
        return self._request

    @property
    def wants_whole_stream(self) -> bool:
        """Whether the client wants the chunks of a stream joined to one JSON string."""
        if self.exchange.header(b"accept") != b"application/json":
            return False
        return b"openai" not in (self.exchange.header(b"user-agent") or b"").lower()

    def send(self, response: Response) -> None:
        headers = (*response.headers, *self.headers) if response.headers else self.headers
        self.exchange.respond(response.status, response.body, response.content_type, headers)
