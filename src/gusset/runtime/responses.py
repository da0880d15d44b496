"""Complete HTTP responses, and the errors that models and containers share, in Truss's words and headers."""

from __future__ import annotations

from dataclasses import dataclass

from gusset.runtime.http_server import ERROR_OF_CALLER, JSON, Exchange, Headers, error_body, error_headers

NOT_READY = "Model with name model is not ready."

ERROR_OF_MODEL = error_headers(600)


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: Headers = ()


def caller_error(status: int, text: str, *headers: tuple[bytes, bytes]) -> Response:
    """The caller's own fault."""
    return Response(status, error_body(text), headers=(*ERROR_OF_CALLER, *headers))


def not_ready(reason: str) -> Response:
    """There is no model that could answer, or it says that it is not well."""
    body = error_body(f"{NOT_READY} {reason}")
    return Response(503, body, headers=(*ERROR_OF_MODEL, (b"retry-after", b"1")))


def stand_in(exchange: Exchange, reason: str) -> None:
    """Answer in place of a model that cannot: alive, but not ready."""
    if exchange.path == b"/" and exchange.method in (b"GET", b"HEAD"):
        exchange.respond(200, b"true")
    else:
        response = not_ready(reason)
        exchange.respond(response.status, response.body, response.content_type, response.headers)
