"""Joins a loaded model, its inference and its websockets to the HTTP API that serves it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from gusset.serving.deployment import ModelDeployment
from gusset.serving.http_api.endpoints import ModelApi
from gusset.serving.http_api.metrics import Metrics
from gusset.serving.inference.inference import Inference
from gusset.serving.inference.methods import Methods
from gusset.serving.inference.response_masking import ResponseMasker

if TYPE_CHECKING:
    from gusset.serving.http_api.websockets import Websockets


def make_api(
    methods: Methods,
    deployment: ModelDeployment,
    loop: asyncio.AbstractEventLoop,
    *,
    masker: ResponseMasker,
    metrics: Metrics,
    last_error: Callable[[], str | None],
    lagging: Callable[[], str | None],
) -> ModelApi:
    """The HTTP API of a model whose requests are handled on `loop`.

    For `last_error` and `lagging` see `ModelApi`.
    """

    def make_websockets() -> Websockets:
        from gusset.serving.http_api.websockets import Websockets  # imports Starlette and uvicorn

        return Websockets(
            methods.websocket, loop, masker, folder=deployment.folder, transport=deployment.transport
        )

    inference = Inference(
        methods,
        loop,
        masker,
        concurrency=deployment.predict_concurrency,
        streaming_read_timeout=deployment.streaming_read_timeout,
        folder=deployment.folder,
    )
    return ModelApi(
        methods,
        inference,
        loop,
        metrics=metrics,
        folder=deployment.folder,
        last_error=last_error,
        lagging=lagging,
        make_websockets=make_websockets,
        name=deployment.name,
    )
