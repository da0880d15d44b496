"""The routes of the model server: which request asks for what."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import orjson

from gusset.runtime.exchange import Exchange
from gusset.runtime.logs import model_traceback
from gusset.runtime.responses import Response, caller_error, not_ready
from gusset.serving.http_api.metrics import Metrics
from gusset.serving.inference.inference import Inference
from gusset.serving.inference.methods import OPENAI_STYLE, MethodKind, Methods
from gusset.serving.inference.model_call import REQUEST_ID
from gusset.serving.inference.model_threads import ModelThreads

if TYPE_CHECKING:
    from gusset.serving.http_api.websockets import Websockets

log = logging.getLogger("gusset.serving")

_PREDICT = re.compile(rb"/v1/models/[^/]+:predict(?:_binary)?\Z")
_STATUS = re.compile(rb"/v1/models/[^/:]+(/loaded|/schema)?\Z")
_SANE_ID = re.compile(rb"[\x21-\x7e]{1,200}\Z")
_WEBSOCKET = b"/v1/websocket"
_PROBES = 4  # threads for `is_healthy`
_PROBE_SECONDS = 10.0

_GET = b"GET, HEAD"
_POST = b"POST"


class ModelApi:
    """Answers every request of a ready model; made for `HttpServer` as its handler."""

    def __init__(
        self,
        methods: Methods,
        inference: Inference,
        loop: asyncio.AbstractEventLoop,
        *,
        metrics: Metrics,
        folder: Path,
        last_error: Callable[[], str | None],
        websockets: Websockets | None,
    ) -> None:
        """`last_error` returns the last error of the secrets' source, or None."""
        self._methods = methods
        self._inference = inference
        self._loop = loop
        self._metrics = metrics
        self._folder = folder
        self._last_error = last_error
        self._websockets = websockets
        self._probes = ModelThreads(loop, _PROBES, "health")
        self._probing: set[asyncio.Task[None]] = set()
        prefix = secrets.token_hex(6).encode()
        self._ids = (b"%b-%x" % (prefix, number) for number in itertools.count(1))
        routes: dict[bytes, tuple[bytes, Callable[[Exchange], None]]] = {
            b"/v1/models/model:predict": (_POST, self._predict),
            b"/predict": (_POST, self._predict),
            b"/invocations": (_POST, self._predict),
            b"/": (_GET, lambda exchange: exchange.respond(200, b"true")),
            b"/ping": (_GET, lambda exchange: exchange.respond(200, b"{}")),
            b"/metrics": (_GET, self._expose),
            b"/metrics/": (_GET, self._expose),
        }
        for path, name in OPENAI_STYLE.items():
            routes[f"/v1/{path}".encode()] = (_POST, self._openai_style(name))
        self._routes: Mapping[bytes, tuple[bytes, Callable[[Exchange], None]]] = routes

    def __call__(self, exchange: Exchange) -> None:
        """Route one request."""
        route = self._routes.get(exchange.path) or self._route_of(exchange.path)
        if route is None:
            if exchange.path == _WEBSOCKET and exchange.method == b"GET":
                self._open_websocket(exchange)
                return
            _send(exchange, caller_error(404, "Not Found"))
            return
        allowed, handle = route
        if exchange.method == allowed or (allowed is _GET and exchange.method in (b"GET", b"HEAD")):
            handle(exchange)
        else:
            _send(exchange, caller_error(405, "Method Not Allowed", (b"allow", allowed)))

    def takes_over(self, exchange: Exchange) -> bool:
        """Whether this request will have its connection handed over."""
        return (
            self._websockets is not None
            and exchange.path == _WEBSOCKET
            and exchange.method == b"GET"
            and (exchange.header(b"upgrade") or b"").lower() == b"websocket"
        )

    def _route_of(self, path: bytes) -> tuple[bytes, Callable[[Exchange], None]] | None:
        """The route of a path that names its model, and may have its colon encoded."""
        path = unquote_to_bytes(path)
        if _PREDICT.match(path):
            return _POST, self._predict
        found = _STATUS.match(path)
        if not found:
            return None
        if found[1] == b"/schema":
            return _GET, self._schema
        if found[1] == b"/loaded":
            return _GET, lambda exchange: exchange.respond(200, b"{}")
        return _GET, self._readiness

    def _predict(self, exchange: Exchange) -> None:
        exchange.counted_as = "predict"
        self._inference.predict(exchange, self._id_of(exchange))

    def _openai_style(self, name: str) -> Callable[[Exchange], None]:
        def handle(exchange: Exchange) -> None:
            exchange.counted_as = name
            self._inference.call_openai_method(exchange, self._id_of(exchange), name)

        return handle

    def _id_of(self, exchange: Exchange) -> bytes:
        given = exchange.header(REQUEST_ID)
        return given if given and _SANE_ID.match(given) else next(self._ids)

    def _open_websocket(self, exchange: Exchange) -> None:
        if self.takes_over(exchange) and self._websockets is not None:
            self._websockets.open(exchange)
        elif (exchange.header(b"upgrade") or b"").lower() == b"websocket":
            _send(exchange, caller_error(404, "WebSocket is not implemented on this deployment."))
        else:
            _send(exchange, caller_error(404, "Not Found"))

    # What probes ask.

    def _readiness(self, exchange: Exchange) -> None:
        method = self._methods.is_healthy
        if method is None:
            self._say_ready(exchange)
            return
        is_async = method.kind is MethodKind.COROUTINE
        asked = method.function() if is_async else self._probes.run(method.function)
        task = self._loop.create_task(self._ask_health(exchange, asked))
        self._probing.add(task)
        task.add_done_callback(self._probing.discard)

    async def _ask_health(self, exchange: Exchange, asked: Awaitable[Any]) -> None:
        """Answer with what `is_healthy` says; None is as good as yes."""
        reason = "Its is_healthy says that it is not."
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                healthy = await asked
                if inspect.isawaitable(healthy):
                    healthy = await healthy
            healthy = healthy is None or bool(healthy)
        except TimeoutError:
            healthy, reason = False, f"Its is_healthy took longer than {_PROBE_SECONDS:g} s."
        except BaseException as error:
            healthy, reason = False, "Its is_healthy raised an error."
            trace = model_traceback(error, self._folder)
            log.error("Exception while checking if model is healthy:\n%s", trace)  # noqa: TRY400
        if healthy:
            self._say_ready(exchange)
        else:
            log.warning("Health check failed. %s", reason)
            _send(exchange, not_ready(reason))

    def _say_ready(self, exchange: Exchange) -> None:
        """Ready; and what is wrong all the same."""
        error = self._last_error()
        exchange.respond(200, orjson.dumps({"secrets": {"trouble": error}}) if error else b"{}")

    def _schema(self, exchange: Exchange) -> None:
        from gusset.serving.inference.signatures import schema_of

        schema = schema_of(self._methods)
        if schema is None:
            _send(exchange, caller_error(404, "No schema found"))
        else:
            exchange.respond(200, orjson.dumps(schema))

    def _expose(self, exchange: Exchange) -> None:
        body = self._metrics.exposition(
            waiting=self._inference.waiting, source_is_up=self._last_error() is None
        )
        exchange.respond(200, body, b"text/plain; version=0.0.4; charset=utf-8")


def _send(exchange: Exchange, response: Response) -> None:
    exchange.respond(response.status, response.body, response.content_type, response.headers)
