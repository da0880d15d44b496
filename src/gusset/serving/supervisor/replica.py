"""One replica of a model, and what its worker has reported. For one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from gusset.errors import ModelFailed
from gusset.secrets.masking import Masker
from gusset.serving.deployment import ModelDeployment
from gusset.serving.protocol import (
    FAILED_STEPS,
    Accept,
    Drain,
    Drained,
    Failed,
    Holds,
    Loading,
    Ready,
    SetSecrets,
    Used,
    WorkerReport,
)
from gusset.serving.supervisor.worker_process import (
    UNUSABLE_PYTHON_HINT,
    WorkerProcess,
    describe_exit,
    is_environment,
)
from gusset.serving.worker.shim import EXIT_UNUSABLE_PYTHON

_EXIT_SECONDS = 3.0  # for a worker to exit by itself after its drain, or on SIGTERM

_MISSING_MODULE = re.compile(r"^ModuleNotFoundError: No module named '([\w.]+)'", re.MULTILINE)


class ReplicaState(enum.Enum):
    """Only a ready replica receives requests."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


class Replica:
    """A worker process that runs one deployment, from its plan to its end."""

    def __init__(
        self, process: WorkerProcess, deployment: ModelDeployment, on_ready: Callable[[Replica], object]
    ) -> None:
        """`on_ready` is called once, on the event loop, when the model has loaded.

        When it returns, the replica is told to accept connections: until then others may have
        responded on the deployment's port that no replica is ready, and must have stopped.
        """
        self.process = process
        self.deployment = deployment
        self.state = ReplicaState.STARTING
        self.started_at = time.monotonic()
        self.ready = asyncio.Event()
        self._on_ready = on_ready
        self._drained = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[int] = self._loop.create_future()
        self._failure: Failed | None = None

    def begin(
        self,
        secrets: SetSecrets,
        *,
        on_secrets: Callable[[Holds | Used], object],
        on_end: Callable[[], object],
    ) -> None:
        """Send the worker its plan, and follow it from now on.

        `on_secrets` gets its reports about secrets. `on_end` is called when nothing is left of it. Both on
        other threads.
        """

        def receive(report: WorkerReport) -> None:
            if isinstance(report, Holds | Used):
                on_secrets(report)
            else:
                self._call_soon(partial(self._on_report, report))

        def end(status: int) -> None:
            on_end()
            self._call_soon(partial(self._on_end, status))

        self.process.begin(self.deployment, secrets, on_report=receive, on_end=end)

    @property
    def was_ready(self) -> bool:
        return self.ready.is_set()

    @property
    def is_up(self) -> bool:
        """Whether it accepts connections."""
        return self.was_ready and not self._exit.done()

    async def wait(self) -> int:
        """The exit status, once the worker has ended."""
        return await asyncio.shield(self._exit)

    async def wait_ready(self) -> bool:
        """Return when the replica is ready (True) or has ended before (False)."""
        await _first_of(self.ready.wait(), self.wait())
        return self.was_ready

    def start_error(self, status: int, masker: Masker) -> ModelFailed:
        """Why the replica ended before it was ready."""
        if self._failure is None and status == EXIT_UNUSABLE_PYTHON:
            return ModelFailed(
                f"{self.deployment.python}, which runs the model, lacks what gusset's worker imports",
                hint=UNUSABLE_PYTHON_HINT,
            )
        if self._failure is None:
            return ModelFailed(
                f"the model's process ended while the model was starting ({describe_exit(status)})",
                hint="see what it printed above" + self._python_hint(),
            )
        step, trace = FAILED_STEPS[self._failure.step], masker.mask_text(self._failure.trace)
        missing = _MISSING_MODULE.search(trace)
        return ModelFailed(
            f"{step}\n{trace}", hint=self._missing_module_hint(missing[1]) if missing else None
        )

    def _python_hint(self) -> str:
        python = self.deployment.python
        if python == sys.executable or not is_environment(python):
            return ""
        return f"; it runs on {python}: {UNUSABLE_PYTHON_HINT}"

    def _missing_module_hint(self, module: str) -> str:
        # Imported here: a start that succeeds needs neither, and Python's parser takes long to import.
        from gusset.package.model_imports import is_in
        from gusset.package.requirements import declared_requirements, missing_module_hint

        deployment = self.deployment
        module_dir, name = deployment.model_file.parent, module.partition(".")[0]
        if is_in(name, (module_dir,)) and module_dir != deployment.folder:
            package = ".".join(module_dir.relative_to(deployment.folder).parts)
            return f"{name} is part of {package}: import it as {package}.{module}"
        return missing_module_hint(name, declared_requirements(deployment.config, deployment.folder))

    async def drain(self, seconds: float, stop_now: asyncio.Event) -> bool:
        """Let the replica finish its requests, then end it. Returns False if `seconds` passed before that."""
        finished = True
        if self.was_ready:
            self.process.send(Drain())
            finished = await _first_of(self._drained.wait(), self.wait(), stop_now.wait(), seconds=seconds)
            if self._drained.is_set():
                await _first_of(self.wait(), stop_now.wait(), seconds=_EXIT_SECONDS)
        elif not self._exit.done():
            self.process.terminate()
            await _first_of(self.wait(), stop_now.wait(), seconds=_EXIT_SECONDS)
        self.process.kill()
        await self.wait()
        return finished

    def _call_soon(self, call: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call)

    def _on_report(self, report: WorkerReport) -> None:
        is_starting = self.state in (ReplicaState.STARTING, ReplicaState.LOADING)
        match report:
            case Loading() if is_starting:
                self.state = ReplicaState.LOADING
            case Ready() if is_starting:
                self.state = ReplicaState.READY
                self.ready.set()
                self._on_ready(self)
                self.process.send(Accept())
            case Failed():
                self._failure = report
            case Drained():
                self._drained.set()

    def _on_end(self, status: int) -> None:
        if not self._exit.done():
            if self.state is not ReplicaState.STOPPING:
                self.state = ReplicaState.FAILED
            self._exit.set_result(status)


async def _first_of(*waits: Any, seconds: float | None = None) -> bool:
    """Whether one of `waits` finished in time."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    return bool(done)
