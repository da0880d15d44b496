"""Predictions of any model, and calls of its OpenAI-style methods, as tasks of the event loop.

A task is cancelled after its client disconnects. Only `predict` takes one of the slots
that limit how many predictions run at a time.
"""

from __future__ import annotations

import asyncio
import inspect
from functools import partial
from typing import Any

from gusset.serving.inference.methods import Method, MethodKind, Methods
from gusset.serving.inference.model_call import ModelCall
from gusset.serving.inference.model_threads import ModelThreads
from gusset.serving.inference.prediction_slots import PredictionSlots
from gusset.serving.inference.result_sender import ResultSender, is_value
from gusset.serving.inference.task_set import TaskSet


class StagedPath:
    """Runs `preprocess`, `predict` and `postprocess`, or one OpenAI-style method."""

    def __init__(
        self,
        methods: Methods,
        sender: ResultSender,
        loop: asyncio.AbstractEventLoop,
        *,
        concurrency: int,
        predict_threads: ModelThreads,
        other_threads: ModelThreads,
    ) -> None:
        """`concurrency`: how many predictions run at a time."""
        self._methods = methods
        self._sender = sender
        self._slots = PredictionSlots(concurrency)
        self._predict_threads = predict_threads
        self._other_threads = other_threads
        self._tasks = TaskSet(loop)

    @property
    def waiting(self) -> int:
        """How many predictions wait for a slot."""
        return self._slots.waiting

    def start_prediction(self, call: ModelCall, predict: Method, inputs: Any) -> None:
        call.task = self._tasks.start(self._sender.run(call, self._predict(call, predict, inputs)))

    def start_openai_method(self, call: ModelCall, method: Method, inputs: Any) -> None:
        call.task = self._tasks.start(self._sender.run(call, self._run_single(call, method, inputs)))

    async def _predict(self, call: ModelCall, predict: Method, value: Any) -> None:
        preprocess, postprocess = self._methods.preprocess, self._methods.postprocess
        if preprocess is not None:
            value = await _invoke(preprocess, value, call, self._other_threads)
        if not self._slots.take():
            await self._slots.wait()
        try:
            result = await _invoke(predict, value, call, self._predict_threads)
            if postprocess is None:
                if is_value(result):  # `send` would do the same, at the cost of a coroutine
                    self._sender.send_value(call, result)
                    return
                await self._sender.send(call, result, self._predict_threads)
                return
        finally:
            self._slots.give()
        if not is_value(result):
            raise TypeError(
                "with a `postprocess` method, `predict` cannot return a generator or a response: "
                f"it returned {type(result).__name__}"
            )
        result = await _invoke(postprocess, result, call, self._other_threads)
        await self._sender.send(call, result, self._other_threads, may_join=False)

    async def _run_single(self, call: ModelCall, method: Method, inputs: Any) -> None:
        result = await _invoke(method, inputs, call, self._other_threads)
        await self._sender.send(call, result, self._other_threads)


async def _invoke(method: Method, value: Any, call: ModelCall, threads: ModelThreads) -> Any:
    """The result of a method; a synchronous one runs on one of `threads`."""
    arguments = method.arguments(value, call.request if method.wants_request else None)
    value = None  # the model may need the memory
    if method.kind is MethodKind.COROUTINE:
        return await method.function(*arguments)
    if method.kind is not MethodKind.SYNC:
        return method.function(*arguments)  # only makes the generator
    result = await threads.run(partial(method.function, *arguments))
    return await result if inspect.isawaitable(result) else result
