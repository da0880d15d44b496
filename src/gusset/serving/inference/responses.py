"""What a client is told: a model's result, or what went wrong, in Truss's words and headers."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import Any

from gusset.runtime.logs import model_traceback
from gusset.runtime.responses import ERROR_OF_MODEL, Response, error_body, error_headers
from gusset.serving.inference.json_codec import NotSerializable, render
from gusset.serving.inference.model_threads import WrappedError

log = logging.getLogger("gusset.serving")

MODEL_ERROR = "Internal Server Error (in model/chainlet)."
MSGPACK = b"application/octet-stream"

ERROR_OF_SERVER = error_headers(500)


def success_response(result: Any, *, uses_msgpack: bool) -> Response:
    """A model's result, as JSON or as msgpack."""
    try:
        if uses_msgpack:
            from gusset.serving.inference.msgpack_codec import pack

            return Response(200, pack(result), MSGPACK)
        return Response(200, render(result))
    except NotSerializable as error:
        log.error("The model's result cannot be sent: %s", error)  # noqa: TRY400  # no traceback: ours
        text = f"Unhandled exception: TypeError: {error}"
        return Response(500, error_body(text), headers=ERROR_OF_SERVER)


def error_response(error: BaseException, folder: Path) -> Response:
    """A model's error: the client hears that it failed, the log hears why.

    An `HTTPException` of Starlette or FastAPI is what the model wants to say to the client.
    """
    if isinstance(error, WrappedError) and error.__cause__ is not None:
        error = error.__cause__
    starlette = sys.modules.get("starlette.exceptions")
    meant = starlette is not None and isinstance(error, starlette.HTTPException)
    what = "Model raised HTTPException" if meant else MODEL_ERROR
    try:
        log.error("%s\n%s", what, model_traceback(error, folder))
    except Exception:  # an error that cannot even be shown: the client still gets its answer
        with contextlib.suppress(Exception):
            log.error("%s (%s)", what, type(error).__name__)  # noqa: TRY400
    if meant:
        with contextlib.suppress(Exception):  # a detail or a header that cannot be sent
            return _http_exception_response(error)
    return Response(500, error_body(MODEL_ERROR), headers=ERROR_OF_MODEL)


def _http_exception_response(error: Any) -> Response:
    headers = tuple(
        (name.lower().encode("latin-1"), str(value).encode("latin-1"))
        for name, value in (error.headers or {}).items()
    )
    if any(b"\r" in part or b"\n" in part for header in headers for part in header):
        raise ValueError("a header cannot have line breaks")
    if not 100 < error.status_code < 1000:
        raise ValueError("HTTP has no such status")
    return Response(error.status_code, render({"error": error.detail}), headers=(*ERROR_OF_MODEL, *headers))
