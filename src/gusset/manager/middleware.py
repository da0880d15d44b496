"""What surrounds every request: limits, measures, errors as JSON, and the last net for a bug."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gusset.errors import GussetError
from gusset.manager.api.router import JsonAnswer, error_response, http_error_response

log = logging.getLogger("gusset.manager")

MOST_BYTES = 1_048_576  # of a body: a value of 64 KiB in base64, and a batch of small ones
BATCH_BYTES = 16_777_216
BODY_SECONDS = 30.0  # to send it in


class Metrics:
    """What `/metrics` tells, in Prometheus' format. Numbers and routes, no names."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "gusset_http_requests",
            "Requests by route and status.",
            ("route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "gusset_http_request_seconds",
            "Time to answer.",
            ("route",),
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
            registry=self.registry,
        )
        self.streams = Gauge(
            "gusset_watch_streams", "Replicas that watch for changes.", registry=self.registry
        )

        self._noted: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def note(self, route: str, status: int, seconds: float) -> None:
        """One more request."""
        key = (route, status)
        if key not in self._noted:  # finding a label's place takes longer than counting there
            self._noted[key] = (self.requests.labels(route, str(status)), self.seconds.labels(route))
        requests, times = self._noted[key]
        requests.inc()
        times.observe(seconds)

    def response(self) -> Response:
        return Response(generate_latest(self.registry), media_type="text/plain; version=0.0.4; charset=utf-8")


class Middleware:
    """Limits, measures and a name for each request; and the last net for a bug."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        try:
            await self._app(scope, limited(scope, receive), sending)
        except ClientDisconnect:
            status = status or 499
        except Exception as error:
            log.error("A bug in gusset: %s", frames_of(error))  # noqa: TRY400  # its message may hold a value
            if not status:
                await JsonAnswer(_BUG, status=500)(scope, receive, sending)
        finally:
            self._metrics.note(scope.get("route_path") or "other", status, time.perf_counter() - began)


_BUG = {"message": "gusset has a bug; its log says where", "code": "bug", "hint": None}

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]


def limited(scope: Scope, receive: Receive) -> Receive:
    """`receive`, but a body that is too large or too slow ends in an error."""
    if scope["method"] in ("GET", "HEAD") and not any(name in _BODIES for name, _ in scope["headers"]):
        return receive
    most = BATCH_BYTES if scope["path"].endswith(":batch") else MOST_BYTES
    taken, until = 0, time.monotonic() + BODY_SECONDS
    ended = False

    async def receiving() -> Message:
        nonlocal taken, ended
        if ended:  # what comes after the body is only the news that the other end has left
            return await receive()
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, "the body did not come in time") from None
        taken += len(message.get("body", b""))
        ended = not message.get("more_body", False)
        if taken > most:
            raise HTTPException(413, f"a body has at most {most} bytes")
        return message

    return receiving


_BODIES = (b"content-length", b"transfer-encoding")


def frames_of(error: BaseException) -> str:
    """Where an error came from and its type, without its message: libraries put values there."""
    places = [
        f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)
    ]
    return f"{type(error).__name__} at {' < '.join(reversed(places[-12:]))}"


async def on_error(_: Request, error: Exception) -> Any:
    """A foreseen error, for the framework."""
    assert isinstance(error, GussetError)  # noqa: S101  # the framework's type is wider than what it calls us with
    return error_response(error)


async def on_http_error(_: Request, error: Exception) -> Any:
    """What the framework refuses."""
    assert isinstance(error, HTTPException)  # noqa: S101
    return http_error_response(error)
