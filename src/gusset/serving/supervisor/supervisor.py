"""`serve`: keeps a deployment up on one port until it is told to stop.

The supervisor runs no user code. It owns the listening socket, holds the
values, masks what workers print, hands over the port when a worker is ready,
answers in its place while none is, and starts a new one when it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from gusset.errors import ConfigInvalid, GussetError, ModelFailed
from gusset.runtime import logs
from gusset.runtime.declared_secrets import Values, read_secrets
from gusset.runtime.environment import child_environment
from gusset.runtime.exchange import Exchange
from gusset.runtime.http_server import HttpServer
from gusset.runtime.listener import DRAIN_SECONDS, listen
from gusset.runtime.process import harden
from gusset.runtime.responses import respond_not_ready
from gusset.runtime.secret_watcher import SecretWatcher
from gusset.secrets.masking import Masker, maskable
from gusset.secrets.sources.source import ENVIRONMENT_PREFIX, SecretSource
from gusset.serving.deployment import ModelDeployment
from gusset.serving.protocol import (
    Drain,
    Drained,
    Failed,
    Loading,
    Order,
    Ready,
    Report,
    SetSecrets,
    SetSourceError,
    StartStep,
    WorkerPlan,
)
from gusset.serving.supervisor.replica import Replica, ReplicaState, describe_end
from gusset.serving.supervisor.worker_slot import Life, Place

log = logging.getLogger("gusset.serving")

_FIRST_PAUSE = 0.2  # seconds before a restart, doubled up to
_LAST_PAUSE = 30.0
_STEADY = 60.0  # a worker that was ready and lived for so long starts the pauses anew
_TROUBLE_POLL = 0.5  # seconds
_FAREWELL = 3.0  # seconds for a drained worker to end by itself

_REASONS = {
    ReplicaState.STARTING: "It is starting.",
    ReplicaState.LOADING: "It is loading.",
    ReplicaState.FAILED: "It has failed and will be restarted.",
    ReplicaState.STOPPING: "It is stopping.",
}

_FAILED_STEPS = {
    StartStep.IMPORT: "the model's code could not be imported",
    StartStep.INIT: "the model's __init__ failed",
    StartStep.CHECK: "the model's class cannot be served",
    StartStep.LOAD: "the model's load failed, twice",
}

# What is to be served, and where its secrets come from; closed when serving ends.
Prepared = AbstractContextManager[tuple[ModelDeployment, SecretSource]]


def serve(
    prepare: Callable[[], Prepared],
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    allow_missing: Collection[str] = (),
    debuggable: bool = False,
    announce: Callable[[str], object] = lambda address: None,
    output_fd: int = 1,
    drain_seconds: float = DRAIN_SECONDS,
    workers: int = 1,
    reread: Callable[[], ModelDeployment] | None = None,
) -> int:
    """Serve a deployment with the secrets of its source until SIGTERM or SIGINT; return 0 then.

    `prepare` gives both. It is called while the first worker's interpreter
    starts, since reading a config and opening a vault take as long as that.
    Call it on the main thread. Port 0 takes a free port; `announce` is called
    once with the address, as in "http://127.0.0.1:8080", when the model is
    ready. What the model prints goes to `output_fd` and standard error, masked.
    A stop waits `drain_seconds` for requests under way. There are `workers`
    replicas of the model. With `reread`, which reads the folder anew, each is
    replaced by a new one when the folder changes. What happens is logged to
    standard error, unless the caller has given the logger "gusset" handlers.

    Raises:
        HostError: the address cannot be listened on.
        GussetError: whatever `prepare` raised.
        SecretsMissing, Denied, Unreachable: see `read_secrets`.
        ModelFailed: the model did not start; with its own traceback.
    """
    if not debuggable:
        harden()
    if not logging.getLogger("gusset").handlers:
        logs.log_to_stderr(readable=sys.stderr.isatty())
    if debuggable:
        log.warning("Debuggers may attach to this server and read the values of secrets.")
    with listen(host, port) as listener:
        supervisor = Supervisor(
            listener,
            workers=workers,
            reread=reread,
            debuggable=debuggable,
            announce=announce,
            output_fd=output_fd,
        )
        return supervisor.run(prepare, allow_missing, drain_seconds)


class Supervisor:
    """The life of one deployment on one listening socket: as many replicas as asked for."""

    _deployment: ModelDeployment  # known once `run` has prepared it
    _source: SecretSource
    _rotation: SecretWatcher

    def __init__(
        self,
        listener: socket.socket,
        *,
        workers: int,
        reread: Callable[[], ModelDeployment] | None,
        debuggable: bool,
        announce: Callable[[str], object],
        output_fd: int,
    ) -> None:
        self._listener = listener
        self._workers = workers
        self._reread = reread
        self._debuggable = debuggable
        self._announce: Callable[[str], object] | None = announce
        self._output_fd = output_fd
        self._masker = Masker()
        self._values: Values = {}
        self._sending = threading.Lock()  # orders of secrets reach a replica in the order of the values
        self._coming: Values = {}  # of secrets that only a reload under way declares
        self._exposed: set[str] = set()  # variables that were warned of
        self._replicas: dict[
            Replica, ModelDeployment
        ] = {}  # those that have their plan, until they are replaced
        self._places: list[Place] = []
        self._retiring: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._stand_in: HttpServer | None = None
        self._last_error: str | None = None

    def run(
        self, prepare: Callable[[], Prepared], allow_missing: Collection[str], drain_seconds: float
    ) -> int:
        """Serve until stopped; see `serve`."""
        self._allow_missing = allow_missing
        with contextlib.ExitStack() as stack:
            # They get going while we find out what to do.
            first = [self._spawn() for _ in range(self._workers)]
            try:
                self._deployment, self._source = stack.enter_context(prepare())
                self._values = read_secrets(self._deployment, self._source, allow_missing)
                self._learn(self._values)
            except BaseException:
                for replica in first:
                    replica.abandon()
                raise
            self._rotation = SecretWatcher(
                self._deployment.declared, self._source, self._values, self._rotate
            )
            try:
                return asyncio.run(self._live(first, drain_seconds))
            finally:
                self._rotation.stop()
                for replica in self._replicas:
                    replica.kill()
                for replica in self._replicas:
                    replica.join()

    async def _live(self, first: list[Replica], drain_seconds: float) -> int:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._again = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)
        await self._stand_in_for_replicas()
        going_on: list[asyncio.Task[None]] = []
        if self._reread is not None:
            going_on.append(self._loop.create_task(self._reload_on_change(self._reread)))
            await asyncio.sleep(0)  # it watches from its first step on, so that no later change is missed
        for index, replica in enumerate(first, 1):
            place = Place("the model" if self._workers == 1 else f"replica {index} of {self._workers}")
            self._places.append(place)
            place.take(replica, self._start(place, replica, self._deployment))
        going_on += [self._loop.create_task(self._keep(place)) for place in self._places]
        going_on.append(self._loop.create_task(self._tell_trouble()))
        stopped = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait((stopped, *going_on), return_when=asyncio.FIRST_COMPLETED)
        failed = [task for task in going_on if task.done()]
        for task in going_on:
            task.cancel()
        for task in failed:
            task.result()  # raises why the first start failed
        await self._end(drain_seconds)
        return 0

    async def _tell_trouble(self) -> None:
        """Let the replicas know how their secrets' source stands: they are asked for their readiness."""
        while True:
            if self._source.last_error != self._last_error:
                self._last_error = self._source.last_error
                self._order(SetSourceError(self._last_error))
            await asyncio.sleep(_TROUBLE_POLL)

    def _order(self, order: Order) -> None:
        with self._sending:
            for replica in self._replicas:
                replica.order(order)

    async def _keep(self, place: Place) -> None:
        """See to it that a place has a replica, with growing pauses between those that end."""
        pause = _FIRST_PAUSE
        life = place.life
        while True:
            status = await life.wait()
            if place.life is life:
                await self._take_over(place, life, status)
                if life.was_ready and time.monotonic() - life.began > _STEADY:
                    pause = _FIRST_PAUSE
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LAST_PAUSE)
            if place.life is life:  # else a reload has filled it meanwhile
                self._forget(place.replica)
                replica = self._spawn()
                place.take(replica, self._start(place, replica, self._deployment))
            life = place.life

    def _start(self, place: Place, replica: Replica, deployment: ModelDeployment) -> Life:
        """Give a replica its plan, and follow its life from now on."""
        life = Life()

        def on_report(report: Report) -> None:
            self._soon(partial(self._on_report, place, life, report))

        def on_end(status: int) -> None:
            self._soon(partial(life.end, status))

        with self._sending:  # what is newer than its plan is sent to it, too
            replica.start(self._plan(deployment, {**self._coming, **self._values}), on_report, on_end)
            self._replicas[replica] = deployment
            if self._last_error is not None:
                replica.order(SetSourceError(self._last_error))
        return life

    def _forget(self, replica: Replica) -> None:
        with self._sending:
            self._replicas.pop(replica, None)

    def _soon(self, call: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call)

    def _on_report(self, place: Place, life: Life, report: Report) -> None:
        match report:
            case Loading():
                life.state = ReplicaState.LOADING
            case Failed():
                life.failure = report
            case Drained():
                life.drained.set()
            case Ready() if not (life.was_ready or life.ended.done() or self._stopping):
                life.state = ReplicaState.READY
                life.ready.set()
                if place.life is life:
                    self._on_ready(place)

    def _on_ready(self, place: Place) -> None:
        """A place has a replica that is ready."""
        if self._stand_in is not None:
            self._stand_in.stop_accepting()
            self._stand_in = None
        if self._announce is None:
            log.info("%s is ready again.", place.name.capitalize())
            return
        if not all(each.life.was_ready for each in self._places):
            return
        announce, self._announce = self._announce, None
        try:
            announce(self.address)
        except OSError as error:  # nobody reads what we say any more; the model is served all the same
            log.warning("The address %s could not be announced: %s", self.address, error.strerror)

    @property
    def address(self) -> str:
        """Where the deployment is served, as a URL."""
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def _take_over(self, place: Place, life: Life, status: int) -> None:
        """A worker has ended by itself: answer in its place, if it was the last; or give up, at the start."""
        life.state = ReplicaState.FAILED
        if self._announce is not None:
            raise self._failed(life, status)
        if not any(each.life.is_up for each in self._places):
            await self._stand_in_for_replicas()
        if life.was_ready:
            log.error("The process of %s ended (%s); it is started again.", place.name, describe_end(status))
        else:
            name = place.name.capitalize()
            log.error("%s did not start again: %s", name, self._failed(life, status).message)

    def _failed(self, life: Life, status: int) -> ModelFailed:
        if life.failure is None:
            return ModelFailed(
                f"the model's process ended while the model was starting ({describe_end(status)})",
                hint="see what it printed above",
            )
        what = _FAILED_STEPS[life.failure.step]
        return ModelFailed(f"{what}\n{self._masker.mask_text(life.failure.trace)}")

    # A changed folder.

    async def _reload_on_change(self, reread: Callable[[], ModelDeployment]) -> None:
        """Whenever the folder changes, put what it has become in place of what is served.

        A change while the one before is still being taken up begins anew: that
        one may be what keeps the model from ever getting ready.
        """
        from gusset.serving.supervisor.reload_watcher import (
            changes,  # and the library beneath: for --reload alone
        )

        reloading: asyncio.Task[None] | None = None
        try:
            async for _ in changes(self._deployment.folder):
                await _cancelled(reloading)
                reloading = self._loop.create_task(self._try_reload(reread))
        finally:
            await _cancelled(reloading)

    async def _try_reload(self, reread: Callable[[], ModelDeployment]) -> None:
        try:
            await self._reload(reread)
        except GussetError as error:
            said = self._masker.mask_text(_told(error))
            log.error("The change is not served, the model from before goes on: %s", said)  # noqa: TRY400

    async def _reload(self, reread: Callable[[], ModelDeployment]) -> None:
        """Start a new replica for each place; the old one serves until the new one is ready.

        Raises:
            GussetError: the folder has become something that cannot be served; all goes on as before.
        """
        deployment = await asyncio.to_thread(reread)
        if deployment.declared != self._deployment.declared:
            values = await asyncio.to_thread(read_secrets, deployment, self._source, self._allow_missing)
            self._learn(values)
            self._coming = {
                name: held for name, held in values.items() if name not in self._deployment.declared
            }
        try:
            for place in self._places:
                await self._replace(place, deployment)
        finally:
            self._coming = {}

    async def _replace(self, place: Place, deployment: ModelDeployment) -> None:
        """Put a new replica in a place once it is ready; if it never is, end it."""
        replica = self._spawn()
        life = self._start(place, replica, deployment)
        try:
            await self._first_of(None, life.ready.wait(), life.wait())
        except BaseException:  # a newer change has come, or the end
            replica.kill()
            self._retire_soon(replica, life)
            raise
        if not life.was_ready:
            self._forget(replica)
            raise self._failed(life, await life.wait())
        self._adopt(deployment)
        self._retire_soon(place.replica, place.life)
        place.take(replica, life)
        self._on_ready(place)

    def _adopt(self, deployment: ModelDeployment) -> None:
        """From now on this is what is served, and its secrets are followed."""
        changed = deployment.declared != self._deployment.declared
        self._deployment = deployment
        if changed:
            self._rotation.follow(deployment.declared, {**self._coming, **self._values})
            with self._sending:
                self._values, self._coming = {**self._coming, **self._values}, {}

    def _retire_soon(self, replica: Replica, life: Life) -> None:
        retiring = self._loop.create_task(self._retire(replica, life, DRAIN_SECONDS))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)

    # The end.

    async def _end(self, drain_seconds: float) -> None:
        """Let requests under way finish, for as long as that may take, then end all workers."""
        self._stopping = True
        self._listener.close()
        if self._stand_in is not None:
            self._stand_in.stop_accepting()
        for place in self._places:
            place.life.state = ReplicaState.STOPPING
        await asyncio.gather(
            *(self._retire(place.replica, place.life, drain_seconds) for place in self._places),
            *self._retiring,
        )

    async def _retire(self, replica: Replica, life: Life, drain_seconds: float) -> None:
        """Let a replica finish its requests, then end it."""
        if life.was_ready:
            replica.order(Drain())
            if not await self._first_of(drain_seconds, life.drained.wait(), life.wait(), self._again.wait()):
                log.warning("Requests were still under way after %g s; they are cut.", drain_seconds)
            elif life.drained.is_set():
                await self._first_of(_FAREWELL, life.wait(), self._again.wait())
        elif not life.ended.done():
            replica.terminate()
            await self._first_of(_FAREWELL, life.wait(), self._again.wait())
        replica.kill()
        await life.wait()
        self._forget(replica)

    @staticmethod
    async def _first_of(seconds: float | None, *waits: Any) -> bool:
        """Whether one of `waits` was over in time."""
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        try:
            done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        return bool(done)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._again.set()
        else:
            log.info("Stopping; requests under way may finish. A second signal stops at once.")
            self._stop.set()

    async def _stand_in_for_replicas(self) -> None:
        if self._stand_in is None:
            self._stand_in = HttpServer(self._answer_not_ready, one_request_each=True)
            await self._stand_in.start(self._listener.dup())

    def _answer_not_ready(self, exchange: Exchange) -> None:
        states = {place.life.state for place in self._places}
        reason = next((text for state, text in _REASONS.items() if state in states), None)
        respond_not_ready(exchange, reason or "It was not a moment ago; try again.")

    def _spawn(self) -> Replica:
        environment = child_environment()
        environment["PYTHONUNBUFFERED"] = "1"  # what the model prints is seen when it prints it
        if self._reread is not None:
            environment["PYTHONDONTWRITEBYTECODE"] = "1"  # it is told from a changed source by whole seconds
        return Replica(
            self._listener,
            self._masker,
            debuggable=self._debuggable,
            environment=environment,
            output=self._output_fd,
            errors=sys.stderr.fileno(),
        )

    def _rotate(self, values: Values) -> None:
        """New values: first the masker knows them, then the model. Called on the rotation's thread."""
        with self._sending:
            self._learn(values)
            self._values = values
            for replica, deployment in self._replicas.items():
                replica.order(_delivery(deployment, {**self._coming, **values}))

    def _learn(self, values: Values) -> None:
        self._masker.learn(delivered.value for delivered in values.values())
        short = [name for name, delivered in values.items() if not maskable(delivered.value)]
        if short:
            log.warning("Too short to be masked in output (under 8 bytes): %s", ", ".join(short))
        origins = {held.origin for held in values.values() if held.origin.startswith(ENVIRONMENT_PREFIX)}
        if exposed := sorted(origins - self._exposed):
            self._exposed.update(exposed)
            log.warning(
                "Values came from the environment, where other processes may see them: %s. "
                "Better keep them with: gusset secret set NAME",
                ", ".join(exposed),
            )

    def _plan(self, deployment: ModelDeployment, values: Values) -> WorkerPlan:
        return WorkerPlan(
            deployment=deployment,
            secrets=_delivery(deployment, values),
            readable_logs=sys.stderr.isatty(),
            shares_port=self._workers > 1,
        )


def _told(error: GussetError) -> str:
    """All that an error has to say, for the log."""
    problems = error.problems if isinstance(error, ConfigInvalid) else ()
    lines = [f"  {problem.place()}: {problem.message}" for problem in problems if not problem.warning]
    return "\n".join((error.message, *lines))


def _delivery(deployment: ModelDeployment, values: Values) -> SetSecrets:
    """What a replica is given: what it declares, nothing else."""
    held = {name: values[name] for name in deployment.declared if name in values}
    return SetSecrets(
        values={name: each.value.reveal() for name, each in held.items()},
        versions={name: each.version for name, each in held.items()},
    )


async def _cancelled(task: asyncio.Task[None] | None) -> None:
    """Return when a task has come to its end, which it is told to do now."""
    if task is not None:
        task.cancel()
        await asyncio.wait([task])
