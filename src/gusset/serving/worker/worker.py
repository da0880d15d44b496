"""The process that runs a model's code, forked by the shim.

It protects itself first. Then it receives its plan and the values over an
inherited socket. Only after that does any of the model's code run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from functools import partial
from typing import NoReturn

import uvloop

from gusset.runtime import logs
from gusset.runtime.caller_auth import CallerAuth, is_open
from gusset.runtime.http_server import HttpServer
from gusset.runtime.process import die_with_pipe, harden, keep_from_forks
from gusset.runtime.tls import ServerTls
from gusset.secrets.hits import Hit
from gusset.secrets.mapping import Secrets
from gusset.secrets.masking import Masker
from gusset.secrets.recent_values import RecentValues
from gusset.secrets.value import SecretValue
from gusset.serving.channel import Channel, Closed
from gusset.serving.http_api.assembly import make_api
from gusset.serving.http_api.metrics import Metrics
from gusset.serving.inference.methods import Methods, ModelDefinitionError
from gusset.serving.inference.response_masking import ResponseMasker
from gusset.serving.protocol import (
    Accept,
    Downloaded,
    Drain,
    Drained,
    Failed,
    Holds,
    Loading,
    Masked,
    Ready,
    SetLagging,
    SetMaskedHits,
    SetSecrets,
    SetSourceError,
    StartStep,
    WorkerPlan,
    WorkerReport,
    decode_order,
    encode_report,
)
from gusset.serving.worker import exact_types, spawned_children
from gusset.serving.worker.import_hooks import call_on_import
from gusset.serving.worker.lazy_data import DownloadState
from gusset.serving.worker.loop_watchdog import watch_loop
from gusset.serving.worker.model_loader import StartFailed, start_model
from gusset.serving.worker.use_reporter import UseReporter

EXIT_START_FAILED = 9
_HIT_INTERVAL = 1.0  # seconds


class Worker:
    """Starts the model, serves it and follows the supervisor's orders."""

    def __init__(
        self, plan: WorkerPlan, channel: Channel, listener: socket.socket, recent: RecentValues
    ) -> None:
        """`recent` has the values of the plan."""
        self._recent = recent
        self._masker = masker = recent.masker
        self._response_masker = ResponseMasker(masker, results=plan.masks_responses)
        self._deployment = plan.deployment
        self._shares_port = plan.shares_port
        self._browser_rules = plan.browser_rules
        self._channel = channel
        self._listener = listener
        self._loop = uvloop.new_event_loop()
        self._accept = asyncio.Event()
        self._drain = asyncio.Event()
        self._source_error: str | None = None
        self._hits: Mapping[Hit, int] = {}  # of the whole deployment
        self._versions = plan.secrets.versions
        self._lagging: str | None = None
        self._uses = UseReporter(self._report)
        self._caller_auth = CallerAuth(plan.secrets.callers) if plan.deployment.callers else None
        self._tls = ServerTls.open(plan.tls) if plan.tls else None
        self._downloads = DownloadState(plan.deployment.downloads)
        self._secrets = Secrets(
            plan.deployment.declared,
            _secret_values(plan.secrets.values),
            previous=_secret_values(plan.secrets.previous),
            config_file=plan.deployment.config_file,
            masker=masker,
            on_first_use=partial(self._uses.add, plan.secrets.number),
        )

    def run(self) -> int:
        """Serve until the supervisor orders a drain.

        The model starts on the main thread, so that it can set signal handlers,
        and before the loop runs, so that a slow `load` blocks no request.
        """
        asyncio.set_event_loop(self._loop)
        threading.Thread(target=self._follow_orders, name="gusset-orders", daemon=True).start()
        self._uses.start()
        try:
            methods = start_model(
                self._deployment,
                self._secrets,
                self._loop.run_until_complete,
                downloads=self._downloads,
                on_instance=self._on_instance,
            )
        except StartFailed as failure:
            self._exit_failed(failure)
        self._loop.run_until_complete(self._serve(methods))
        return 0

    def _on_instance(self, methods: Methods) -> None:
        self._report(Loading())
        if methods.websocket is not None:
            _import_websocket_libraries()

    async def _serve(self, methods: Methods) -> None:
        """Serve from the order to accept until the order to drain."""
        metrics = self._make_metrics()
        api = make_api(
            methods,
            self._deployment,
            self._loop,
            masker=self._response_masker,
            metrics=metrics,
            last_error=lambda: self._source_error,
            lagging=lambda: self._lagging,
        )
        auth = self._caller_auth
        server = HttpServer(
            api.router,
            gates=(self._browser_rules, auth.gate if auth else None),
            is_probe=lambda exchange: is_open(exchange.method, exchange.path),
            takes_over=api.takes_over,
            observe=metrics.observe,
        )
        os.register_at_fork(after_in_child=server.connections.release_in_child)
        watch_loop(self._loop, self._deployment.folder)
        self._report_hits()
        self._report(Ready())
        await self._accept.wait()
        if not self._drain.is_set():
            await server.start(self._listener, shared=self._shares_port, tls=self._tls)
        await self._drain.wait()
        await api.drain()
        await server.drain()
        self._report_hits()
        self._report(Drained())

    def _make_metrics(self) -> Metrics:
        return Metrics(
            lambda: self._versions,
            lambda: self._hits,
            mask=lambda text: self._masker.mask(text, "metrics"),
            caller_auth=self._caller_auth,
        )

    def _follow_orders(self) -> None:
        with contextlib.suppress(Closed):
            while True:
                match decode_order(self._channel.receive()):
                    case Accept():
                        self._loop.call_soon_threadsafe(self._accept.set)
                    case Drain():
                        self._loop.call_soon_threadsafe(self._drain.set)
                        self._loop.call_soon_threadsafe(self._accept.set)
                    case SetSecrets() as order:
                        self._replace_secrets(order)
                    case SetSourceError(error):
                        self._source_error = error
                    case SetLagging(text):
                        self._lagging = text
                    case Downloaded(everything):
                        self._downloads.advance(everything=everything)
                    case SetMaskedHits(total):
                        self._hits = total
        os.killpg(0, signal.SIGKILL)  # the supervisor has ended: end this process and the model's children

    def _replace_secrets(self, order: SetSecrets) -> None:
        secrets, previous = _secret_values(order.values), _secret_values(order.previous)
        self._recent.add(previous, secrets)
        self._secrets.replace(secrets, previous=previous, on_first_use=partial(self._uses.add, order.number))
        self._versions = order.versions
        if self._caller_auth is not None:
            self._caller_auth.replace(order.callers)
        self._report(Holds(order.number))

    def _report(self, report: WorkerReport) -> None:
        with contextlib.suppress(Closed):  # the thread that follows orders then ends this process
            self._channel.send(encode_report(report))

    def _report_hits(self) -> None:
        """Report what this process has masked, and do so again after a while."""
        if hits := self._masker.hits.take():
            self._report(Masked(hits))
        self._loop.call_later(_HIT_INTERVAL, self._report_hits)

    def _exit_failed(self, failure: StartFailed) -> NoReturn:
        self._report(Masked(self._masker.hits.take()))
        self._report(Failed(failure.step, failure.trace(self._deployment.folder)))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(EXIT_START_FAILED)  # threads that the model has started must not delay the exit


def _import_websocket_libraries() -> None:
    """Import the websocket libraries now: the model's environment may have versions other than gusset's.

    Raises:
        StartFailed: they are missing or too old.
    """
    try:
        import gusset.serving.http_api.websockets  # noqa: F401
    except ImportError as error:
        raise StartFailed(StartStep.CHECK) from ModelDefinitionError(
            "A websocket needs Starlette, uvicorn 0.35 and websockets 13, or newer, in the model's "
            f"environment: {error}"
        )


def _secret_values(values: Mapping[str, bytes]) -> dict[str, SecretValue]:
    return {name: SecretValue(value) for name, value in values.items()}


def _log_mask(masker: Masker) -> logs.Mask:
    """The mask for texts of this process's log. Its forks mask nothing: nobody would count the hits.

    Their output is masked on its way.
    """
    own = os.getpid()
    return lambda text: masker.mask_text(text, "log") if os.getpid() == own else text


def main(arguments: list[str]) -> int:
    """Run a worker.

    `arguments` are the file descriptors of the control socket, the listener and
    the pipe to the shim, then 1 if debuggers may attach, else 0.
    """
    control, listening, shim_pipe, debuggable = map(int, arguments)
    die_with_pipe(shim_pipe)
    if not debuggable:
        harden()
    for descriptor in (control, listening):
        os.set_inheritable(descriptor, False)
    keep_from_forks(control, listening)
    channel = Channel(socket.socket(fileno=control))
    try:
        plan = decode_order(channel.receive())
    except Closed:
        return 0  # the supervisor does not need this worker after all
    assert isinstance(plan, WorkerPlan)  # noqa: S101  # always the first order
    level = logging.DEBUG if plan.deployment.debug_logs else logging.INFO
    recent = RecentValues(Masker())
    recent.add(_secret_values(plan.secrets.previous), _secret_values(plan.secrets.values))
    mask_log = _log_mask(recent.masker)
    logs.log_to_stderr("", readable=plan.readable_logs, level=level, mask=mask_log)
    logs.mask_records(mask_log)
    os.environ.update(plan.deployment.environment_variables)
    call_on_import(
        exact_types.ON_IMPORT if debuggable else {**exact_types.ON_IMPORT, **spawned_children.ON_IMPORT}
    )
    os.chdir(plan.deployment.folder)  # as in Truss's images, so that `open("data/words.txt")` works
    return Worker(plan, channel, socket.socket(fileno=listening), recent).run()
