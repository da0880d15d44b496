"""Responses in JSON."""

from __future__ import annotations

from typing import Any

import orjson

from gusset.manager.api.operations import ApiResponse
from gusset.runtime.exchange import JSON
from gusset.runtime.responses import Response

NO_STORE = (b"cache-control", b"no-store")


def json_response(status: int, data: Any, *headers: tuple[bytes, bytes]) -> Response:
    """A response in JSON that must not be cached."""
    return Response(status, orjson.dumps(data), JSON, (NO_STORE, *headers))


def response_of(result: object) -> Response:
    """The response for what a handler returns."""
    if isinstance(result, ApiResponse):
        headers = [(name.encode(), value.encode("latin-1")) for name, value in result.headers.items()]
        return json_response(200, result.data, *headers)
    return json_response(200, result)
