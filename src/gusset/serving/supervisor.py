"""`serve`: keeps a deployment up on one port until it is told to stop.

The supervisor runs no user code. It owns the listening socket, holds the
values, masks what workers print, hands over the port when a worker is ready,
answers in its place while none is, and starts a new one when it dies.
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
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from gusset.errors import HostError, ModelFailed
from gusset.secrets.masking import Masker, maskable
from gusset.secrets.source import ENVIRONMENT_PREFIX, SecretSource
from gusset.serving import logs
from gusset.serving.answers import stand_in
from gusset.serving.deployment import Deployment
from gusset.serving.http import Exchange, HttpServer
from gusset.serving.process import harden
from gusset.serving.replica import Replica, ReplicaState, describe_end
from gusset.serving.rotation import Rotation, Values, read_secrets

log = logging.getLogger("gusset.serving")

DRAIN_SECONDS = 30.0

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


# What is to be served, and where its secrets come from; closed when serving ends.
Prepared = AbstractContextManager[tuple[Deployment, SecretSource]]


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
) -> int:
    """Serve a deployment with the secrets of its source until SIGTERM or SIGINT; return 0 then.

    `prepare` gives both. It is called while the first worker's interpreter
    starts, since reading a config and opening a vault take as long as that.
    Call it on the main thread. Port 0 takes a free port; `announce` is called
    once with the address, as in "http://127.0.0.1:8080", when the model is
    ready. What the model prints goes to `output_fd` and standard error, masked.
    A stop waits `drain_seconds` for requests under way. What happens is logged
    to standard error, unless the caller has given the logger "gusset" handlers.

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
        supervisor = Supervisor(listener, debuggable=debuggable, announce=announce, output_fd=output_fd)
        return supervisor.run(prepare, allow_missing, drain_seconds)


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket.

    Raises:
        HostError: the port is in use, may not be used, or there is no such address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise HostError(f"{host} cannot be listened on: {error.strerror}", hint="see --host") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        reason = os.strerror(error.errno or 0).lower()
        raise HostError(
            f"port {port} on {host} cannot be used: {reason}", hint="choose another one with --port"
        ) from None
    listener.setblocking(False)
    return listener


class Supervisor:
    """The life of one deployment on one listening socket."""

    _deployment: Deployment  # known once `run` has prepared it

    def __init__(
        self,
        listener: socket.socket,
        *,
        debuggable: bool,
        announce: Callable[[str], object],
        output_fd: int,
    ) -> None:
        self._listener = listener
        self._debuggable = debuggable
        self._announce: Callable[[str], object] | None = announce
        self._output_fd = output_fd
        self._masker = Masker()
        self._values: Values = {}
        self._sending = threading.Lock()  # orders of secrets reach a replica in the order of the values
        self._replica: Replica | None = None
        self._state = ReplicaState.STARTING
        self._stand_in: HttpServer | None = None
        self._trouble: str | None = None

    def run(
        self, prepare: Callable[[], Prepared], allow_missing: Collection[str], drain_seconds: float
    ) -> int:
        """Serve until stopped; see `serve`."""
        with contextlib.ExitStack() as stack:
            first = self._spawn()  # it gets itself going while we find out what it is to serve
            try:
                self._deployment, source = stack.enter_context(prepare())
                self._values = read_secrets(self._deployment, source, allow_missing)
                self._learn(self._values)
                self._warn_of_environment()
            except BaseException:
                first.abandon()
                raise
            rotation = Rotation(self._deployment.declared, source, self._values, self._rotate)
            try:
                return asyncio.run(self._live(first, drain_seconds, source))
            finally:
                rotation.stop()
                if self._replica is not None:
                    self._replica.kill()
                    self._replica.join()

    async def _live(self, first: Replica, drain_seconds: float, source: SecretSource) -> int:
        self._loop = asyncio.get_running_loop()
        telling = self._loop.create_task(self._tell_trouble(source))
        try:
            return await self._lives(first, drain_seconds)
        finally:
            telling.cancel()

    async def _tell_trouble(self, source: SecretSource) -> None:
        """Let the replica know how its secrets' source stands: it is asked for its readiness."""
        while True:
            if source.trouble != self._trouble:
                self._trouble = source.trouble
                with self._sending:
                    if self._replica is not None:
                        self._replica.order({"order": "trouble", "trouble": self._trouble})
            await asyncio.sleep(_TROUBLE_POLL)

    async def _lives(self, first: Replica, drain_seconds: float) -> int:
        self._stop = asyncio.Event()
        self._again = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)
        await self._stand_in_for_replica()
        replica, pause = first, _FIRST_PAUSE
        while True:
            began = time.monotonic()
            life = _Life()
            self._begin(replica, life)
            ended = asyncio.ensure_future(life.ended)
            stopped = asyncio.ensure_future(self._stop.wait())
            await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                await self._end(replica, life, drain_seconds)
                return 0
            stopped.cancel()
            await self._take_over(life, ended.result())
            if life.was_ready and time.monotonic() - began > _STEADY:
                pause = _FIRST_PAUSE
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)
                return 0
            pause = min(pause * 2, _LAST_PAUSE)
            replica = self._spawn()

    def _begin(self, replica: Replica, life: _Life) -> None:
        def on_report(report: dict[str, Any]) -> None:
            self._soon(partial(self._on_report, replica, life, report))

        def on_end(status: int) -> None:
            self._soon(partial(life.end, status))

        self._state = ReplicaState.STARTING
        with self._sending:
            replica.start(self._plan(), on_report, on_end)
            self._replica = replica
            if self._trouble is not None:
                replica.order({"order": "trouble", "trouble": self._trouble})

    def _soon(self, call: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call)

    def _on_report(self, replica: Replica, life: _Life, report: dict[str, Any]) -> None:
        event = report.get("event")
        if event == "loading":
            self._state = ReplicaState.LOADING
        elif event == "failed":
            life.failure = (report["step"], report["trace"])
        elif event == "drained":
            life.drained.set()
        elif event == "holding":
            life.versions = report["versions"]
        elif event == "ready" and not (life.was_ready or life.ended.done() or self._stop.is_set()):
            self._on_ready(life)

    def _on_ready(self, life: _Life) -> None:
        self._state = ReplicaState.READY
        life.was_ready = True
        if self._stand_in is not None:
            self._stand_in.stop_accepting()
            self._stand_in = None
        if self._announce is None:
            log.info("The model is ready again.")
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

    async def _take_over(self, life: _Life, status: int) -> None:
        """The worker has ended by itself: answer in its place; or give up, when none was ever ready."""
        self._state = ReplicaState.FAILED
        if self._announce is not None:
            raise self._failed(life, status)
        await self._stand_in_for_replica()
        if life.was_ready:
            log.error("The model's process ended (%s); it is started again.", describe_end(status))
        else:
            log.error("The model did not start again: %s", self._failed(life, status).message)

    def _failed(self, life: _Life, status: int) -> ModelFailed:
        if life.failure is None:
            return ModelFailed(
                f"the model's process ended while the model was starting ({describe_end(status)})",
                hint="see what it printed above",
            )
        step, trace = life.failure
        what = {
            "import": "the model's code could not be imported",
            "__init__": "the model's __init__ failed",
            "check": "the model's class cannot be served",
            "load": "the model's load failed, twice",
        }.get(step, "the model failed")
        return ModelFailed(f"{what}\n{self._masker.mask_text(trace)}")

    async def _end(self, replica: Replica, life: _Life, drain_seconds: float) -> None:
        """Let requests under way finish, for as long as that may take, then end the worker."""
        self._state = ReplicaState.STOPPING
        self._listener.close()
        if self._stand_in is not None:
            self._stand_in.stop_accepting()
        if life.was_ready:
            replica.order({"order": "drain"})
            if not await self._first_of(drain_seconds, life.drained.wait(), life.wait(), self._again.wait()):
                log.warning("Requests were still under way after %g s; they are cut.", drain_seconds)
            elif life.drained.is_set():
                await self._first_of(_FAREWELL, life.wait(), self._again.wait())
        elif not life.ended.done():
            replica.terminate()
            await self._first_of(_FAREWELL, life.wait(), self._again.wait())
        replica.kill()
        await life.wait()
        self._state = ReplicaState.STOPPED

    @staticmethod
    async def _first_of(seconds: float, *waits: Any) -> bool:
        """Whether one of `waits` was over in time."""
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        done, pending = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return bool(done)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._again.set()
        else:
            log.info("Stopping; requests under way may finish. A second signal stops at once.")
            self._stop.set()

    async def _stand_in_for_replica(self) -> None:
        if self._stand_in is None:
            self._stand_in = HttpServer(self._answer_not_ready, one_request_each=True)
            await self._stand_in.start(self._listener.dup())

    def _answer_not_ready(self, exchange: Exchange) -> None:
        stand_in(exchange, _REASONS.get(self._state, "It was not a moment ago; try again."))

    def _spawn(self) -> Replica:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)
        }
        environment["PYTHONUNBUFFERED"] = "1"  # what the model prints is seen when it prints it
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
            if self._replica is not None:
                self._replica.order({"order": "secrets", **self._delivery()})

    def _learn(self, values: Values) -> None:
        self._masker.learn(delivered.value for delivered in values.values())
        short = [name for name, delivered in values.items() if not maskable(delivered.value)]
        if short:
            log.warning("Too short to be masked in output (under 8 bytes): %s", ", ".join(short))
        exposed = [held.origin for held in values.values() if held.origin.startswith(ENVIRONMENT_PREFIX)]
        if exposed:
            log.warning("From the environment, where other processes may see them: %s", ", ".join(exposed))

    def _warn_of_environment(self) -> None:
        origins = [
            held.origin for held in self._values.values() if held.origin.startswith(ENVIRONMENT_PREFIX)
        ]
        if origins:
            log.warning(
                "Values came from the environment, where other processes may see them: %s. "
                "Better keep them with: gusset secret set NAME",
                ", ".join(origins),
            )

    def _delivery(self) -> dict[str, Any]:
        return {
            "secrets": {name: held.value.reveal() for name, held in self._values.items()},
            "versions": {name: held.version for name, held in self._values.items()},
        }

    def _plan(self) -> dict[str, Any]:
        deployment = self._deployment
        return {
            "folder": str(deployment.folder),
            "model_file": str(deployment.model_file),
            "model_class": deployment.model_class,
            "config_file": deployment.config_file,
            "config": dict(deployment.config),
            "declared": deployment.declared,
            "data_dir": str(deployment.data_dir or deployment.folder / "data"),
            "package_dirs": [str(path) for path in deployment.package_dirs],
            "environment_variables": dict(deployment.environment_variables),
            "predict_concurrency": deployment.predict_concurrency,
            "streaming_read_timeout": deployment.streaming_read_timeout,
            "transport": dict(deployment.transport),
            "debug_logs": deployment.debug_logs,
            "readable_logs": sys.stderr.isatty(),
            **self._delivery(),
        }


class _Life:
    """What one worker has let us know, from its start to its end."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.drained = asyncio.Event()
        self.was_ready = False
        self.failure: tuple[str, str] | None = None
        self.versions: dict[str, int | None] = {}

    def end(self, status: int) -> None:
        if not self.ended.done():
            self.ended.set_result(status)

    async def wait(self) -> int:
        return await asyncio.shield(self.ended)
