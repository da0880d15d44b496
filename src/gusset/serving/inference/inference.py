"""One request through the model's methods, and its outcome to the client."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gusset.runtime import logs
from gusset.runtime.exchange import Exchange
from gusset.runtime.responses import Response, caller_error
from gusset.serving.inference.json_codec import InvalidJson, parse
from gusset.serving.inference.methods import Method, MethodKind, Methods, Parameters
from gusset.serving.inference.model_threads import ModelThreads
from gusset.serving.inference.responses import MSGPACK, error_response, success_response
from gusset.serving.inference.streams import (
    ResponseStream,
    collect,
    collect_async,
    is_async_generator,
    is_generator,
)

if TYPE_CHECKING:
    from gusset.serving.inference.asgi import DisconnectWatcher

REQUEST_ID = b"x-baseten-request-id"

# Threads for whatever takes no slot: preprocess, postprocess, OpenAI-style methods. A synchronous
# stream keeps one as long as it lasts.
_OTHER_THREADS = 256
_ORDINARY = frozenset((dict, list, str, int, float, bool, type(None), tuple, bytes))


class ModelCall:
    """One request on its way through the model; `on_disconnect` is called when its client has gone."""

    __slots__ = (
        "_disconnect_watcher",
        "_request",
        "body",
        "exchange",
        "id",
        "stream",
        "task",
        "uses_msgpack",
    )

    def __init__(self, exchange: Exchange, request_id: bytes) -> None:
        self.exchange = exchange
        self.id = request_id
        self.body = exchange.body
        self.uses_msgpack = False
        self.task: asyncio.Task[None] | None = None
        self.stream: Any = None  # what to wake when the client has gone
        self._disconnect_watcher: DisconnectWatcher | None = None
        self._request: Any = None
        exchange.on_gone = self.on_disconnect

    def on_disconnect(self) -> None:
        if self._disconnect_watcher is not None:
            self._disconnect_watcher.on_disconnect()
        if self.stream is not None:
            self.stream.on_disconnect()
        if self.task is not None:
            self.task.cancel()

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return ((REQUEST_ID, self.id),)

    @property
    def disconnect_watcher(self) -> DisconnectWatcher:
        if self._disconnect_watcher is None:
            from gusset.serving.inference.asgi import DisconnectWatcher

            self._disconnect_watcher = DisconnectWatcher(self.exchange)
        return self._disconnect_watcher

    @property
    def request(self) -> Any:
        """The request as Starlette has it; the same object for all methods."""
        if self._request is None:
            from gusset.serving.inference.asgi import request_of

            self._request = request_of(self.exchange, self.body, self.disconnect_watcher)
        return self._request

    @property
    def wants_one_body(self) -> bool:
        """Whether a stream is to be answered in one piece, as JSON."""
        if self.exchange.header(b"accept") != b"application/json":
            return False
        return b"openai" not in (self.exchange.header(b"user-agent") or b"").lower()

    def send(self, response: Response) -> None:
        self.exchange.respond(
            response.status, response.body, response.content_type, (*response.headers, (REQUEST_ID, self.id))
        )


class Inference:
    """Runs the methods of a ready model, `concurrency` predictions at a time."""

    def __init__(
        self,
        methods: Methods,
        loop: asyncio.AbstractEventLoop,
        *,
        concurrency: int,
        silence: float,
        folder: Path,
    ) -> None:
        """`silence`: for how many seconds a stream may give nothing."""
        self._methods = methods
        self._loop = loop
        self._predict_slots = asyncio.Semaphore(concurrency)
        self._queued = 0  # tasks that wait for a slot
        self._predict_threads = ModelThreads(loop, concurrency, "model")
        self._other_threads = ModelThreads(loop, _OTHER_THREADS, "model-other")
        self._silence = silence
        self._folder = folder
        self._tasks: set[asyncio.Task[None]] = set()
        predict = methods.predict
        self._direct = (
            predict is not None
            and methods.stages == (predict,)
            and predict.kind in (MethodKind.SYNC, MethodKind.GENERATOR)
        )

    @property
    def waiting(self) -> int:
        """How many predictions wait for their turn."""
        return self._predict_threads.waiting + self._queued

    def predict(self, exchange: Exchange, request_id: bytes) -> None:
        """Answer with what preprocess, predict and postprocess make of the request."""
        call = ModelCall(exchange, request_id)
        predict = self._methods.predict
        if predict is None:
            call.send(caller_error(404, "`predict` must only be called if model has it."))
            return
        inputs = self._inputs(call, self._methods.preprocess or predict)
        if isinstance(inputs, Response):
            call.send(inputs)
        elif self._direct:
            self._predict_directly(call, predict, inputs)
        else:
            self._start_task(call, self._stages(call, predict, inputs))

    def call(self, exchange: Exchange, request_id: bytes, name: str) -> None:
        """Answer with what an OpenAI-style method gives: no other stage, no slot."""
        call = ModelCall(exchange, request_id)
        method = next((each for each in self._methods.openai_style if each.name == name), None)
        inputs = self._inputs(call, method)
        if isinstance(inputs, Response):
            call.send(inputs)
        elif method is None:
            call.send(caller_error(404, f"`{name}` must only be called if model has it."))
        else:
            self._start_task(call, self._run_openai_method(call, method, inputs))

    # What goes in.

    def _inputs(self, call: ModelCall, method: Method | None) -> Any:
        """What the method is given, or the answer to a body that cannot be."""
        exchange = call.exchange
        content_type = exchange.header(b"content-type")
        if content_type is not None and content_type[:24].lower() == MSGPACK:
            call.uses_msgpack = content_type[24:].strip()[:1] in (b"", b";")
        if method is not None and method.parameters is Parameters.REQUEST:
            return None
        input_type = method.input_type if method is not None else None
        try:
            if call.uses_msgpack:
                from gusset.serving.inference.msgpack_codec import InvalidMsgpack, unpack

                try:
                    value = unpack(exchange.body)
                except InvalidMsgpack as error:
                    return caller_error(400, str(error))
            else:
                value = parse(exchange.body)
        except InvalidJson as error:
            if input_type is not None:
                return caller_error(400, f"Input Parsing Error:\n  `__root__`: Invalid JSON: {error}.")
            return caller_error(400, f"Invalid JSON payload: {error}")
        exchange.body = b""  # parsed: the model may need the memory
        if method is None or not method.wants_request:
            call.body = b""
        return value if input_type is None else _validated(input_type, value)

    # The direct way, for a model that has a synchronous `predict` and no other stage: one hand-over
    # to a model thread, one back. The thread is the slot.

    def _predict_directly(self, call: ModelCall, method: Method, inputs: Any) -> None:
        exchange, function, request_id = call.exchange, method.function, call.id.decode("ascii")
        arguments = method.arguments(inputs, call.request if method.wants_request else None)
        del inputs

        def run() -> Callable[[], object]:
            if exchange.gone:
                return _do_nothing
            logs.request_id.set(request_id)
            try:
                result = function(*arguments)
                if type(result) not in _ORDINARY and _is_special(result):
                    return self._stream_directly(call, result)
                answer = success_response(result, uses_msgpack=call.uses_msgpack)
            except BaseException as error:  # SystemExit too: a model's error like any other
                answer = error_response(error, self._folder)
            return partial(call.send, answer)

        self._predict_threads.put(run)

    def _stream_directly(self, call: ModelCall, result: Any) -> Callable[[], object]:
        """A result that is not sent in one piece: this thread stays with it until it is."""
        if not is_generator(result) or call.wants_one_body:
            return self._leave_to_loop(call, result)
        stream = call.stream = self._stream(call)
        error = stream.send_all(result)
        return partial(self._end_stream, call, stream, error)

    def _leave_to_loop(self, call: ModelCall, result: Any) -> Callable[[], object]:
        """Have the loop answer with what only it can run, and keep the slot meanwhile."""

        async def answer() -> None:
            call.task = asyncio.current_task()
            await self._respond_to_errors(call, self._settle(call, result))

        future = asyncio.run_coroutine_threadsafe(answer(), self._loop)
        try:
            future.result()
        except BaseException:  # cancelled, since its client has gone
            return _do_nothing
        return _do_nothing

    async def _settle(self, call: ModelCall, result: Any) -> None:
        if inspect.isawaitable(result):
            result = await result
        await self._send_result(call, result, self._other_threads)

    # The general way: a task, which ends with its client.

    def _start_task(self, call: ModelCall, work: Any) -> None:
        task = call.task = self._loop.create_task(self._respond_to_errors(call, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _respond_to_errors(self, call: ModelCall, work: Any) -> None:
        """Do the work, and answer with its error if there is one."""
        logs.request_id.set(call.id.decode("ascii"))
        try:
            await work
        except asyncio.CancelledError as error:
            if not call.exchange.gone:
                call.send(error_response(error, self._folder))
        except BaseException as error:
            if not call.exchange.gone:
                call.send(error_response(error, self._folder))

    async def _stages(self, call: ModelCall, predict: Method, value: Any) -> None:
        preprocess, postprocess = self._methods.preprocess, self._methods.postprocess
        if preprocess is not None:
            value = await self._invoke(preprocess, value, call, self._other_threads)
        self._queued += 1
        try:
            await self._predict_slots.acquire()
        finally:
            self._queued -= 1
        try:
            result = await self._invoke(predict, value, call, self._predict_threads)
            if postprocess is None:
                await self._send_result(call, result, self._predict_threads)
                return
        finally:
            self._predict_slots.release()
        if _is_special(result):
            raise TypeError(
                "with a `postprocess` method, `predict` cannot give a generator or a response: "
                f"it gave {type(result).__name__}"
            )
        result = await self._invoke(postprocess, result, call, self._other_threads)
        await self._send_result(call, result, self._other_threads, may_collect=False)

    async def _run_openai_method(self, call: ModelCall, method: Method, inputs: Any) -> None:
        await self._send_result(
            call, await self._invoke(method, inputs, call, self._other_threads), self._other_threads
        )

    async def _invoke(self, method: Method, value: Any, call: ModelCall, threads: ModelThreads) -> Any:
        arguments = method.arguments(value, call.request if method.wants_request else None)
        del value
        if method.kind is MethodKind.COROUTINE:
            return await method.function(*arguments)
        if method.kind is not MethodKind.SYNC:
            return method.function(*arguments)
        result = await threads.run(partial(method.function, *arguments))
        return await result if inspect.isawaitable(result) else result

    # What goes out.

    async def _send_result(
        self, call: ModelCall, result: Any, threads: ModelThreads, *, may_collect: bool = True
    ) -> None:
        if type(result) in _ORDINARY:
            call.send(success_response(result, uses_msgpack=call.uses_msgpack))
        elif is_generator(result):
            if may_collect and call.wants_one_body:
                text = await threads.run(partial(collect, result, lambda: call.exchange.gone))
                call.send(success_response(text, uses_msgpack=call.uses_msgpack))
            else:
                stream = call.stream = self._stream(call)
                error = await threads.run(partial(stream.send_all, result))
                self._end_stream(call, stream, error)
        elif is_async_generator(result):
            if may_collect and call.wants_one_body:
                call.send(success_response(await collect_async(result), uses_msgpack=call.uses_msgpack))
            else:
                stream = call.stream = self._stream(call)
                self._end_stream(call, stream, await stream.send_all_async(result))
        elif _is_response(result):
            await self._send_response(call, result)
        else:
            call.send(success_response(result, uses_msgpack=call.uses_msgpack))

    def _stream(self, call: ModelCall) -> ResponseStream:
        call.exchange.limit_silence(self._silence)
        return ResponseStream(call.exchange, call.headers, self._loop)

    def _end_stream(self, call: ModelCall, stream: ResponseStream, error: BaseException | None) -> None:
        if call.exchange.gone:
            return
        if error is None:
            stream.finish()
            return
        answer = error_response(error, self._folder)
        if stream.is_empty:
            call.send(answer)
        else:
            stream.abort()

    async def _send_response(self, call: ModelCall, response: Any) -> None:
        """Have a response of Starlette's send itself; what it does after its last byte holds up nobody."""
        from gusset.runtime.asgi import AsgiSender, make_scope

        headers = list(call.headers)
        if response.status_code >= 300:
            headers += [(b"x-baseten-error-source", b"04"), (b"x-baseten-error-code", b"700")]
        sent = asyncio.Event()
        sending = call.stream = AsgiSender(call.exchange, headers, sent.set)

        async def respond() -> None:
            try:
                await response(make_scope(call.exchange), call.disconnect_watcher.receive, sending)
                if not sending.is_complete:
                    raise RuntimeError("the response did not complete")  # noqa: TRY301
            except BaseException as error:
                if call.exchange.gone:
                    return
                answer = error_response(error, self._folder)
                if not sending.has_begun:
                    call.send(answer)
                elif not sending.is_complete:
                    call.exchange.cut()
            finally:
                sent.set()

        # A task of its own: a client that leaves must not cancel what the model does afterwards.
        task = self._loop.create_task(respond())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(sent.wait())


def _is_special(result: Any) -> bool:
    """Whether a result is more than a value to be written down."""
    return (
        is_generator(result)
        or is_async_generator(result)
        or inspect.isawaitable(result)
        or _is_response(result)
    )


def _is_response(result: Any) -> bool:
    starlette = sys.modules.get("starlette.responses")
    return starlette is not None and isinstance(result, starlette.Response)


def _validated(input_type: Any, value: Any) -> Any:
    """`value` as an object of a pydantic class, or the answer that says what is wrong with it."""
    import pydantic

    try:
        return input_type.model_validate(value)
    except pydantic.ValidationError as error:
        faults = [f"  `{_location(fault)}`: {fault['msg']}." for fault in _validation_errors(error)]
        title = "Input Parsing Errors:" if len(faults) > 1 else "Input Parsing Error:"
        return caller_error(400, "\n".join((title, *faults)))


def _validation_errors(error: Any) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = error.errors(
        include_url=False, include_context=False, include_input=False
    )
    return found


def _location(fault: Mapping[str, Any]) -> str:
    """`rows[0].n`."""
    place = ""
    for part in fault["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    return place


def _do_nothing() -> None:
    """What is left to do for a client that has gone."""
