"""Whether the model is ready, as its `is_healthy` says."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from gusset.runtime.exchange import Exchange
from gusset.runtime.logs import model_traceback
from gusset.runtime.responses import not_ready
from gusset.serving.http_api.router import send
from gusset.serving.inference.methods import Method, MethodKind
from gusset.serving.inference.model_threads import ModelThreads
from gusset.serving.inference.task_set import TaskSet

log = logging.getLogger("gusset")

_THREADS = 4  # for a synchronous `is_healthy`
_TIMEOUT = 10.0  # seconds


class ReadinessProbe:
    """Responds to readiness probes of a model that has loaded."""

    def __init__(
        self,
        is_healthy: Method | None,
        loop: asyncio.AbstractEventLoop,
        *,
        folder: Path,
        on_ready: Callable[[Exchange], None],
    ) -> None:
        """`on_ready` responds when the model is ready; a model without `is_healthy` always is.

        `folder`: the model's, where tracebacks in the log begin.
        """
        self._is_healthy = is_healthy
        self._on_ready = on_ready
        self._folder = folder
        self._threads = ModelThreads(loop, _THREADS, "health")
        self._checks = TaskSet(loop)

    def respond(self, exchange: Exchange) -> None:
        if self._is_healthy is None:
            self._on_ready(exchange)
        else:
            self._checks.start(self._respond(exchange))

    async def reason_not_ready(self) -> str | None:
        """Why the model is not ready, by its `is_healthy`; None if it is."""
        method = self._is_healthy
        if method is None:
            return None
        is_async = method.kind is MethodKind.COROUTINE
        return await self._reason_not_ready(
            method.function() if is_async else self._threads.run(method.function)
        )

    async def _respond(self, exchange: Exchange) -> None:
        reason = await self.reason_not_ready()
        if reason is None:
            self._on_ready(exchange)
        else:
            log.warning("Health check failed. %s", reason)
            send(exchange, not_ready(reason))

    async def _reason_not_ready(self, check: Awaitable[Any]) -> str | None:
        """None if `is_healthy` returns None or something true in time."""
        try:
            async with asyncio.timeout(_TIMEOUT):
                healthy = await check
                if inspect.isawaitable(healthy):
                    healthy = await healthy
            if healthy is None or bool(healthy):
                return None
        except TimeoutError:
            return f"Its is_healthy took longer than {_TIMEOUT:g} s."
        except BaseException as error:
            trace = model_traceback(error, self._folder)
            log.error("Exception while checking if model is healthy:\n%s", trace)  # noqa: TRY400
            return "Its is_healthy raised an error."
        return "Its is_healthy returned a false value."
