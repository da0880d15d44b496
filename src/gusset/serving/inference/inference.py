"""Runs the methods of a ready model for the requests that reach it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gusset.runtime.exchange import Exchange
from gusset.runtime.responses import caller_error
from gusset.serving.inference.direct_path import DirectPath
from gusset.serving.inference.inputs import InvalidInputs, parse_inputs
from gusset.serving.inference.methods import MethodKind, Methods
from gusset.serving.inference.model_call import ModelCall
from gusset.serving.inference.model_threads import ModelThreads
from gusset.serving.inference.response_masking import ResponseMasker
from gusset.serving.inference.result_sender import ResultSender
from gusset.serving.inference.staged_path import StagedPath

# Threads for `preprocess`, `postprocess` and OpenAI-style methods, which take no slot of
# `predict`. A synchronous stream keeps its thread as long as it lasts.
_OTHER_THREADS = 256


class Inference:
    """Takes requests for predictions and OpenAI-style methods, and sends the responses."""

    def __init__(
        self,
        methods: Methods,
        loop: asyncio.AbstractEventLoop,
        masker: ResponseMasker,
        *,
        concurrency: int,
        streaming_read_timeout: float,
        folder: Path,
    ) -> None:
        """`concurrency`: how many predictions run at a time.

        `streaming_read_timeout`: for how many seconds a stream may give no chunk before it is cut.
        """
        self._methods = methods
        self._predict_threads = ModelThreads(loop, concurrency, "model")
        other_threads = ModelThreads(loop, _OTHER_THREADS, "model-other")
        self.masker = masker
        sender = ResultSender(loop, masker, folder=folder, streaming_read_timeout=streaming_read_timeout)
        self._sender = sender
        self._staged = StagedPath(
            methods,
            sender,
            loop,
            concurrency=concurrency,
            predict_threads=self._predict_threads,
            other_threads=other_threads,
        )
        self._direct: DirectPath | None = None
        predict = methods.predict
        if (
            predict is not None
            and methods.stages == (predict,)
            and predict.kind in (MethodKind.SYNC, MethodKind.GENERATOR)
        ):
            self._direct = DirectPath(
                predict,
                sender,
                loop,
                predict_threads=self._predict_threads,
                other_threads=other_threads,
            )

    @property
    def waiting(self) -> int:
        """How many predictions wait for a slot."""
        return self._predict_threads.waiting + self._staged.waiting

    def predict(self, exchange: Exchange, request_id: bytes) -> None:
        """Run the request through `preprocess`, `predict` and `postprocess`."""
        call = ModelCall(exchange, request_id)
        predict = self._methods.predict
        if predict is None:
            call.send(caller_error(404, "`predict` must only be called if model has it."))
            return
        try:
            inputs = parse_inputs(call, self._methods.preprocess or predict)
        except Exception as error:
            self._refuse(call, error)
            return
        if self._direct is not None:
            self._direct.start(call, inputs)
        else:
            self._staged.start_prediction(call, predict, inputs)

    def call_openai_method(self, exchange: Exchange, request_id: bytes, name: str) -> None:
        """Run one OpenAI-style method: without the other stages, and without a slot."""
        call = ModelCall(exchange, request_id)
        method = next((each for each in self._methods.openai_style if each.name == name), None)
        try:
            inputs = parse_inputs(call, method)
        except Exception as error:
            self._refuse(call, error)
            return
        if method is None:
            call.send(caller_error(404, f"`{name}` must only be called if model has it."))
        else:
            self._staged.start_openai_method(call, method, inputs)

    def _refuse(self, call: ModelCall, error: Exception) -> None:
        """Respond that the inputs are invalid, or that a validator of the model failed."""
        if isinstance(error, InvalidInputs):
            call.send(caller_error(400, self.masker.text(str(error))))
        else:
            self._sender.send_error(call, error)
