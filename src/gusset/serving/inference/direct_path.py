"""Predictions of a model that has a synchronous `predict` and no other stage.

One handover to a model thread, which runs `predict` and serializes its result,
and one back to the event loop, which writes the response. The threads are the
limit of how many predictions run at a time.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from gusset.runtime import logs
from gusset.serving.inference.methods import Method
from gusset.serving.inference.model_call import ModelCall
from gusset.serving.inference.model_threads import ModelThreads, do_nothing
from gusset.serving.inference.responses import success_response
from gusset.serving.inference.result_sender import ResultSender, is_value
from gusset.serving.inference.streams import is_generator


class DirectPath:
    """Runs `predict` on the threads of its slots."""

    def __init__(
        self,
        predict: Method,
        sender: ResultSender,
        loop: asyncio.AbstractEventLoop,
        *,
        predict_threads: ModelThreads,
        other_threads: ModelThreads,
    ) -> None:
        """`other_threads` iterate a generator that an awaitable result gives."""
        self._predict = predict
        self._sender = sender
        self._loop = loop
        self._threads = predict_threads
        self._other_threads = other_threads

    def start(self, call: ModelCall, inputs: Any) -> None:
        exchange, predict = call.exchange, self._predict
        function, request_id = predict.function, call.request_id.decode("ascii")
        arguments = predict.arguments(inputs, call.request if predict.wants_request else None)
        del inputs  # the model may need the memory

        def run() -> Callable[[], object]:
            if exchange.disconnected:
                return do_nothing
            logs.request_id.set(request_id)
            try:
                result = function(*arguments)
                if not is_value(result):
                    return self._send_special(call, result)
                response = success_response(result, self._sender.masker, uses_msgpack=call.uses_msgpack)
            except BaseException as error:  # SystemExit too: a model's error like any other
                response = self._sender.error_response(error)
            return partial(call.send, response)

        try:
            self._threads.put(run)
        except (RuntimeError, OSError) as error:  # no thread can be started
            self._sender.send_error(call, error)

    def _send_special(self, call: ModelCall, result: Any) -> Callable[[], object]:
        """Send a result that is no value. This thread, and so the slot, is taken until it is sent."""
        if not is_generator(result) or call.wants_whole_stream:
            return self._send_on_loop(call, result)
        stream = self._sender.open_stream(call)
        error = stream.send_all(result)
        return partial(self._sender.close_stream, call, stream, error)

    def _send_on_loop(self, call: ModelCall, result: Any) -> Callable[[], object]:
        async def send() -> None:
            call.task = asyncio.current_task()
            await self._sender.run(call, self._resolve_and_send(call, result))

        future = asyncio.run_coroutine_threadsafe(send(), self._loop)
        try:
            future.result()
        except BaseException:  # cancelled, since its client has disconnected
            return do_nothing
        return do_nothing

    async def _resolve_and_send(self, call: ModelCall, result: Any) -> None:
        if inspect.isawaitable(result):
            result = await result
        await self._sender.send(call, result, self._other_threads)
