"""The model's HTTP API as an ASGI application: Ray's replica calls it with each request of its proxy.

The handlers are those of `gusset serve`. They respond to an `Exchange`; here that sends ASGI messages
instead of bytes on a connection. Knows nothing of Ray.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gusset.runtime.asgi import Message
from gusset.runtime.caller_auth import CallerAuth
from gusset.runtime.exchange import AcceptedHeader, Exchange, Headers, MakeSuccessor
from gusset.runtime.responses import Response, caller_error
from gusset.serving.http_api.endpoints import ModelApi
from gusset.serving.http_api.metrics import Metrics

log = logging.getLogger("gusset")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_MAX_BUFFERED = 256 * 1024  # bytes that wait for `send`, from which on generators pause
_DENIAL = "websocket.http.response"  # the extension of ASGI that responds to a websocket with HTTP
_POLICY_VIOLATION = 1008  # the close code of a websocket that is refused


class ModelApp:
    """An ASGI application that serves a model. Call it on the event loop of its `ModelApi`.

    A server must cancel the call when the client of an HTTP request disconnects, as Ray does: once the
    request is complete, `receive` is not awaited.
    """

    def __init__(
        self, api: ModelApi, metrics: Metrics, caller_auth: CallerAuth | None, *, body_limit: int
    ) -> None:
        """`caller_auth` None serves everyone. A body of more than `body_limit` bytes is refused."""
        self._api = api
        self._metrics = metrics
        self._caller_auth = caller_auth
        self._body_limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._handle(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._open_websocket(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _live(receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = AsgiResponse(scope, self._metrics.observe)
        exchange = exchange_of(scope, response)
        refused = self._caller_auth.gate(exchange) if self._caller_auth else None
        if refused is None:
            body = await self._read_body(receive)
            if body is None:
                return  # the client disconnected before its request was complete
            if len(body) > self._body_limit:
                refused = caller_error(413, f"The request's body is larger than {self._body_limit} bytes.")
            exchange.body = body
        exchange.received_at = time.perf_counter()
        if refused is None:
            self._api.router(exchange)
        else:
            exchange.respond(refused.status, refused.body, refused.content_type, refused.headers)
        await response.send_all(exchange, send)

    async def _read_body(self, receive: Receive) -> bytes | None:
        """The body, cut off after the byte that makes it too long; None if the client disconnects."""
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            if part := message.get("body", b""):
                parts.append(part)
                size += len(part)
            if size > self._body_limit or not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)[: self._body_limit + 1]

    async def _open_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = AsgiResponse(scope, self._metrics.observe)
        exchange = exchange_of(scope, response)
        refused = self._caller_auth.gate(exchange) if self._caller_auth else None
        websockets = self._api.websockets_at(exchange.path)
        if refused is not None:
            await _deny(scope, send, refused)
        elif websockets is None:
            await _deny(scope, send, caller_error(404, "Not Found"))
        else:
            scope["headers"] = exchange.headers  # without the caller's key
            await websockets.serve(scope, receive, send)


async def _live(receive: Receive, send: Send) -> None:
    """ASGI's lifespan protocol; nothing happens in it."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _deny(scope: Scope, send: Send, response: Response) -> None:
    """Refuse a websocket, with a whole response if the server can send that."""
    if _DENIAL not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        return
    headers = [(b"content-type", response.content_type), *response.headers]
    await send({"type": f"{_DENIAL}.start", "status": response.status, "headers": headers})
    await send({"type": f"{_DENIAL}.body", "body": response.body})


def exchange_of(scope: Scope, response: AsgiResponse) -> Exchange:
    """The exchange for an ASGI scope, without its body. Its path begins below the application's."""
    headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        fields.setdefault(name, value)
    exchange = Exchange(response, scope.get("method", "GET").encode("ascii"), headers, fields)
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    exchange.path = raw.removeprefix(scope.get("root_path", "").encode()) or b"/"
    exchange.query = scope.get("query_string", b"")
    exchange.is_http_1_0 = True  # the server behind `send` frames the body, if it needs that
    return exchange


class AsgiResponse:
    """The response to one exchange, as ASGI messages. A `ResponseWriter`.

    Handlers call its methods on the event loop; `send_all` sends what they give.
    """

    def __init__(self, scope: Scope, observe: Callable[[Exchange, int], object]) -> None:
        """`observe` gets the exchange when it has ended, and its status: 499 if the client disconnected."""
        client = scope.get("client")
        self.transport = asyncio.Transport({"sockname": scope.get("server")})
        self.peer: tuple[str, int] | None = (client[0], client[1]) if client else None
        self.accepted: AcceptedHeader | None = None
        self._observe = observe
        self._messages: deque[Message] = deque()
        self._buffered = 0  # bytes in the messages
        self._wake = asyncio.Event()
        self._status = 0  # of the response, once it has begun
        self._is_complete = False
        self._is_cut = False
        self._silence: float | None = None
        self._exchange: Exchange | None = None  # whose generator pauses while too much is buffered

    # Called by exchanges.

    def respond(
        self, exchange: Exchange, status: int, body: bytes, content_type: bytes, headers: Headers
    ) -> None:
        """Send the whole response."""
        own = ((b"content-type", content_type), (b"content-length", b"%d" % len(body)))
        self._begin(status, (*own, *headers, *exchange.response_headers))
        self._put(b"" if exchange.method == b"HEAD" else body, more=False)

    def start(self, exchange: Exchange, status: int, headers: Headers, first: bytes) -> None:
        """Send the head of a response that comes in parts, and the first part."""
        self._begin(status, (*headers, *exchange.response_headers))
        self._exchange = exchange
        if first:
            self._put(first, more=True)

    def write(self, data: bytes) -> None:
        """Send a part."""
        self._put(data, more=True)

    def end(self, exchange: Exchange, last: bytes) -> None:
        """Send the last part."""
        self._put(last, more=False)

    def cut(self) -> None:
        """End without the last part: the server then closes the connection."""
        self._is_cut = True
        self._wake.set()

    def limit_silence(self, seconds: float) -> None:
        """Abort the response when nothing is written to it for so long."""
        self._silence = seconds

    def hand_over(self, exchange: Exchange, make_successor: MakeSuccessor) -> None:
        """Never called: websockets have scopes of their own."""
        raise RuntimeError("an ASGI application has no connection to hand over")

    def _begin(self, status: int, headers: Headers) -> None:
        if self._status:
            raise RuntimeError("a response to this request was sent or started already")
        self._status = status
        lowered = [(name.lower(), value) for name, value in headers]
        self._messages.append({"type": "http.response.start", "status": status, "headers": lowered})

    def _put(self, data: bytes, *, more: bool) -> None:
        """Add a part; one that waits to be sent already is extended."""
        last = self._messages[-1] if self._messages else None
        if last is not None and "body" in last:
            last["body"] += data
            last["more_body"] = more
        else:
            self._messages.append({"type": "http.response.body", "body": data, "more_body": more})
        self._buffered += len(data)
        self._is_complete = not more
        if self._exchange is not None and self._buffered > _MAX_BUFFERED:
            self._exchange.writable = False
        self._wake.set()

    # Called by the application.

    async def send_all(self, exchange: Exchange, send: Send) -> None:
        """Send the response until it is complete or cut, or its client disconnects.

        The server cancels this task when the client disconnects.
        """
        try:
            while await self._has_more(exchange):
                await self._send_waiting(exchange, send)
            self._observe(exchange, 499 if exchange.disconnected else self._status)
        except BaseException:
            self._disconnect(exchange)
            self._observe(exchange, 499)
            raise
        finally:
            # These lead back to the exchange: else only a garbage collection would end the cycle.
            exchange.on_disconnect = exchange.on_writable = self._exchange = None

    async def _has_more(self, exchange: Exchange) -> bool:
        """Wait for something to send; False if nothing more comes."""
        while not self._messages:
            if self._is_complete or self._is_cut or exchange.disconnected:
                return False
            self._wake.clear()
            try:
                async with asyncio.timeout(self._silence):
                    await self._wake.wait()
            except TimeoutError:
                log.warning("A stream was silent for more than %g s and is aborted.", self._silence)
                self._disconnect(exchange)
        return not exchange.disconnected

    async def _send_waiting(self, exchange: Exchange, send: Send) -> None:
        message = self._messages.popleft()
        self._buffered -= len(message.get("body", b""))
        await send(message)
        if not exchange.writable and self._buffered <= _MAX_BUFFERED:
            exchange.writable = True
            if exchange.on_writable is not None:
                exchange.on_writable()

    def _disconnect(self, exchange: Exchange) -> None:
        if not exchange.disconnected:
            exchange.disconnected = True
            self._wake.set()
            if exchange.on_disconnect is not None:
                exchange.on_disconnect()
