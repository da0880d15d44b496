"""The process that runs a model's code, forked by the warden.

First it protects itself, then it receives its plan and the values over an
inherited socket, and only then does any of the model's code run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import uvloop

from gusset.runtime import logs
from gusset.runtime.http_server import HttpServer
from gusset.runtime.process import die_with_pipe, harden, keep_from_forks
from gusset.secrets.mapping import Secrets
from gusset.secrets.value import SecretValue
from gusset.serving.channel import Channel, Closed, Orders, Reports
from gusset.serving.http_api.endpoints import ModelApi
from gusset.serving.http_api.metrics import Metrics
from gusset.serving.inference.inference import Inference
from gusset.serving.inference.methods import Methods, ModelDefinitionError
from gusset.serving.worker.loop_watchdog import watch_loop
from gusset.serving.worker.model_loader import StartFailed, start_model

EXIT_START_FAILED = 9

log = logging.getLogger("gusset.serving")


class Worker:
    """Starts the model, serves it, follows the supervisor's orders."""

    def __init__(self, plan: dict[str, Any], channel: Channel, listener: socket.socket) -> None:
        self._plan = plan
        self._channel = channel
        self._listener = listener
        self._loop = uvloop.new_event_loop()
        self._drain = asyncio.Event()
        self._last_error: str | None = None
        self._versions: dict[str, int | None] = {}
        self._secrets = Secrets(plan["declared"], _values(plan["secrets"]), config_file=plan["config_file"])

    def run(self) -> int:
        """Serve until told to drain.

        The model starts on the main thread, so that it may set signal handlers,
        and before the loop runs, so that nothing waits for a slow `load`.
        """
        asyncio.set_event_loop(self._loop)
        threading.Thread(target=self._follow_orders, name="gusset-orders", daemon=True).start()
        self._report_versions(self._plan["versions"])
        try:
            methods = start_model(
                self._plan,
                self._secrets,
                self._loop.run_until_complete,
                on_instance=lambda: self._report(event="loading"),
            )
        except StartFailed as failure:
            self._give_up(failure)
        self._loop.run_until_complete(self._serve(methods))
        return 0

    async def _serve(self, methods: Methods) -> None:
        plan = self._plan
        folder = Path(plan["folder"])
        metrics = Metrics(lambda: self._versions)
        inference = Inference(
            methods,
            self._loop,
            concurrency=plan["predict_concurrency"],
            silence=plan["streaming_read_timeout"],
            folder=folder,
        )
        websockets = None
        if methods.websocket is not None:
            from gusset.serving.http_api.websockets import Websockets

            websockets = Websockets(methods.websocket, self._loop, folder=folder, transport=plan["transport"])
        api = ModelApi(
            methods,
            inference,
            self._loop,
            metrics=metrics,
            folder=folder,
            last_error=lambda: self._last_error,
            websockets=websockets,
        )
        server = HttpServer(api, takes_over=api.takes_over, observe=metrics.observe)
        os.register_at_fork(after_in_child=server.let_go)
        watch_loop(self._loop, folder)
        await server.start(self._listener, shared=plan["shares_port"])
        self._report(event="ready")
        await self._drain.wait()
        if websockets is not None:
            await websockets.drain()
        await server.drain()
        self._report(event="drained")

    def _follow_orders(self) -> None:
        with contextlib.suppress(Closed):
            while True:
                order = Orders.receive(self._channel)
                if order["order"] == "drain":
                    self._loop.call_soon_threadsafe(self._drain.set)
                elif order["order"] == "secrets":
                    self._secrets.replace(_values(order["secrets"]))
                    self._report_versions(order["versions"])
                elif order["order"] == "trouble":
                    self._last_error = order["trouble"]
        os.killpg(0, 9)  # the supervisor has gone; so do we, with all that the model has started

    def _report_versions(self, versions: dict[str, int | None]) -> None:
        self._versions = versions
        self._report(event="holding", versions=versions)

    def _report(self, **report: Any) -> None:
        with contextlib.suppress(Closed):  # then the thread that follows orders ends us
            Reports.send(self._channel, report)

    def _give_up(self, failure: StartFailed) -> NoReturn:
        error = failure.__cause__ or failure
        if isinstance(error, ModelDefinitionError):
            trace = str(error)
        else:
            trace = logs.model_traceback(error, Path(self._plan["folder"]))
        self._report(event="failed", step=failure.step, trace=trace)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(EXIT_START_FAILED)  # whatever threads the model has started must not hold us up


def _values(values: dict[str, bytes]) -> dict[str, SecretValue]:
    return {name: SecretValue(value) for name, value in values.items()}


def main(arguments: list[str]) -> int:
    """`arguments`: the file descriptors of control socket, listener, tie to the warden; 1 for debuggable."""
    control, listening, tie, debuggable = map(int, arguments)
    die_with_pipe(tie)
    if not debuggable:
        harden()
    for descriptor in (control, listening):
        os.set_inheritable(descriptor, False)
    keep_from_forks(control, listening)
    channel = Channel(socket.socket(fileno=control))
    try:
        plan = Orders.receive(channel)
    except Closed:
        return 0  # the supervisor has changed its mind
    level = logging.DEBUG if plan["debug_logs"] else logging.INFO
    logs.log_to_stderr("", readable=plan["readable_logs"], level=level)
    os.environ.update(plan["environment_variables"])
    return Worker(plan, channel, socket.socket(fileno=listening)).run()
