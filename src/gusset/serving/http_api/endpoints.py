"""The model server's HTTP API: its routes, and how each request is handled."""

# Imports in functions: most models have no types to make a schema of, and pydantic takes long to import.

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from gusset.runtime.exchange import Exchange
from gusset.runtime.exposition import CONTENT_TYPE
from gusset.runtime.responses import caller_error
from gusset.serving.http_api.metrics import Metrics
from gusset.serving.http_api.readiness import ReadinessProbe
from gusset.serving.http_api.router import ANY, GET, POST, Route, RouteHandler, Router, send
from gusset.serving.inference.inference import Inference
from gusset.serving.inference.methods import OPENAI_STYLE, Methods
from gusset.serving.inference.model_call import REQUEST_ID

if TYPE_CHECKING:
    from gusset.serving.http_api.websockets import Websockets

_ACCEPTED_ID: Final = re.compile(rb"[\x21-\x7e]{1,200}\Z")

# The hosted platform serves a model under these prefixes, so that clients of both need no change.
_PREFIX = rb"/(?:production|development|environments/[^/]+|deployment/[^/]+)"
_WEBSOCKET = re.compile(rb"(?:%b)?(?:/sync)?/v1/websocket|%b(?:/sync)?/websocket" % (_PREFIX, _PREFIX))
_SYNC = re.compile(rb"(?:%b)?/sync(/.*)?" % _PREFIX, re.DOTALL)
_NOT_SERVED = re.compile(
    rb"(?:%b)?/(?:async_predict|async_request/[^/]+|async_queue_status|run_remote|async_run_remote|wake)"
    % _PREFIX
)


class ModelApi:
    """The routes of a ready model; `router` is the request handler for an `HttpServer`."""

    def __init__(
        self,
        methods: Methods,
        inference: Inference,
        loop: asyncio.AbstractEventLoop,
        *,
        metrics: Metrics,
        folder: Path,
        last_error: Callable[[], str | None],
        lagging: Callable[[], str | None],
        make_websockets: Callable[[], Websockets],
        name: str,
    ) -> None:
        """`last_error` is the last error of the source of secrets, None while it works.

        `lagging` says how many workers still use older values, None if none does.
        `make_websockets` imports large libraries. It is called now for a model with websockets, for others
        when a client first wants one.
        `name` is the model's name in OpenAI's list of models.
        """
        self._name = name
        self._started = int(time.time())
        self._methods = methods
        self._inference = inference
        self._metrics = metrics
        self._last_error = last_error
        self._lagging = lagging
        self._make_websockets = make_websockets
        self._websockets = make_websockets() if methods.websocket is not None else None
        self._readiness = ReadinessProbe(methods.is_healthy, loop, folder=folder, on_ready=self._ready)
        self._new_ids = map((os.urandom(6).hex().encode() + b"-%x").__mod__, itertools.count(1))
        routes = self._routes()
        self._without_sync = Router(routes)
        self.router = Router([*routes, Route(ANY, _SYNC, self._sync)])

    def _routes(self) -> list[Route]:
        """All routes but `/sync`. A path is tried by the patterns only if no route has exactly that path."""
        return [
            Route(POST, b"/v1/models/model:predict", self._predict),
            Route(POST, re.compile(rb"/v1/models/[^/]+:predict(_binary)?"), self._predict),
            Route(POST, b"/predict", self._predict),
            Route(POST, b"/invocations", self._predict),
            *(
                Route(POST, f"/v1/{path}".encode(), self._openai_method(name))
                for path, name in OPENAI_STYLE.items()
            ),
            Route(POST, re.compile(_PREFIX + rb"/predict"), self._predict),
            Route(ANY, _WEBSOCKET, self._websocket),
            Route(GET, b"/", lambda exchange: exchange.respond(200, b"true")),
            Route(GET, b"/ping", self._loaded),
            Route(GET, b"/v1/models", self._models),
            Route(GET, re.compile(rb"/v1/models/[^/:]+"), self._readiness.respond),
            Route(GET, re.compile(rb"/v1/models/[^/:]+/loaded"), self._loaded),
            Route(GET, re.compile(rb"/v1/models/[^/:]+/schema"), self._schema),
            Route(GET, b"/metrics", self._exposition),
            Route(GET, b"/metrics/", self._exposition),
            Route(ANY, _NOT_SERVED, _not_served),
        ]

    async def drain(self) -> None:
        """Close all websockets, and wait for the model's method to return."""
        if self._websockets is not None:
            await self._websockets.drain()

    async def reason_not_ready(self) -> str | None:
        """Why the model is not ready; None if it is."""
        return await self._readiness.reason_not_ready()

    def takes_over(self, exchange: Exchange) -> bool:
        """Whether this request's connection will be handed over to a websocket."""
        return (
            _WEBSOCKET.fullmatch(exchange.path) is not None
            and exchange.method == b"GET"
            and _wants_websocket(exchange)
        )

    def websockets_at(self, path: bytes) -> Websockets | None:
        """What serves a websocket that a client opens at this path; None if nothing does."""
        return self._loaded_websockets() if _WEBSOCKET.fullmatch(path) else None

    def _predict(self, exchange: Exchange) -> None:
        exchange.route = "predict"
        self._inference.predict(exchange, self._request_id(exchange))

    def _openai_method(self, name: str) -> RouteHandler:
        def handle(exchange: Exchange) -> None:
            exchange.route = name
            self._inference.call_openai_method(exchange, self._request_id(exchange), name)

        return handle

    def _request_id(self, exchange: Exchange) -> bytes:
        """The request id that the client sent, or a new one."""
        given = exchange.fields.get(REQUEST_ID)
        return given if given and _ACCEPTED_ID.match(given) else next(self._new_ids)

    def _websocket(self, exchange: Exchange) -> None:
        if not self.takes_over(exchange):
            send(exchange, caller_error(404, "Not Found"))
        elif (websockets := self._loaded_websockets()) is None:
            send(exchange, caller_error(501, "This model has no websocket."))
        else:
            _choose_websocket(exchange)
            websockets.open(exchange)

    def _loaded_websockets(self) -> Websockets | None:
        """The websockets; None if their libraries are missing in the model's environment, or too old."""
        if self._websockets is None:
            with contextlib.suppress(ImportError):
                self._websockets = self._make_websockets()
        return self._websockets

    def _sync(self, exchange: Exchange) -> None:
        """Handle `/sync/PATH`, also below a prefix of the platform, as PATH."""
        match = _SYNC.fullmatch(exchange.path)
        exchange.path = (match and match[1]) or b"/"
        self._without_sync(exchange)

    def _models(self, exchange: Exchange) -> None:
        """OpenAI's list of models: the one that is served."""
        model = {"id": self._name, "object": "model", "created": self._started, "owned_by": "gusset"}
        exchange.respond(200, orjson.dumps({"object": "list", "data": [model]}))

    def _loaded(self, exchange: Exchange) -> None:
        exchange.respond(200, b"{}")

    def _ready(self, exchange: Exchange) -> None:
        """Respond that the model is ready, with what is wrong with its secrets if anything is."""
        found = {"last_error": self._last_error(), "lagging": self._lagging()}
        wrong = {name: text for name, text in found.items() if text}
        exchange.respond(200, orjson.dumps({"secrets": wrong}) if wrong else b"{}")

    def _schema(self, exchange: Exchange) -> None:
        from gusset.serving.inference.signatures import model_schema

        schema = model_schema(self._methods)
        if schema is None:
            send(exchange, caller_error(404, "No schema found"))
        else:
            exchange.respond(200, self._inference.masker.body(orjson.dumps(schema)))

    def _exposition(self, exchange: Exchange) -> None:
        body = self._metrics.exposition(
            waiting=self._inference.waiting, source_is_up=self._last_error() is None
        )
        exchange.respond(200, body, CONTENT_TYPE)


def _wants_websocket(exchange: Exchange) -> bool:
    """Whether a websocket is among the protocols that the client offers: RFC 9110, 7.8."""
    offers = b",".join(value for name, value in exchange.headers if name.lower() == b"upgrade")
    return b"websocket" in [offer.strip() for offer in offers.lower().split(b",")]


def _choose_websocket(exchange: Exchange) -> None:
    """Drop the other protocols that the client offers: the library for websockets refuses to choose."""
    others = [header for header in exchange.headers if header[0].lower() != b"upgrade"]
    exchange.headers[:] = [*others, (b"upgrade", b"websocket")]


def _not_served(exchange: Exchange) -> None:
    text = "gusset does not serve this route of the hosted platform. Send the request to /predict."
    send(exchange, caller_error(501, text))
