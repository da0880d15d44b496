"""Starts, watches, masks, restarts and drains a worker. Holds the values; never runs the model's code.

Owns the listening socket: while no worker accepts, liveness is 200 and
everything else 503, answered here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Any

from gusset.errors import Denied, GussetError, HostError, ModelFailed, Unreachable
from gusset.secrets.masking import Masker
from gusset.secrets.source import Delivered, SecretSource
from gusset.serving import channel
from gusset.serving.deployment import Deployment, read_secrets
from gusset.serving.endpoints import MODEL, NOT_READY, fail, route
from gusset.serving.http import HttpServer, Request
from gusset.serving.process import harden
from gusset.serving.pump import Pump

log = logging.getLogger("gusset.serve")

DRAIN_TIME = 30.0  # seconds that requests under way get when serving stops
BACK_OFF = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)  # seconds before each restart in a row
STEADY = 60.0  # seconds of service after which the next restart counts as the first

Announce = Callable[[str], None]


class ReplicaState(StrEnum):
    """What the one replica of a deployment is doing."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPING = "stopping"


def serve(
    deployment: Deployment,
    source: SecretSource,
    *,
    host: str,
    port: int,
    allow_missing: Collection[str] = (),
    debuggable: bool = False,
    announce: Announce,
    output_fd: int = 1,
) -> int:
    """Serve `deployment` until SIGTERM or SIGINT; the exit status.

    Raises:
        HostError: the port is taken or cannot be used.
        SecretsMissing, Denied, Unreachable: see `read_secrets`.
        ModelFailed: the model could not be imported, constructed or loaded; its traceback has been printed.
    """
    if debuggable:
        log.warning("debuggers and profilers of this account can read the secrets of this process")
    else:
        harden()
    delivered = read_secrets(deployment, source, allow_missing)
    _report(delivered)
    with _listen(host, port) as listening:
        supervisor = Supervisor(deployment, source, delivered, listening, debuggable, announce, output_fd)
        return asyncio.run(supervisor.run())


def _report(delivered: Mapping[str, Delivered]) -> None:
    """Say what is not as safe as it should be about the values just read."""
    from gusset.secrets.masking import maskable

    for name, found in delivered.items():
        if not maskable(found.value):
            log.warning("%s is shorter than 8 bytes and will not be masked in output", name)
        if found.origin.startswith("TRUSS_SECRET_"):
            log.warning(
                "%s comes from the environment (%s), where other processes can see it", name, found.origin
            )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise HostError(
            f"cannot listen on {host} port {port}: {(error.strerror or str(error)).lower()}",
            hint="another program has it? choose another with --port, or --port 0 for any free one",
        ) from None
    return listening


class Supervisor:
    """One deployment, one worker at a time."""

    def __init__(
        self,
        deployment: Deployment,
        source: SecretSource,
        delivered: Mapping[str, Delivered],
        listening: socket.socket,
        debuggable: bool,
        announce: Announce,
        output_fd: int,
    ) -> None:
        self._deployment = deployment
        self._source = source
        self._delivered = dict(delivered)
        self._listening = listening
        self._debuggable = debuggable
        self._announce = announce
        self._output_fd = output_fd
        self._masker = Masker(found.value for found in delivered.values())
        self._stopped = asyncio.Event()
        self._stop_watching = threading.Event()
        self._child: Child | None = None
        self._stand_in: HttpServer | None = None
        self.state = ReplicaState.STARTING

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        if self._deployment.declared:
            threading.Thread(target=self._watch, args=(loop,), name="gusset-watch", daemon=True).start()
        try:
            await self._keep_running()
        finally:
            self._stop_watching.set()
            if self._child:
                await self._child.kill()
        return 0

    def _stop(self) -> None:
        """The first signal drains; the second does not wait."""
        if self._stopped.is_set():
            if self._child:
                self._child.signal(signal.SIGKILL)
            return
        self.state = ReplicaState.STOPPING
        self._stopped.set()

    async def _keep_running(self) -> None:
        """Start a worker; when it dies although it was ready, start another."""
        loop, failures, first = asyncio.get_running_loop(), 0, True
        while not self._stopped.is_set():
            await self._stand_in_for_it()
            self._child = child = self._spawn()
            await self._either(child.ready, child.ended)
            if child.ready.is_set() and not child.ended.is_set():
                self._hand_over(first)
                first, began = False, loop.time()
                await self._either(child.ended)
                if loop.time() - began > STEADY:
                    failures = 0
            if self._stopped.is_set():
                await self._drain(child)
                return
            await child.finished()
            if first:
                raise ModelFailed(f"{self._deployment.name} could not be made ready ({child.fate()})")
            self.state = ReplicaState.RESTARTING
            pause = BACK_OFF[min(failures, len(BACK_OFF) - 1)]
            failures += 1
            log.error("the worker %s; starting another in %.1f s", child.fate(), pause)
            await self._stand_in_for_it()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), pause)

    async def _either(self, *events: asyncio.Event) -> None:
        """Wait for the first of `events`, or for the stop."""
        waits = [asyncio.ensure_future(event.wait()) for event in (*events, self._stopped)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    # --- answering while no worker does

    async def _stand_in_for_it(self) -> None:
        if self._stand_in is None:
            self._stand_in = HttpServer(self._answer)
            await self._stand_in.start(self._listening)

    def _hand_over(self, first: bool) -> None:
        """The worker accepts now; those who are connected here are let go after their answer."""
        self.state = ReplicaState.READY
        if self._stand_in:
            stand_in, self._stand_in = self._stand_in, None
            stand_in.stop_accepting()
            stand_in.draining = True
            for connection in list(stand_in.connections):
                connection.finish()
        if first:
            self._announce(self._address())
        else:
            log.info("the worker is ready again")

    def _address(self) -> str:
        host, port = self._listening.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
        return f"http://{host}:{port}"

    def _answer(self, request: Request) -> None:
        route(request, self._not_ready, self._not_ready)

    def _not_ready(self, request: Request) -> None:
        fail(request, 503, f"{NOT_READY} It is {self.state}.", MODEL)

    # --- the worker

    def _spawn(self) -> Child:
        plan = self._deployment.plan()
        plan["debuggable"] = self._debuggable
        plan["readable_log"] = sys.stderr.isatty()
        plan |= self._values()
        return Child(plan, self._listening, self._masker, self._output_fd)

    def _values(self) -> dict[str, Any]:
        return {
            "values": channel.pack({name: found.value for name, found in self._delivered.items()}),
            "versions": {name: found.version for name, found in self._delivered.items()},
        }

    async def _drain(self, child: Child) -> None:
        """Let requests under way finish; after `DRAIN_TIME`, or if the model is still loading, end it."""
        if self._stand_in:
            self._stand_in.stop_accepting()
        if child.ready.is_set():
            child.send({"drain": True})
            with suppress(TimeoutError):
                await asyncio.wait_for(child.ended.wait(), DRAIN_TIME)
                return
            log.warning("requests were still under way after %.0f s and were cut off", DRAIN_TIME)
        await child.kill()

    # --- rotation

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """On a thread: whenever the source says so, read again and hand on what is new."""
        names = list(self._deployment.declared)
        for _ in self._source.watch(names, self._stop_watching):
            while not self._stop_watching.is_set():
                try:
                    delivered = self._source.read(names)
                except (Denied, Unreachable) as error:
                    log.warning("secrets could not be read, the model keeps what it has: %s", error)
                    self._stop_watching.wait(1.0)
                except GussetError as error:
                    log.error("a secret could not be read, the model keeps what it has: %s", error)
                    break
                else:
                    self._masker.learn(
                        found.value for found in delivered.values()
                    )  # before anybody can print it
                    loop.call_soon_threadsafe(self._deliver, delivered)
                    break

    def _deliver(self, delivered: Mapping[str, Delivered]) -> None:
        changed = sorted(
            name for name in self._deployment.declared if delivered.get(name) != self._delivered.get(name)
        )
        self._delivered = dict(delivered)
        if changed and self._child:
            self._child.send(self._values())
            log.info("handed on to the model: %s", ", ".join(changed))


class Child:
    """One worker process, with its channel and its output."""

    def __init__(
        self, plan: Mapping[str, Any], listening: socket.socket, masker: Masker, output_fd: int
    ) -> None:
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()
        self.versions: Mapping[str, int | None] = {}
        self._loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        self._channel = ours
        with theirs:
            fds = (theirs.fileno(), listening.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gusset.serving.worker", *map(str, fds), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**_without_secrets(os.environ), "PYTHONUNBUFFERED": "1"},
                pass_fds=fds,
                start_new_session=True,  # Ctrl-C at the terminal is for the supervisor alone
            )
        assert self._process.stdout and self._process.stderr  # noqa: S101  # pipes, see above
        self._pumps = [
            Pump(self._process.stdout.detach().detach(), output_fd, masker.stream()),  # type: ignore[attr-defined]
            Pump(self._process.stderr.detach().detach(), 2, masker.stream()),  # type: ignore[attr-defined]
        ]
        threading.Thread(target=self._follow, args=(plan,), name="gusset-child", daemon=True).start()

    def _follow(self, plan: Mapping[str, Any]) -> None:
        """On a thread: tell the plan, hear what the worker says, wait for its end."""
        with suppress(OSError):
            channel.send(self._channel, plan)
        while message := channel.receive(self._channel):
            self.versions = message.get("versions", self.versions)
            if message.get("ready"):
                self._loop.call_soon_threadsafe(self.ready.set)
        self._process.wait()
        with suppress(RuntimeError):  # the loop has gone: nobody is waiting any more
            self._loop.call_soon_threadsafe(self.ended.set)

    def send(self, message: Mapping[str, Any]) -> None:
        with suppress(OSError):  # it has died; its end is noticed elsewhere
            channel.send(self._channel, message)

    def signal(self, number: int) -> None:
        """To the worker and whatever it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.finished()

    async def finished(self) -> None:
        """Wait until it has ended and what it printed has been carried over."""
        await self.ended.wait()
        self.signal(signal.SIGKILL)  # children that it left behind would hold its output open
        for pump in self._pumps:
            await asyncio.to_thread(pump.join, 1.0)
        self._channel.close()

    def fate(self) -> str:
        """How it ended, in words."""
        status = self._process.returncode
        if status is None:
            return "is running"
        if status < 0:
            return f"was ended by {signal.Signals(-status).name}"
        return f"ended with status {status}"


def _without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """Values that came in by the environment are not handed down in it."""
    return {name: text for name, text in environ.items() if not name.startswith("TRUSS_SECRET_")}
