"""`serve`: keeps a deployment up on one port until it is stopped.

The supervisor runs no user code. It owns the listening socket, holds the
values, masks what workers print, responds on the port while no worker is
ready, and replaces workers that end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from gusset.bugs import errors_logged
from gusset.runtime.environment import child_environment
from gusset.runtime.exchange import Exchange
from gusset.runtime.hit_reporter import HitReporter
from gusset.runtime.listener import listen, url_of
from gusset.runtime.responses import Response
from gusset.runtime.supervision import (
    Announcer,
    RestartBackoff,
    SecretIntake,
    ServingOptions,
    StopSignals,
    prepare_process,
)
from gusset.runtime.tls import ServerTls
from gusset.secrets.sources.source import SecretSource
from gusset.serving.deployment import ModelDeployment
from gusset.serving.supervisor.downloads import Downloads
from gusset.serving.supervisor.early_workers import EarlyWorkers
from gusset.serving.supervisor.not_ready_server import NotReadyServer
from gusset.serving.supervisor.reloader import Reloader
from gusset.serving.supervisor.secret_distributor import SecretDistributor
from gusset.serving.supervisor.startup_responder import StartupResponder
from gusset.serving.supervisor.worker_process import WorkerOptions, WorkerProcess, describe_exit
from gusset.serving.supervisor.worker_slot import WorkerSlot, WorkerSlots

log = logging.getLogger("gusset")

_SOURCE_CHECK = 0.5  # seconds between looks at the source's last error

# What to serve, and the source of its secrets; closed when serving ends.
PreparedModel = AbstractContextManager[tuple[ModelDeployment, SecretSource]]


def serve(
    prepare: Callable[[], PreparedModel],
    options: ServingOptions,
    *,
    workers: int = 1,
    reread: Callable[[], ModelDeployment] | None = None,
    mask_responses: bool = False,
    likely_python: str = sys.executable,
    not_ready_reason: Callable[[], str] = lambda: "It is starting.",
) -> int:
    """Serve a deployment with the secrets of its source until SIGTERM or SIGINT; then return 0.

    Call it on the main thread. `prepare` gives the deployment and the source;
    it is called while the workers' interpreters start, since reading a config
    and opening a vault take as long as that. They are started on `likely_python`,
    and again if the deployment names another one. With `reread`, which reads the
    folder again, each worker is replaced when the folder changes.
    `mask_responses` masks results as errors always are. While `prepare` works, requests
    get `not_ready_reason`, which is called on another thread. Events are logged to
    standard error, unless the caller has given the logger "gusset" handlers.

    Raises:
        HostError: it cannot listen on the address, or the model's Python cannot be started.
        UsageError: the files of `options.tls` cannot be used.
        GussetError: whatever `prepare` raised.
        SecretsMissing, Denied, Unreachable: see `read_secrets`.
        ModelFailed: the model did not start; with its own traceback.
        ConfigInvalid, Conflict: see `Downloads.fetch`.
    """
    intake = SecretIntake()
    prepare_process(debuggable=options.debuggable, mask=intake.mask_log)
    tls = ServerTls.open(options.tls) if options.tls else None
    with listen(options.host, options.port) as listener, contextlib.ExitStack() as stack:
        worker_options = WorkerOptions(
            listener=listener,
            masker=intake.masker,
            environment=_worker_environment(reloads=reread is not None),
            output=options.output_fd,
            errors=sys.stderr.fileno(),
            debuggable=options.debuggable,
            readable_logs=sys.stderr.isatty(),
            shares_port=workers > 1,
            masks_responses=mask_responses,
            browser_rules=options.browser_rules,
            tls=options.tls,
        )
        early = stack.enter_context(EarlyWorkers(worker_options, workers))
        early.start(likely_python)
        responder = StartupResponder(listener, not_ready_reason, gates=(options.browser_rules,), tls=tls)
        responder.start()
        stack.callback(responder.stop)
        deployment, source = stack.enter_context(prepare())
        secrets = SecretDistributor.start(deployment, source, intake, allow_missing=options.allow_missing)
        stack.callback(secrets.stop)
        stack.callback(HitReporter.start(intake.masker.hits, source).stop)
        supervisor = Supervisor(deployment, secrets, worker_options, options, tls=tls, reread=reread)
        stack.callback(supervisor.close)
        responder.stop()
        asyncio.run(supervisor.run(early.take(deployment.python)))
        return 0


def _worker_environment(*, reloads: bool) -> dict[str, str]:
    environment = child_environment() | {"PYTHONUNBUFFERED": "1"}  # show output when it is printed
    if reloads:
        # Byte code is checked against its source by whole seconds: an edit could go unnoticed.
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    return environment


class Supervisor:
    """Keeps all worker slots of a deployment filled until a signal stops it."""

    def __init__(
        self,
        deployment: ModelDeployment,
        secrets: SecretDistributor,
        worker_options: WorkerOptions,
        options: ServingOptions,
        *,
        tls: ServerTls | None,
        reread: Callable[[], ModelDeployment] | None,
    ) -> None:
        """`tls` are the loaded files of `options.tls`. For `reread` see `serve`."""
        self._secrets = secrets
        self._listener = worker_options.listener
        self._downloads = downloads = Downloads(secrets, options.cache / "weights", worker_options)
        self._announcer = Announcer(url_of(self._listener, secure=tls is not None), options.announce)
        self._drain_seconds = options.drain_seconds
        self._signals = StopSignals(quiet=options.quiet_stop)
        self._slots = WorkerSlots(
            deployment,
            secrets,
            downloads,
            worker_options,
            stop_now=self._signals.stop_now,
            on_ready=self._on_ready,
        )
        self._reloader = Reloader(self._slots, secrets, downloads, reread) if reread else None
        self._not_ready_server = NotReadyServer(
            self._listener,
            self._slots.states,
            is_fetching=lambda: downloads.is_fetching,
            gates=(options.browser_rules, self._check_caller),
            tls=tls,
        )

    async def run(self, processes: Sequence[WorkerProcess]) -> None:
        """Serve with these workers, which have no plan yet, until stopped.

        Raises:
            ModelFailed: one of them ended before all were ready for the first time.
            GussetError: a download failed; see `Downloads.fetch`.
        """
        await self._run_until_stopped(processes)
        self._listener.close()
        self._not_ready_server.stop()
        await self._slots.drain(self._drain_seconds)

    def close(self) -> None:
        """Kill the workers that are left, wait for their ends, and let other processes change the mounts."""
        self._slots.kill_all()
        self._downloads.stop()

    async def _run_until_stopped(self, processes: Sequence[WorkerProcess]) -> None:
        self._signals.install()
        await self._not_ready_server.start()
        tasks: list[asyncio.Task[None]] = []
        if self._reloader is not None:
            tasks.append(asyncio.create_task(self._reloader.run()))
            await asyncio.sleep(0)  # it begins to watch in its first step, so that no later change is missed
        tasks.append(asyncio.create_task(self._fetch_downloads()))
        self._slots.fill_all(processes)
        tasks += [asyncio.create_task(self._keep_filled(slot)) for slot in self._slots.slots]
        tasks.append(asyncio.create_task(self._check_source()))
        stopped = asyncio.create_task(self._signals.drain.wait())
        await asyncio.wait((stopped, *tasks), return_when=asyncio.FIRST_COMPLETED)
        failed = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        for task in failed:
            task.result()  # raises why the first start failed

    def _check_caller(self, exchange: Exchange) -> Response | None:
        auth = self._secrets.caller_auth
        return auth.gate(exchange) if auth is not None else None

    async def _check_source(self) -> None:
        while True:
            self._secrets.check_source()
            self._secrets.share_hits()
            await asyncio.sleep(_SOURCE_CHECK)

    async def _fetch_downloads(self) -> None:
        """Download what the deployment needs. Returns only when serving ends; raises why it failed."""
        await self._downloads.fetch(self._slots.deployment)
        await self._signals.drain.wait()

    async def _keep_filled(self, slot: WorkerSlot) -> None:
        """Replace the slot's replica whenever it ends, with backoff.

        Raises:
            ModelFailed: it ended before all were ready for the first time.
        """
        backoff = RestartBackoff()
        while True:
            replica = slot.replica
            status = await replica.wait()
            if slot.replica is replica:
                if not self._announcer.is_done:
                    raise replica.start_error(status, self._slots.masker)
                self._log_end(slot, status)
            backoff.note_end(started_at=replica.started_at, was_ready=replica.was_ready)
            while slot.replica is replica:  # until it is replaced here, or by a reload
                await self._respond_not_ready()
                await asyncio.sleep(backoff.next_delay())
                if slot.replica is replica:
                    with self._errors_logged(f"{slot.name.capitalize()} cannot be started again"):
                        self._slots.refill(slot)

    async def _respond_not_ready(self) -> None:
        """Have somebody respond on the port, if no replica does."""
        if not any(each.replica.is_up for each in self._slots.slots):
            with self._errors_logged("Nothing responds on the port until the next attempt"):
                await self._not_ready_server.start()

    def _errors_logged(self, problem: str) -> AbstractContextManager[None]:
        """For a restart: the other replicas serve on, and what was missing, such as memory, may come back."""
        return errors_logged(log, problem, self._slots.masker.mask_text)

    def _on_ready(self, slot: WorkerSlot) -> None:
        self._not_ready_server.stop()
        if self._announcer.is_done:
            log.info("%s is ready again.", slot.name.capitalize())
        elif all(each.replica.was_ready for each in self._slots.slots):
            self._announcer.announce()

    def _log_end(self, slot: WorkerSlot, status: int) -> None:
        """Log that a replica has ended by itself, after the first start."""
        replica = slot.replica
        if replica.was_ready:
            log.error("The process of %s ended (%s) and is restarted.", slot.name, describe_exit(status))
            return
        with self._errors_logged(f"{slot.name.capitalize()} did not start again"):
            raise replica.start_error(status, self._slots.masker)
