"""HTTP responses: their bytes, and the errors of models and containers, in Truss's words and headers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import orjson

from gusset.runtime.exchange import JSON, Exchange, Headers

NOT_READY = "Model with name model is not ready."
ALL_IN_USE = "All connections are in use. Try again later."
TOO_MANY_WEBSOCKETS = "Too many websockets are open. Try again later."
RETRY = (b"retry-after", b"1")

_OF_CONNECTION = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer"),
        *(b"transfer-encoding", b"upgrade"),
    )
)
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[^\x00\r\n]*")

_STATUS_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}


@dataclass(slots=True)  # not frozen, which would make its creation take six times as long
class Response:
    """A whole response. Nothing changes it."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: Headers = ()


def status_line(status: int) -> bytes:
    """The first line of a response; also for a status that has no name."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def checked_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Headers that an application chose, without those of the connection, which the server sets.

    Raises:
        ValueError: one would end the head too early, or is no header.
    """
    headers = list(headers)
    for name, value in headers:
        if _FIELD.fullmatch(b"%b:%b" % (name, value)) is None:
            raise ValueError("a response's header is invalid")
    return [header for header in headers if header[0].lower() not in _OF_CONNECTION]


def error_body(text: str) -> bytes:
    """The body of every error response of a model or a container."""
    return orjson.dumps({"error": text})


def error_headers(code: int) -> Headers:
    """The headers that tell clients who caused the error: 500 the server, 600 the model, 700 the caller."""
    return ((b"x-baseten-error-source", b"04"), (b"x-baseten-error-code", b"%d" % code))


ERROR_OF_CALLER = error_headers(700)
ERROR_OF_MODEL = error_headers(600)


def caller_error(status: int, text: str, *headers: tuple[bytes, bytes]) -> Response:
    """An error that the caller made."""
    return Response(status, error_body(text), headers=(*ERROR_OF_CALLER, *headers))


def busy(text: str) -> Response:
    """A server that has no room for the request now."""
    return caller_error(503, text, RETRY)


def not_ready(reason: str) -> Response:
    """The model cannot take requests: it is not running, or its health check fails."""
    body = error_body(f"{NOT_READY} {reason}")
    return Response(503, body, headers=(*ERROR_OF_MODEL, RETRY))


def respond_not_ready(exchange: Exchange, reason: str) -> None:
    """Respond for a model that cannot: alive, but not ready."""
    if exchange.path == b"/" and exchange.method in (b"GET", b"HEAD"):
        exchange.respond(200, b"true")
    else:
        response = not_ready(reason)
        exchange.respond(response.status, response.body, response.content_type, response.headers)
