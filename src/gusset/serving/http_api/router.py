"""Finds the handler of a request by its path and method."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from gusset.runtime.exchange import Exchange
from gusset.runtime.responses import Response, caller_error

RouteHandler = Callable[[Exchange], None]

# The methods of a route.
POST = frozenset((b"POST",))
GET = frozenset((b"GET", b"HEAD"))
ANY = None  # the handler decides


@dataclass(frozen=True, slots=True)
class Route:
    """A handler for requests with these methods to `path`: one path, or a pattern of the decoded path."""

    methods: frozenset[bytes] | None
    path: bytes | re.Pattern[bytes]
    handler: RouteHandler


class Router:
    """Calls the handler of the route that a request matches; responds 404 or 405 where there is none."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._by_path: dict[bytes, Route] = {}
        self._by_pattern: list[tuple[re.Pattern[bytes], Route]] = []
        for route in routes:
            if isinstance(route.path, bytes):
                self._by_path[route.path] = route
            else:
                self._by_pattern.append((route.path, route))

    def __call__(self, exchange: Exchange) -> None:
        route = self._by_path.get(exchange.path) or self._match(exchange.path)
        if route is None:
            send(exchange, caller_error(404, "Not Found"))
        elif route.methods is None or exchange.method in route.methods:
            route.handler(exchange)
        else:
            allow = b", ".join(sorted(route.methods))
            send(exchange, caller_error(405, "Method Not Allowed", (b"allow", allow)))

    def _match(self, path: bytes) -> Route | None:
        decoded = unquote_to_bytes(path)  # a client may have encoded the colon
        return next((route for pattern, route in self._by_pattern if pattern.fullmatch(decoded)), None)


def send(exchange: Exchange, response: Response) -> None:
    exchange.respond(response.status, response.body, response.content_type, response.headers)
