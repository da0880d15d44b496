"""The routes of the model server: which request does what, and how its outcome looks in HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from gusset.serving.http import (
    ERROR_OF_CALLER,
    JSON,
    Exchange,
    error_body,
    error_headers,
)
from gusset.serving.logs import model_traceback
from gusset.serving.model import LoadedModel, Stage
from gusset.serving.results import InvalidJson, Unserialisable, parse, render
from gusset.serving.slots import ModelThreads, Raised

log = logging.getLogger("gusset.serving")

NOT_READY = "Model with name model is not ready."
MODEL_ERROR = "Internal Server Error (in model/chainlet)."
REQUEST_ID = b"x-baseten-request-id"

_PREDICT = re.compile(rb"/v1/models/[^/]+:predict(?:_binary)?\Z")
_STATUS = re.compile(rb"/v1/models/[^/:]+(?:/loaded)?\Z")
_SANE_ID = re.compile(rb"[\x21-\x7e]{1,200}\Z")
_ERROR_OF_SERVER = error_headers(500)
_ERROR_OF_MODEL = error_headers(600)


class Answer:
    """A finished outcome, on its way to the client."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes, headers: Any = ()) -> None:
        self.status = status
        self.body = body
        self.headers = headers


_METRICS = ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),)
_SOURCE_UP = b"""\
# HELP gusset_secrets_source_up Whether changes of secrets can be heard of.
# TYPE gusset_secrets_source_up gauge
gusset_secrets_source_up %d
"""


class Endpoints:
    """Answers every request of a ready model; made for `HttpServer` as its handler."""

    def __init__(
        self,
        model: LoadedModel,
        threads: ModelThreads,
        *,
        concurrency: int,
        folder: Path,
        trouble: Callable[[], str | None],
    ) -> None:
        self._model = model
        self._threads = threads
        self._slots = asyncio.Semaphore(concurrency)
        self._folder = folder
        self._trouble = trouble  # with the secrets' source; the model goes on with what it has
        self._tasks: set[asyncio.Task[None]] = set()
        prefix = secrets.token_hex(6).encode()
        self._ids = (b"%b-%x" % (prefix, number) for number in itertools.count(1))
        self._infer = self._infer_on_loop if model.is_async else self._infer_on_thread

    def __call__(self, exchange: Exchange) -> None:
        """Route one request."""
        path = exchange.path
        if path == b"/v1/models/model:predict" or path == b"/predict" or _PREDICT.match(path):
            if exchange.method == b"POST":
                self._predict(exchange)
            else:
                _not_allowed(exchange, b"POST")
        elif path == b"/" or _STATUS.match(path):
            if exchange.method in (b"GET", b"HEAD"):
                exchange.respond(200, b"true" if path == b"/" else self._readiness())
            else:
                _not_allowed(exchange, b"GET, HEAD")
        elif path == b"/metrics" and exchange.method == b"GET":
            exchange.respond(200, self._metrics(), headers=_METRICS)
        else:
            exchange.respond(404, error_body("Not Found"), headers=ERROR_OF_CALLER)

    def _readiness(self) -> bytes:
        """Ready; and what is wrong all the same."""
        trouble = self._trouble()
        return orjson.dumps({"secrets": {"trouble": trouble}}) if trouble else b"{}"

    def _metrics(self) -> bytes:
        """What Prometheus asks for."""
        return _SOURCE_UP % (self._trouble() is None)

    def _predict(self, exchange: Exchange) -> None:
        try:
            value = parse(exchange.body)
        except InvalidJson as error:
            text = f"Invalid JSON payload: {error}"
            exchange.respond(400, error_body(text), headers=(*ERROR_OF_CALLER, self._id_of(exchange)))
            return
        exchange.body = b""  # parsed: the model may need the memory
        self._infer(exchange, value)

    def _infer_on_thread(self, exchange: Exchange, value: Any) -> None:
        """All stages are synchronous: one hand-over to a model thread, one back."""
        stages = self._model.stages

        def call() -> Callable[[], object]:
            if exchange.gone:
                return _nothing
            result = value
            try:
                for stage in stages:
                    result = stage(result)
                answer = self._success(result)
            except BaseException as error:  # SystemExit too: a model's error like any other
                answer = self._failure(error)
            return lambda: self._send(exchange, answer)

        self._threads.put(call)

    def _infer_on_loop(self, exchange: Exchange, value: Any) -> None:
        """Some stage is a coroutine: a task, which ends with its client."""
        task = asyncio.get_running_loop().create_task(self._stages(exchange, value))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        exchange.on_gone = task.cancel

    async def _stages(self, exchange: Exchange, value: Any) -> None:
        try:
            for stage in self._model.stages:
                if stage.name == "predict":
                    async with self._slots:
                        value = await self._one(stage, value)
                else:
                    value = await self._one(stage, value)
            answer = self._success(value)
        except asyncio.CancelledError as error:
            if exchange.gone:
                return
            answer = self._failure(error)
        except BaseException as error:
            answer = self._failure(error)
        self._send(exchange, answer)

    async def _one(self, stage: Stage, value: Any) -> Any:
        if stage.is_async:
            return await stage(value)
        return await self._threads.run(lambda: stage(value))

    def _success(self, result: Any) -> Answer:
        try:
            return Answer(200, render(result))
        except Unserialisable as error:
            log.error("The model's result cannot be sent: %s", error)  # noqa: TRY400  # no traceback: ours
            text = f"Unhandled exception: TypeError: {error}"
            return Answer(500, error_body(text), _ERROR_OF_SERVER)

    def _failure(self, error: BaseException) -> Answer:
        """The client hears that the model failed; the log hears why."""
        if isinstance(error, Raised) and error.__cause__ is not None:
            error = error.__cause__
        try:
            log.error("%s\n%s", MODEL_ERROR, model_traceback(error, self._folder))
        except Exception:  # an error that cannot even be shown: the client still gets its answer
            with contextlib.suppress(Exception):
                log.error("%s (%s)", MODEL_ERROR, type(error).__name__)  # noqa: TRY400
        return Answer(500, error_body(MODEL_ERROR), _ERROR_OF_MODEL)

    def _send(self, exchange: Exchange, answer: Answer) -> None:
        exchange.respond(answer.status, answer.body, JSON, (*answer.headers, self._id_of(exchange)))

    def _id_of(self, exchange: Exchange) -> tuple[bytes, bytes]:
        given = exchange.header(REQUEST_ID)
        return (REQUEST_ID, given if given and _SANE_ID.match(given) else next(self._ids))


def not_ready(exchange: Exchange, reason: str) -> None:
    """Answer in place of a model that cannot: alive, but not ready."""
    if exchange.path == b"/" and exchange.method in (b"GET", b"HEAD"):
        exchange.respond(200, b"true")
    else:
        body = error_body(f"{NOT_READY} {reason}")
        exchange.respond(503, body, headers=(*_ERROR_OF_MODEL, (b"retry-after", b"1")))


def _not_allowed(exchange: Exchange, allowed: bytes) -> None:
    body = error_body("Method Not Allowed")
    exchange.respond(405, body, headers=(*ERROR_OF_CALLER, (b"allow", allowed)))


def _nothing() -> None:
    """What is left to do for a client that has gone."""
