"""Middleware of the manager: limits, metrics, security headers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import unquote

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response as StarletteResponse

from gusset.manager.api.router import Api, Route, Router, http_error
from gusset.manager.bugs import bug_response, exception_response, log_bug
from gusset.manager.identity.token_route import MAX_TOKEN_BODY, TOKEN, TokenRoute
from gusset.manager.live.delivery import REPLICAS
from gusset.manager.live.renewals import RENEWED, Renewals
from gusset.manager.live.streams import CHANGES, ChangeStreams
from gusset.manager.metrics import Metrics
from gusset.manager.read_routes import (
    LOGINS,
    ReadRoute,
    ReadRoutes,
    find_read_route,
    render_error,
    skips_body,
    without_body,
)
from gusset.runtime.asgi import AsgiApp, AsgiSender, make_scope, run_asgi
from gusset.runtime.exchange import Exchange
from gusset.runtime.limits import Limits
from gusset.runtime.responses import Response
from gusset.runtime.trusted_proxies import TrustedProxies
from gusset.vault.deadline import ending_within
from gusset.vault.greenlets import GreenletPool

MAX_BODY = 1_048_576  # bytes: ample for a value of 64 KiB in base64
MAX_BATCH_BODY = 16_777_216
SMALL_BODY = 4096
LIMITS = Limits(
    body=MAX_BODY, body_seconds=30.0, body_rate=float("inf"), idle_seconds=75.0, memory=134_217_728
)

SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
_CLIENT_DISCONNECTED = 499
_FOR_TOKENS = frozenset((TOKEN, *LOGINS))  # routes with a body that is read without a key
_PROBES = frozenset((b"/healthz", b"/readyz"))


class Middleware:
    """The request handler of the manager's HTTP server.

    Requests of the API go directly to `Api`, streams of changes to `ChangeStreams`,
    exchanges of tokens to `TokenRoute`, reads by other tools to `ReadRoutes`, and all
    others (pages, probes) to an ASGI application. All are counted and get the security
    headers; an unexpected exception is logged without its message, which may hold a
    value, and becomes a 500.
    """

    def __init__(
        self,
        router: Router,
        api: Api,
        app: AsgiApp,
        metrics: Metrics,
        *,
        streams: ChangeStreams,
        renewals: Renewals,
        tokens: TokenRoute,
        greenlets: GreenletPool,
        read_routes: ReadRoutes,
        proxies: TrustedProxies,
        scheme: str,
        refuse_form: Callable[[Request, HTTPException], StarletteResponse],
        request_seconds: float | None,
    ) -> None:
        """`scheme` is that of the listener; `refuse_form` renders an error for a browser.

        All that a request waits for ends within `request_seconds`, if that is not None.
        """
        self._router = router
        self._api = api
        self._app = app
        self._metrics = metrics
        self._streams = streams
        self._renewals = renewals
        self._tokens = tokens
        self._greenlets = greenlets
        self._read_routes = read_routes
        self._proxies = proxies
        self._scheme = scheme
        self._refuse_form = refuse_form
        self._request_seconds = request_seconds
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, exchange: Exchange) -> None:
        """Handle one request."""
        try:
            self._dispatch(exchange)
        except Exception as error:
            self._respond(exchange, "other", bug_response(error))

    def _dispatch(self, exchange: Exchange) -> None:
        if self._renewals.renew(exchange):
            self._respond(exchange, REPLICAS, RENEWED)
            return
        path = path_of(exchange)
        route = self._router.find(path, exchange.method.decode("ascii"))
        if route is None and path == CHANGES and exchange.method == b"GET":
            self._streams.open(exchange, self._address(exchange))
        elif route is None and path == TOKEN:
            self._greenlets.start(
                self._handle_token, exchange, on_done=partial(self._respond, exchange, TOKEN)
            )
        elif route is None and (read_route := find_read_route(path)) is not None:
            on_read = partial(self._respond_read, exchange, read_route)
            self._greenlets.start(self._handle_read, exchange, read_route, on_done=on_read)
        elif route is None:
            self._start_task(self._run_app(exchange, self._scope(exchange)))
        elif isinstance(route, Response):
            self._respond(exchange, "other", route)
        elif route.operation.slow:
            self._start_task(self._handle_slow(exchange, route))
        else:
            on_done = partial(self._respond, exchange, route.operation.path)
            self._greenlets.start(self._handle, exchange, route, on_done=on_done)

    def _handle(self, exchange: Exchange, route: Route) -> Response:
        try:
            return self._api.handle(exchange, route, self._address(exchange))
        except Exception as error:
            return exception_response(error)

    def _handle_token(self, exchange: Exchange) -> Response:
        try:
            return self._tokens.handle(exchange, self._address(exchange))
        except Exception as error:
            return exception_response(error)

    async def _handle_slow(self, exchange: Exchange, route: Route) -> None:
        try:
            with ending_within(self._request_seconds):
                response = await self._api.handle_slow(exchange, route, self._address(exchange))
        except Exception as error:
            response = exception_response(error)
        self._respond(exchange, route.operation.path, response)

    def _handle_read(self, exchange: Exchange, route: ReadRoute) -> Response:
        try:
            return self._read_routes.handle(exchange, route, self._address(exchange))
        except Exception as error:
            return render_error(route, exception_response(error))

    def _respond_read(self, exchange: Exchange, route: ReadRoute, response: Response) -> None:
        if without_body(exchange, response):
            exchange.start(response.status, (*response.headers, *SECURITY_HEADERS))
            exchange.end()
            self._metrics.count(route.path, response.status, time.perf_counter() - exchange.received_at)
        else:
            self._respond(exchange, route.path, response)

    def _respond(self, exchange: Exchange, route: str, response: Response) -> None:
        if response.status == 401 and exchange.body:
            exchange.keep_alive = False  # as where the body is not read: see `skips_body`
        exchange.respond(
            response.status, response.body, response.content_type, (*response.headers, *SECURITY_HEADERS)
        )
        self._metrics.count(route, response.status, time.perf_counter() - exchange.received_at)

    async def _run_app(self, exchange: Exchange, scope: dict[str, Any]) -> None:
        """Have the ASGI application respond."""
        send = AsgiSender(exchange, SECURITY_HEADERS)
        status = 0
        try:
            with ending_within(self._request_seconds):
                await run_asgi(self._app, exchange, scope, send)
        except ClientDisconnect:
            status = _CLIENT_DISCONNECTED
        except Exception as error:
            response = bug_response(error)
            if send.has_begun:
                exchange.cut()
            else:
                status = response.status
                exchange.respond(status, response.body, response.content_type, SECURITY_HEADERS)
        finally:
            route = scope.get("route_path") or "other"
            self._metrics.count(route, status or send.status, time.perf_counter() - exchange.received_at)

    def _address(self, exchange: Exchange) -> str | None:
        client = self._proxies.client(exchange)
        return client[0] if client else None

    def _start_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Called by the HTTP server.

    def is_probe(self, exchange: Exchange) -> bool:
        """Whether a request is handled even when others in flight take all connections."""
        return exchange.path in _PROBES

    def body_limit(self, exchange: Exchange) -> int:
        """How many bytes the body of a request may have."""
        path = path_of(exchange)
        if path in _FOR_TOKENS:
            return MAX_TOKEN_BODY
        return MAX_BATCH_BODY if path.endswith(":batch") else MAX_BODY

    def skips_body(self, exchange: Exchange) -> bool | Awaitable[bool]:
        """Whether the body of a request is not read: its key is not valid, or the route takes none.

        A small one is read, which costs less than to authenticate the caller twice.
        """
        length = exchange.header(b"content-length")
        if length is not None and int(length) <= SMALL_BODY:
            return False
        path = path_of(exchange)
        route = self._router.find(path, exchange.method.decode("ascii"))
        if isinstance(route, Route):
            return self._api.lacks_key(exchange)
        read_route = find_read_route(path)
        return read_route is not None and skips_body(read_route)

    def render_refusal(self, exchange: Exchange | None, status: int, text: str) -> Response:
        """The response to a request that is not HTTP, too large or too slow; to a form it is a page."""
        if exchange is None:
            return _refusal(status, text)
        if status == 413:
            text = f"a body can have at most {self.body_limit(exchange)} bytes"
        elif status == 408:
            text = "the body did not arrive in time"
        response = self._render_page(exchange, status, text) if is_form(exchange) else None
        response = response or _refusal(status, text)
        found = self._router.find(path_of(exchange), exchange.method.decode("ascii"))
        self._metrics.count(found.operation.path if isinstance(found, Route) else "other", status, 0.0)
        return response

    def _render_page(self, exchange: Exchange, status: int, text: str) -> Response | None:
        """The page for a refused form; None if none can be made of this request."""
        try:
            return from_starlette(
                self._refuse_form(Request(self._scope(exchange)), HTTPException(status, text))
            )
        except HTTPException:  # its Host is not one
            return None
        except Exception as error:  # the refusal must be sent all the same
            log_bug(error)
            return None

    def _scope(self, exchange: Exchange) -> dict[str, Any]:
        scope = make_scope(exchange, scheme=self._proxies.scheme(exchange, self._scheme))
        scope["client"] = self._proxies.client(exchange)
        return scope


def _refusal(status: int, text: str) -> Response:
    return with_security_headers(http_error(status, text))


def path_of(exchange: Exchange) -> str:
    """The decoded path of a request."""
    path = exchange.path.decode("ascii", "replace")
    return unquote(path) if "%" in path else path


def is_form(exchange: Exchange) -> bool:
    """Whether a browser sends a form of a page."""
    kind = (exchange.header(b"content-type") or b"").lower()
    return not exchange.path.startswith(b"/v1/") and kind.startswith(
        (b"application/x-www-form-urlencoded", b"multipart/form-data")
    )


def with_security_headers(response: Response) -> Response:
    return replace(response, headers=(*response.headers, *SECURITY_HEADERS))


def from_starlette(response: StarletteResponse) -> Response:
    """A response that is not a stream, with the security headers."""
    own = {b"content-type", b"content-length", b"connection"}
    headers = [header for header in response.raw_headers if header[0] not in own]
    kind = response.headers["content-type"].encode("latin-1")
    return with_security_headers(Response(response.status_code, bytes(response.body), kind, headers))
