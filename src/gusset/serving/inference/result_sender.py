"""A method's result, sent as a response: whole, as a stream, or by Starlette's own response object."""

# Imports in functions: Starlette is imported at the first response that needs it.

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from gusset.runtime import logs
from gusset.runtime.responses import ERROR_OF_CALLER, Response
from gusset.serving.inference.model_call import ModelCall
from gusset.serving.inference.model_threads import ModelThreads
from gusset.serving.inference.response_masking import ResponseMasker
from gusset.serving.inference.responses import error_response, success_response
from gusset.serving.inference.streams import (
    ResponseStream,
    collect,
    collect_async,
    is_async_generator,
    is_generator,
)
from gusset.serving.inference.task_set import TaskSet

if TYPE_CHECKING:
    import starlette.responses

    from gusset.runtime.asgi import AsgiSender

# Checked before anything else, since almost every result is one of them.
_VALUE_TYPES: Final = frozenset((dict, list, str, int, float, bool, type(None), tuple, bytes))


class ResultSender:
    """Sends results and errors.

    Everything here runs on the event loop, except `error_response` and `open_stream`, which
    may run on any thread.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        masker: ResponseMasker,
        *,
        folder: Path,
        streaming_read_timeout: float,
    ) -> None:
        """`folder`: the model's, where tracebacks in the log begin.

        `streaming_read_timeout`: for how many seconds a stream may give no chunk before it is cut.
        """
        self._loop = loop
        self.masker = masker
        self._folder = folder
        self._streaming_read_timeout = streaming_read_timeout
        self._responding = TaskSet(loop)

    async def run(self, call: ModelCall, work: Coroutine[Any, Any, None]) -> None:
        """Await `work`, which sends the response; if it raises, send its error."""
        logs.request_id.set(call.request_id.decode("ascii"))
        try:
            await work
        except BaseException as error:  # CancelledError too: a model may cancel itself
            if not call.exchange.disconnected:
                self.send_error(call, error)

    async def send(
        self, call: ModelCall, result: Any, threads: ModelThreads, *, may_join: bool = True
    ) -> None:
        """Send a result. A synchronous generator is iterated on one of `threads`.

        `may_join`: whether a stream is sent as one string to a client that wants that.
        """
        if is_value(result):
            self.send_value(call, result)
        elif is_generator(result):
            if may_join and call.wants_whole_stream:
                text = await threads.run(partial(collect, result, lambda: call.must_stop))
                self.send_value(call, text)
            else:
                stream = self.open_stream(call)
                self.close_stream(call, stream, await threads.run(partial(stream.send_all, result)))
        elif is_async_generator(result):
            if may_join and call.wants_whole_stream:
                text = await collect_async(result)
                self.send_value(call, text)
            else:
                stream = self.open_stream(call)
                self.close_stream(call, stream, await stream.send_all_async(result))
        elif _is_starlette_response(result):
            await self._send_starlette_response(call, result)
        else:  # an awaitable that a coroutine returned: becomes an error, since it has no JSON form
            self.send_value(call, result)

    def send_value(self, call: ModelCall, result: Any) -> None:
        call.send(success_response(result, self.masker, uses_msgpack=call.uses_msgpack))

    def send_error(self, call: ModelCall, error: BaseException) -> None:
        call.send(self.error_response(error))

    def error_response(self, error: BaseException) -> Response:
        """Log the model's error and make the response to it. May be called on any thread."""
        return error_response(error, self._folder, self.masker)

    def open_stream(self, call: ModelCall) -> ResponseStream:
        """Prepare the response that a generator produces. Sends nothing. May be called on any thread."""
        call.exchange.limit_silence(self._streaming_read_timeout)
        stream = call.output = ResponseStream(
            call.exchange,
            call.headers,
            self._loop,
            must_stop=lambda: call.must_stop,
            masking=self.masker.stream_of_result(),
        )
        return stream

    def close_stream(self, call: ModelCall, stream: ResponseStream, error: BaseException | None) -> None:
        """End a stream whose generator has ended, with `error` if it raised one."""
        call.output = None  # which refers to the call
        if call.exchange.disconnected:
            return
        if error is None:
            stream.finish()
            return
        response = self.error_response(error)
        if stream.is_empty:
            call.send(response)
        else:
            stream.abort()

    async def _send_starlette_response(self, call: ModelCall, response: starlette.responses.Response) -> None:
        """Have the response send itself. Its background task continues after this returns."""
        from gusset.runtime.asgi import AsgiSender

        extra = call.headers
        if response.status_code >= 300:  # Truss counts a status that the model chose as the caller's error
            extra = (*extra, *ERROR_OF_CALLER)
        sent = asyncio.Event()
        sender = call.output = AsgiSender(call.exchange, extra, sent.set)
        # In a task of its own: a client that disconnects must not cancel the background task.
        self._responding.start(self._run_starlette_response(call, response, sender, sent))
        await asyncio.shield(sent.wait())

    async def _run_starlette_response(
        self,
        call: ModelCall,
        response: starlette.responses.Response,
        sender: AsgiSender,
        sent: asyncio.Event,
    ) -> None:
        from gusset.runtime.asgi import make_scope

        try:
            send = self.masker.asgi(sender)
            await response(make_scope(call.exchange), call.disconnect_watcher.receive, send)
            if not sender.is_complete:
                raise RuntimeError("the response did not complete")  # noqa: TRY301
        except BaseException as error:
            if call.exchange.disconnected:
                return
            failed = self.error_response(error)  # logs an error of the background task, too
            if not sender.has_begun:
                call.send(failed)
            elif not sender.is_complete:
                call.exchange.cut()
        finally:
            sent.set()


def is_value(result: Any) -> bool:
    """Whether a result is a value to serialize, and no stream, awaitable or Starlette response."""
    return type(result) in _VALUE_TYPES or not (
        is_generator(result)
        or is_async_generator(result)
        or inspect.isawaitable(result)
        or _is_starlette_response(result)
    )


def _is_starlette_response(result: Any) -> TypeGuard[starlette.responses.Response]:
    module = sys.modules.get("starlette.responses")  # absent unless the model has imported it
    return module is not None and isinstance(result, module.Response)
