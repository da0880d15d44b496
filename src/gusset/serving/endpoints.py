"""The routes of the model server, as clients of Truss's server know them."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from gusset.serving.http import Request, error_body
from gusset.serving.model import Pipeline, own_trace
from gusset.serving.threads import ModelThreads

log = logging.getLogger("gusset.model")

MODEL_ERROR = "Internal Server Error (in model/chainlet)."
NOT_READY = "Model with name model is not ready."

# The values of x-baseten-error-code: whose fault an error is.
SERVER, MODEL, CLIENT = b"500", b"600", b"700"

_PREDICT = re.compile(rb"/v1/models/[^/]+(?::|%3A)predict", re.IGNORECASE)
_MODEL = re.compile(rb"/v1/models/[^/]+(/loaded)?")


def fail(request: Request, status: int, text: str, code: bytes) -> None:
    """An error as clients know it: a JSON body and two headers that say whose fault it is."""
    headers = [(b"x-baseten-error-source", b"04"), (b"x-baseten-error-code", code), *echoed(request)]
    request.respond(status, error_body(text), headers)


def echoed(request: Request) -> list[tuple[bytes, bytes]]:
    """The request's id goes back to whoever sent one."""
    sent = request.header(b"x-baseten-request-id")
    return [] if sent is None else [(b"x-baseten-request-id", sent)]


def route(request: Request, predict: Callable[[Request], None], ready: Callable[[Request], None]) -> None:
    """Send a request to liveness (here), readiness or predict; answer 404 and 405."""
    path = request.path.partition(b"?")[0]
    if path in (b"/predict", b"/v1/models/model:predict") or _PREDICT.fullmatch(path):
        handler, method = predict, "POST"
    elif path == b"/":
        handler, method = _alive, "GET"
    elif _MODEL.fullmatch(path):
        handler, method = ready, "GET"
    else:
        fail(request, 404, "Not Found", CLIENT)
        return
    if request.method == method:
        handler(request)
    else:
        fail(request, 405, "Method Not Allowed", CLIENT)


def _alive(request: Request) -> None:
    request.respond(200, b"true")


class ModelEndpoints:
    """Answers for a model that is loaded."""

    def __init__(self, pipeline: Pipeline, threads: ModelThreads, concurrency: int, model_file: Path) -> None:
        self._pipeline = pipeline
        self._threads = threads
        self._slots = asyncio.Semaphore(concurrency)
        self._model_file = model_file
        self._tasks: set[asyncio.Task[None]] = set()
        self._predict = self._predict_in_thread if pipeline.is_sync else self._predict_on_loop

    def handle(self, request: Request) -> None:
        route(request, self._predict, self._ready)

    def _ready(self, request: Request) -> None:
        request.respond(200, b"{}")

    def _predict_in_thread(self, request: Request) -> None:
        """Parse, predict and serialise in one go on a model thread: the loop only moves bytes."""

        def answer(result: Any, error: BaseException | None) -> None:
            if error is None:
                request.respond(200, result, echoed(request))
            else:
                self._failed(request, error)

        self._threads.submit(self._whole, (request,), answer)

    def _whole(self, request: Request) -> bytes:
        if request.gone:
            return b""
        return written(self._pipeline.run(parsed(request.body)))

    def _predict_on_loop(self, request: Request) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: Request) -> None:
        try:
            inputs = parsed(request.body)
            async with self._slots:
                if request.gone:
                    return
                result = await self._pipeline.run_on_loop(inputs, self._threads.call)
            request.respond(200, written(result), echoed(request))
        except BaseException as error:
            self._failed(request, error)

    def _failed(self, request: Request, error: BaseException) -> None:
        """What the client is told is short; the log has the model's own traceback."""
        if isinstance(error, InvalidInput):
            fail(request, 400, str(error), CLIENT)
        elif isinstance(error, NotWritable):
            log.error("%s", error)
            fail(request, 500, str(error), SERVER)
        else:
            log.error("%s\n%s", MODEL_ERROR, own_trace(error, self._model_file))
            fail(request, 500, MODEL_ERROR, MODEL)


class InvalidInput(ValueError):
    """The request's body is not JSON; the message says where, not what."""


class NotWritable(TypeError):
    """The model's result cannot be written as JSON; the message names its type."""


def parsed(body: bytes) -> Any:
    """The body's JSON. What orjson refuses (NaN, a byte-order mark, UTF-16) is left to Python's own reader."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno} (char {error.pos})"
        raise InvalidInput(f"Invalid JSON payload: {error.msg}: {place}") from None
    except UnicodeDecodeError:
        raise InvalidInput("Invalid JSON payload: it is not UTF-8") from None
    except RecursionError:
        raise InvalidInput("Invalid JSON payload: it is nested too deeply") from None
    except ValueError:
        raise InvalidInput("Invalid JSON payload: a number is too long") from None


_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def written(result: Any) -> bytes:
    """The result as JSON.

    Raises:
        NotWritable: it holds something that JSON has no form for.
    """
    try:
        return orjson.dumps(result, default=_plain, option=_OPTIONS)
    except (orjson.JSONEncodeError, RecursionError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, NotWritable) else None
        raise cause or NotWritable("The model's result cannot be written as JSON.") from None


def _plain(value: Any) -> Any:
    """What orjson does not know itself: text of a class of its own, pydantic models, sets, numpy's rarer types."""
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return list(value)
    raise NotWritable(f"The model's result cannot be written as JSON: it holds {_type_name(value)}.")


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
