"""The responses to a model's results and errors, in Truss's words and headers."""

# Imports in functions: a worker imports numpy's codec at the first request that needs it.

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import Any, Final

from gusset.runtime.logs import model_traceback
from gusset.runtime.responses import ERROR_OF_MODEL, Response, checked_headers, error_body, error_headers
from gusset.serving.inference.json_codec import NotSerializable, render
from gusset.serving.inference.model_threads import WrappedError
from gusset.serving.inference.response_masking import ResponseMasker

log = logging.getLogger("gusset")

MODEL_ERROR = "Internal Server Error (in model/chainlet)."
MSGPACK: Final = b"application/octet-stream"

ERROR_OF_SERVER = error_headers(500)
_OF_BODY = frozenset((b"content-length", b"content-type"))  # an error's body is gusset's


def success_response(result: Any, masker: ResponseMasker, *, uses_msgpack: bool) -> Response:
    """The response with a result, as JSON or msgpack; an error response if it cannot be serialized."""
    if masker.results:
        result = masker.strings(result)
    try:
        if uses_msgpack:
            from gusset.serving.inference.msgpack_codec import pack

            packed = pack(result, masker.strings) if masker.results else pack(result)
            return Response(200, packed, MSGPACK)
        body = render(result)
        return Response(200, masker.body(body) if masker.results else body)
    except NotSerializable as error:
        log.error("The model's result cannot be serialized: %s", error)  # noqa: TRY400  # no traceback: ours
        text = f"Unhandled exception: TypeError: {error}"
        return Response(500, error_body(masker.text(text)), headers=ERROR_OF_SERVER)


def error_response(error: BaseException, folder: Path, masker: ResponseMasker) -> Response:
    """Log a model's error with its traceback from `folder` on, and make the response to it.

    The response has nothing of the error, except for an `HTTPException` of
    Starlette or FastAPI: its status, detail and headers are for the caller, masked.
    """
    if isinstance(error, WrappedError) and error.__cause__ is not None:
        error = error.__cause__
    module = sys.modules.get("starlette.exceptions")
    is_http_exception = module is not None and isinstance(error, module.HTTPException)
    message = "Model raised HTTPException" if is_http_exception else MODEL_ERROR
    try:
        log.error("%s\n%s", message, model_traceback(error, folder))
    except Exception:  # its __str__ or __repr__ raises
        with contextlib.suppress(Exception):
            log.error("%s (%s)", message, type(error).__name__)  # noqa: TRY400
    if is_http_exception:
        with contextlib.suppress(Exception):  # its detail or headers cannot be sent
            return _http_exception_response(error, masker)
    return Response(500, error_body(MODEL_ERROR), headers=ERROR_OF_MODEL)


def _http_exception_response(error: Any, masker: ResponseMasker) -> Response:
    """The response to an `HTTPException`. FastAPI's `detail` may be more than Starlette's types say."""
    given = [
        (name.lower().encode("latin-1"), str(value).encode("latin-1"))
        for name, value in (error.headers or {}).items()
    ]
    if not 200 <= error.status_code < 1000:
        raise ValueError(f"{error.status_code} is not the status of a complete response")
    headers = [header for header in checked_headers(given) if header[0] not in _OF_BODY]
    body = b"" if error.status_code in (204, 304) else render({"error": masker.strings(error.detail)})
    return masker.response(Response(error.status_code, body, headers=(*ERROR_OF_MODEL, *headers)))
