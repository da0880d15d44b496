"""`serve` of a custom image: keeps its container up behind one port until it is told to stop.

Holds the values, puts them into the container's folder, masks what it prints,
passes requests on once it is ready, and starts it again when it ends.
"""

from __future__ import annotations

import asyncio
import collections
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
from typing import Any

from gusset.containers import mount
from gusset.containers.build import build
from gusset.containers.engine import Container, ContainerSpec, Engine, Image, is_gone, our_name
from gusset.containers.image import ImageDeployment, user_ids
from gusset.containers.mount import ContainerFolder
from gusset.containers.network import Beside, Inside, Network, Outside, may_enter
from gusset.containers.proxy import Proxy, Routes, probe
from gusset.containers.reaper import Reaper
from gusset.errors import HostError, ModelFailed
from gusset.secrets.masking import Masker, maskable
from gusset.secrets.source import ENVIRONMENT_PREFIX, SecretSource
from gusset.serving import logs
from gusset.serving.process import harden
from gusset.serving.pump import Pump
from gusset.serving.rotation import Rotation, Values, read_secrets
from gusset.serving.supervisor import DRAIN_SECONDS, listen

log = logging.getLogger("gusset.containers")

STOP_SECONDS = 10  # for a container to end on SIGTERM

_POLL = 0.1  # seconds between looks at a container that starts,
_PULSE = 5.0  # and at one that is up
_PROBE_SECONDS = 10.0
_FIRST_PAUSE = 0.2  # seconds before a restart, doubled up to
_LAST_PAUSE = 30.0
_STEADY = 60.0  # a container that was ready and lived for so long starts the pauses anew
_LAST_LINES = 20

Prepared = AbstractContextManager[tuple[ImageDeployment, SecretSource]]


def serve_image(
    prepare: Callable[[], Prepared],
    *,
    docker_host: str | None,
    host: str = "127.0.0.1",
    port: int = 8080,
    allow_missing: Collection[str] = (),
    host_network: bool = False,
    gpus: int | None = None,
    debuggable: bool = False,
    announce: Callable[[str], object] = lambda address: None,
    output_fd: int = 1,
    drain_seconds: float = DRAIN_SECONDS,
) -> int:
    """Serve a custom image with the secrets of its source until SIGTERM or SIGINT; return 0 then.

    `prepare` gives both. Call it on the main thread. `host_network` puts the
    container on this machine's own network, `gpus` passes so many on to it (-1:
    all). For the rest see `gusset.serving.supervisor.serve`.

    Raises:
        HostError: no engine, no such image, no memory-backed folder, or the address cannot be used.
        SecretsMissing, Denied, Unreachable: see `read_secrets`; or the start_command reads what is missing.
        ModelFailed: the container did not become ready; with its last lines.
    """
    if not debuggable:
        harden()
    if not logging.getLogger("gusset").handlers:
        logs.log_to_stderr(readable=sys.stderr.isatty())
    with listen(host, port) as listener, contextlib.ExitStack() as stack:
        deployment, source = stack.enter_context(prepare())
        values = read_secrets(deployment, source, allow_missing)
        deployment.check_command(values)
        taken = {8080, listener.getsockname()[1]}
        if host_network and (deployment.port in taken or _is_used(deployment.port)):
            raise HostError(
                f"with --network host the container's port {deployment.port} clashes with this machine's",
                hint="give docker_server.server_port another number (not 8080, nor gusset's own, nor one "
                "that something listens on), or leave --network out",
            )
        engine = Engine.find(docker_host)
        stack.callback(engine.close)
        reaper = Reaper(engine.address, engine.service.pid if engine.service else 0)
        stack.callback(reaper.close)
        engine.remove_orphans()
        mount.remove_orphans(is_gone)
        image = engine.image(deployment.image, log.info)
        if not deployment.recipe.is_empty:
            image = build(
                engine,
                deployment.recipe,
                base=deployment.image,
                user=image.user,
                name=deployment.name,
                mask=Masker(held.value for held in values.values()).mask_text,
            )
        user = _user(deployment, engine, image)
        keeper = Keeper(deployment, engine, image, user, reaper, output_fd)
        keeper.options = {"host_network": host_network, "gpus": gpus, "debuggable": debuggable}
        keeper.take(values)
        rotation = Rotation(deployment.declared, source, values, keeper.take)
        stack.callback(rotation.stop)
        return asyncio.run(keeper.live(listener, announce, drain_seconds))


def _user(deployment: ImageDeployment, engine: Engine, image: Image) -> tuple[int, int]:
    """Who the container runs as, by number: the owner of its files."""
    passwd, group = engine.files(image, "/etc/passwd", "/etc/group")
    asked = deployment.user_id
    if asked is not None and passwd and f":{asked}:" not in passwd.decode("utf-8", "replace"):
        log.warning("The image's /etc/passwd has no user %d: it runs without a name and a home.", asked)
    return user_ids(image.user if asked is None else str(asked), passwd, group)


class Keeper:
    """The life of one image on one listening socket."""

    options: dict[str, Any]

    def __init__(
        self,
        deployment: ImageDeployment,
        engine: Engine,
        image: Image,
        user: tuple[int, int],
        reaper: Reaper,
        output_fd: int,
    ) -> None:
        self._deployment = deployment
        self._engine = engine
        self._image = image
        self._user = user
        self._reaper = reaper
        self._outputs = (output_fd, sys.stderr.fileno())
        self._masker = Masker()
        self._values: Values = {}
        self._filling = threading.Lock()  # a rotation is whole before a new container is filled, or after
        self._folder: ContainerFolder | None = None
        self._network: Network | None = None
        self._unready: str | None = "It is starting."
        self._last = collections.deque[bytes](maxlen=_LAST_LINES)

    def take(self, values: Values) -> None:
        """New values: first the masker knows them, then the container. From any thread."""
        self._masker.learn(held.value for held in values.values())
        short = [name for name, held in values.items() if not maskable(held.value)]
        if short:
            log.warning("Too short to be masked in output (under 8 bytes): %s", ", ".join(short))
        exposed = [held.origin for held in values.values() if held.origin.startswith(ENVIRONMENT_PREFIX)]
        if exposed:
            log.warning("From the environment, where other processes may see them: %s", ", ".join(exposed))
        with self._filling:
            self._values = values
            if self._folder is not None:
                self._folder.replace({name: held.value for name, held in values.items()})

    async def live(
        self, listener: socket.socket, announce: Callable[[str], object], drain_seconds: float
    ) -> int:
        """Serve until stopped."""
        loop = asyncio.get_running_loop()
        host, port = listener.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        stop, again = asyncio.Event(), asyncio.Event()

        def on_signal() -> None:
            if stop.is_set():
                again.set()
            else:
                log.info("Stopping; requests under way may finish. A second signal stops at once.")
                stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        deployment = self._deployment
        routes = Routes(deployment.predict, deployment.readiness, deployment.liveness)
        proxy = Proxy(self._connect, routes, ready=lambda: self._unready)
        await proxy.start(listener.dup())
        listener.close()
        keeping = loop.create_task(self._keep(lambda: announce(address)))
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait((keeping, stopped), return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            drained = loop.create_task(proxy.drain(drain_seconds))
            hurried = asyncio.ensure_future(again.wait())
            await asyncio.wait((drained, hurried, keeping), return_when=asyncio.FIRST_COMPLETED)
        else:
            await proxy.drain(0)
        keeping.cancel()
        try:
            await keeping  # it removes its container on the way
        except asyncio.CancelledError:
            return 0
        return 0

    async def _connect(self) -> socket.socket:
        if self._network is None:
            raise ConnectionRefusedError
        return await self._network.connect()

    async def _keep(self, announce: Callable[[], object]) -> None:
        """One container after the other, with growing pauses between them.

        Raises:
            ModelFailed: the first one did not become ready.
        """
        pause, announced = _FIRST_PAUSE, False

        def on_ready() -> None:
            nonlocal announced
            if announced:
                log.info("The container is ready again.")
            else:
                announced = True
                announce()

        while True:
            began = time.monotonic()
            try:
                await self._one(on_ready)
            except ModelFailed as error:
                if not announced:
                    raise
                log.error("%s", error.message)  # noqa: TRY400
            if time.monotonic() - began > _STEADY:
                pause = _FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_PAUSE)

    async def _one(self, on_ready: Callable[[], object]) -> None:
        """The life of one container, from its making to its removal.

        Raises:
            ModelFailed: how it ended.
        """
        self._unready = "It is starting."
        async with contextlib.AsyncExitStack() as stack:
            container, outputs = await asyncio.to_thread(self._make, stack)
            stack.callback(self._forget, container)
            await asyncio.to_thread(container.start)
            if not self.options["debuggable"]:
                await asyncio.to_thread(container.leave_no_core)
            self._network = await asyncio.to_thread(self._reach, container)
            if self._network is not None:
                stack.callback(self._network.close)
            ended = asyncio.ensure_future(asyncio.to_thread(container.wait))
            watching = asyncio.ensure_future(self._watch(on_ready))
            try:
                await asyncio.wait((ended, watching), return_when=asyncio.FIRST_COMPLETED)
                if watching.done():
                    watching.result()
                status = await ended
            except BaseException:
                watching.cancel()
                self._unready = "It is stopping."
                await asyncio.shield(asyncio.to_thread(container.stop, STOP_SECONDS))
                raise
            finally:
                watching.cancel()
                for pump in outputs:
                    await asyncio.to_thread(pump.join, 2.0)
            what = "ended" if self._was_ready else "ended before it was ready"
            raise ModelFailed(f"the container {what}, with exit status {status}{self._last_lines()}")

    def _make(self, stack: contextlib.AsyncExitStack) -> tuple[Container, list[Pump]]:
        """A container with its folder and its outputs connected, about to be started."""
        deployment = self._deployment
        folder = ContainerFolder(our_name())
        stack.callback(folder.close)
        self._reaper.tell("folder", str(folder.home))
        root = os.geteuid() == 0
        host_network = bool(self.options["host_network"])
        spec = ContainerSpec(
            image=self._image.id,
            command=deployment.command,
            environment=deployment.environment_variables,
            user=None if deployment.user_id is None else str(deployment.user_id),
            secrets_folder=folder.path,
            owner=our_name(),
            host_network=host_network,
            cpus=deployment.cpus,
            memory=deployment.memory,
            gpus=self.options["gpus"],
            user_namespace=None if root else self._mapping(),
            labels={"gusset.name": deployment.name},
        )
        container = self._engine.create(spec)
        stack.callback(self._remove, container)
        self._reaper.tell("container", container.id)
        with self._filling:
            folder.fill(
                {name: held.value for name, held in self._values.items()}, self._user if root else None
            )
            self._folder = folder
        self._last.clear()
        self._was_ready = False
        pumps, ends = [], []
        for sink in self._outputs:
            source, end = os.pipe()
            ends.append(end)
            pumps.append(Pump(source, sink, _Remembering(self._masker.stream(), self._last)))
        for end in ends:
            stack.callback(os.close, end)
        stack.enter_context(container.attached(*ends))
        return container, pumps

    def _mapping(self) -> str:
        """Without root: who we are is who the container runs as, so that our files are its own."""
        if not self._engine.is_podman:
            raise HostError(
                "without root gusset can give files of secrets to Podman's containers, not to Docker's",
                hint="run gusset as root, or with rootless Podman",
            )
        uid, gid = self._user
        return f"keep-id:uid={uid},gid={gid or uid}" if uid else "host"

    def _reach(self, container: Container) -> Network | None:
        """The way to its server; None when it has ended already: `wait` says how."""
        port = self._deployment.port
        if self.options["host_network"]:
            return Outside(port)
        if pid := container.pid():
            with contextlib.suppress(OSError):
                return Inside(pid, port) if may_enter() else Beside(pid, port)
        return None

    def _remove(self, container: Container) -> None:
        container.remove()
        self._reaper.tell("gone", container.id)

    def _forget(self, container: Container) -> None:
        with self._filling:
            self._folder = None
        self._network = None
        self._unready = "It ended and will be started again."

    async def _watch(self, on_ready: Callable[[], object]) -> None:
        """Follow a container's readiness and liveness.

        Raises:
            ModelFailed: it did not become ready in time, or was unwell for too long.
        """
        deployment, health = self._deployment, self._deployment.health
        began = time.monotonic()
        while not _is_well(seen := await self._ask(deployment.readiness)):
            if time.monotonic() - began > health.startup:
                raise ModelFailed(
                    f"the container was not ready after {health.startup:g} s: GET {deployment.readiness} "
                    f"on its port {deployment.port} gave {seen}{self._last_lines()}",
                    hint="see docker_server.server_port and readiness_endpoint, and "
                    "runtime.health_checks.startup_threshold_seconds",
                )
            await asyncio.sleep(_POLL)
        self._unready = None
        self._was_ready = True
        on_ready()
        ready = alive = time.monotonic()
        started = time.monotonic()
        while True:
            await asyncio.sleep(min(_PULSE, health.restart, health.stop_traffic))
            now = time.monotonic()
            answers = {path: await self._ask(path) for path in {deployment.readiness, deployment.liveness}}
            if _is_well(answers[deployment.readiness]):
                ready = now
            if _is_well(answers[deployment.liveness]) or now - started < health.restart_delay:
                alive = now
            self._unready = None if now - ready < health.stop_traffic else "It says that it is not ready."
            if now - alive >= health.restart:
                raise ModelFailed(
                    f"the container was not alive for {health.restart:g} s; it is started again"
                )

    async def _ask(self, path: str) -> str:
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                return str(await probe(self._connect, path))
        except TimeoutError:
            return "no answer"
        except OSError as error:
            return error.strerror or str(error) or type(error).__name__

    def _last_lines(self) -> str:
        lines = b"".join(self._last).splitlines()[-_LAST_LINES:]
        if not lines:
            return "; it printed nothing"
        return "; its last lines:\n" + "\n".join(f"  {line.decode('utf-8', 'replace')}" for line in lines)


def _is_used(port: int) -> bool:
    """Whether something listens there on this machine: it would get the container's requests."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _is_well(seen: str) -> bool:
    """Whether the answer to a probe is a good one: any status that is no error."""
    return seen.isdecimal() and 200 <= int(seen) < 400


class _Remembering:
    """A masking stream, whose last output is kept for messages."""

    def __init__(self, stream: Any, last: collections.deque[bytes]) -> None:
        self._stream = stream
        self._last = last

    def feed(self, data: bytes) -> bytes:
        return self._kept(self._stream.feed(data))

    def flush(self) -> bytes:
        return self._kept(self._stream.flush())

    @property
    def holding(self) -> bool:
        held: bool = self._stream.holding
        return held

    def _kept(self, data: bytes) -> bytes:
        self._last.extend(data[-8192:].splitlines(keepends=True)[-_LAST_LINES:])
        return data
