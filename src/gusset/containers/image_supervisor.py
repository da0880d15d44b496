"""`serve` of a custom image: keeps its container up behind one port until it is told to stop.

Holds the values, puts them where the container has them, masks what it prints,
passes requests on once it is ready, and starts it again when it ends.
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
from dataclasses import dataclass

from gusset.containers.engine.container import Container
from gusset.containers.engine.engine import ContainerSpec, Engine, Image
from gusset.containers.engine.image_build import build
from gusset.containers.engine.registry import Credentials
from gusset.containers.engine.run_id import is_gone, our_name
from gusset.containers.image_deployment import ImageDeployment, user_ids
from gusset.containers.proxy.proxy import Proxy, Routes, probe
from gusset.containers.reaper import Reaper
from gusset.containers.running_container import Life
from gusset.containers.secrets import memory_folder
from gusset.containers.secrets.secret_mount import Local, Site
from gusset.containers.secrets.sidecar import Sidecar
from gusset.errors import HostError, ModelFailed
from gusset.runtime import logs
from gusset.runtime.declared_secrets import Values, read_secrets
from gusset.runtime.listener import DRAIN_SECONDS, listen
from gusset.runtime.process import harden
from gusset.runtime.secret_watcher import SecretWatcher
from gusset.secrets.masking import Masker, maskable
from gusset.secrets.sources.source import ENVIRONMENT_PREFIX, SecretSource
from gusset.secrets.value import SecretValue

log = logging.getLogger("gusset.containers")

STOP_SECONDS = 10  # for a container to end on SIGTERM

_POLL = 0.1  # seconds between looks at a container that starts,
_PULSE = 5.0  # and at one that is up
_PROBE_SECONDS = 10.0
_FIRST_PAUSE = 0.2  # seconds before a restart, doubled up to
_LAST_PAUSE = 30.0
_STEADY = 60.0  # a container that was ready and lived for so long starts the pauses anew

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
    all). For the rest see `gusset.serving.supervisor.supervisor.serve`.

    Raises:
        HostError: no engine, no such image, no memory-backed folder, or the address cannot be used.
        SecretsMissing, Denied, Unreachable: see `read_secrets`; or the start_command reads what is missing;
            or the login to the image's registry is.
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
        credentials = deployment.login.read(source, allow_missing) if deployment.login else None
        taken = {8080, listener.getsockname()[1]}
        if host_network and (deployment.port in taken or _is_used(deployment.port)):
            raise HostError(
                f"with --network host the container's port {deployment.port} clashes with this machine's",
                hint="give docker_server.server_port another number (not 8080, nor gusset's own, nor one "
                "that something listens on), or leave --network out",
            )
        reaper = Reaper(our_name())
        stack.callback(reaper.close)
        engine = Engine.find(docker_host, reaper.tell)
        stack.callback(engine.close)
        stack.callback(_finish, engine, reaper)
        if host_network and not engine.has_our_network:
            raise HostError(
                "with --network host the container would be on its engine's network, not on this machine's",
                hint="leave --network out",
            )
        engine.remove_orphans()
        memory_folder.remove_all(is_gone)
        masker = Masker(held.value for held in values.values())
        image = _image(engine, deployment.image, credentials, masker)
        if not deployment.recipe.is_empty:
            image = build(
                engine,
                deployment.recipe,
                base=deployment.image,
                user=image.user,
                model=deployment.folder,
                mask=masker.mask_text,
            )
        user = _user(deployment, engine, image)
        options = Options(host_network=host_network, gpus=gpus, debuggable=debuggable)
        keeper = ImageSupervisor(deployment, engine, image, user, options, output_fd)
        keeper.take(values)
        rotation = SecretWatcher(deployment.declared, source, values, keeper.take)
        stack.callback(rotation.stop)
        return asyncio.run(keeper.live(listener, announce, drain_seconds))


def _finish(engine: Engine, reaper: Reaper) -> None:
    """Spare the reaper its work when nothing is left to do."""
    with contextlib.suppress(ModelFailed, HostError):
        if not engine.remove_ours():
            reaper.tell("done")


def _image(engine: Engine, name: str, credentials: Credentials | None, masker: Masker) -> Image:
    """The image of that name. What its registry says of a login may repeat that."""
    masker.learn(credentials.parts if credentials else ())
    try:
        return engine.image(name, log.info, credentials)
    except HostError as error:
        raise HostError(masker.mask_text(error.message), hint=error.hint) from None


def _user(deployment: ImageDeployment, engine: Engine, image: Image) -> tuple[int, int]:
    """Who the container runs as, by number: the owner of its files."""
    passwd, group = engine.files(image, "/etc/passwd", "/etc/group")
    asked = deployment.user_id
    if asked is not None and passwd and f":{asked}:" not in passwd.decode("utf-8", "replace"):
        log.warning("The image's /etc/passwd has no user %d: it runs without a name and a home.", asked)
    return user_ids(image.user if asked is None else str(asked), passwd, group)


@dataclass(frozen=True, slots=True)
class Options:
    """How a person wants the container to be run; see `serve_image`."""

    host_network: bool
    gpus: int | None
    debuggable: bool


class ImageSupervisor:
    """The life of one image on one listening socket."""

    def __init__(
        self,
        deployment: ImageDeployment,
        engine: Engine,
        image: Image,
        user: tuple[int, int],
        options: Options,
        output_fd: int,
    ) -> None:
        self._deployment = deployment
        self._engine = engine
        self._image = image
        self._user = user
        self._options = options
        self._outputs = (output_fd, sys.stderr.fileno())
        self._masker = Masker()
        self._values: Values = {}
        self._filling = threading.Lock()  # a rotation is whole before a new container is filled, or after
        self._life: Life | None = None
        self._unready: str | None = "It is starting."

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
            if self._life is not None:
                self._life.site.replace(self._plain_values())

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
            at_once = asyncio.ensure_future(again.wait())
            await asyncio.wait((drained, at_once, keeping), return_when=asyncio.FIRST_COMPLETED)
        else:
            await proxy.drain(0)
        keeping.cancel()  # it stops and removes its container on the way
        hurried = asyncio.ensure_future(again.wait())
        await asyncio.wait((keeping, hurried), return_when=asyncio.FIRST_COMPLETED)
        if not keeping.done() and self._life is not None:
            await asyncio.to_thread(self._life.container.kill)
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        return 0

    async def _connect(self) -> socket.socket:
        network = self._life.network if self._life else None
        if network is None:
            raise ConnectionRefusedError
        return await network.connect()

    async def _keep(self, announce: Callable[[], object]) -> None:
        """One container after the other, with growing pauses between them.

        Raises:
            ModelFailed, HostError: the first one did not become ready.
        """
        pause, announced = _FIRST_PAUSE, False

        def on_ready() -> None:
            nonlocal announced
            if announced:
                log.info("The container is ready again.")
                return
            announced = True
            try:
                announce()
            except OSError as error:  # nobody reads what we say any more; it is served all the same
                log.warning("The address could not be announced: %s", error.strerror)

        while True:
            began = time.monotonic()
            try:
                await self._one(on_ready)
            except (ModelFailed, HostError) as error:
                if not announced:
                    raise
                log.error("It is started again: %s", error.message)  # noqa: TRY400
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
        self._was_ready = False
        life = await self._begin()
        ended = _awaited(life)
        watching = asyncio.ensure_future(self._watch(life, on_ready))
        try:
            await asyncio.wait((ended, watching), return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
            what = "ended" if self._was_ready else "ended before it was ready"
            raise ModelFailed(f"the container {what}, with {await ended}{life.last_lines()}")
        finally:
            watching.cancel()
            self._unready = "It is stopping."
            if not ended.done():
                await asyncio.shield(asyncio.to_thread(life.container.stop, STOP_SECONDS))
                await asyncio.wait((ended,), timeout=_PROBE_SECONDS)
            await asyncio.shield(asyncio.to_thread(self._forget))
            self._unready = "It ended and will be started again."
            await asyncio.shield(asyncio.to_thread(life.close))

    async def _begin(self) -> Life:
        """A container that has been started. When this is cancelled meanwhile, none is left."""
        making = asyncio.ensure_future(asyncio.to_thread(self._make))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            with contextlib.suppress(ModelFailed, HostError):  # we end, whatever became of it
                life = await making
                await asyncio.to_thread(life.close)
            raise

    def _make(self) -> Life:
        self._engine.keep_up()
        self._engine.remove_ours()  # what an engine that did not answer has kept
        life = Life(self._site(), self._create, self._fill, self._masker, self._outputs)
        with contextlib.ExitStack() as stack:
            stack.callback(life.close)
            with self._filling:
                life.site.replace(self._plain_values())  # a rotation may have come since it was filled
                self._life = life
            stack.pop_all()
        return life

    def _site(self) -> Site:
        port, options = self._deployment.port, self._options
        if not self._engine.takes_our_files:
            return Sidecar(self._engine, self._user, port, log.info, host_network=options.host_network)
        return Local(
            self._user if os.geteuid() == 0 else None,
            port,
            host_network=options.host_network,
            may_leave_core=options.debuggable,
        )

    def _create(self, site: Site) -> Container:
        deployment, is_local = self._deployment, self._engine.takes_our_files
        return self._engine.create(
            ContainerSpec(
                image=self._image.id,
                command=deployment.command,
                environment=deployment.environment_variables,
                user=None if deployment.user_id is None else str(deployment.user_id),
                secrets=site.source,
                network=site.network,
                owner=our_name(),
                cpus=deployment.cpus,
                memory=deployment.memory,
                gpus=self._options.gpus,
                user_namespace=self._mapping() if is_local and os.geteuid() != 0 else None,
                may_leave_core=is_local or self._options.debuggable,
                labels={"gusset.name": deployment.name},
            )
        )

    def _forget(self) -> None:
        with self._filling:  # a rotation that is under way may take long
            self._life = None

    def _fill(self, site: Site) -> None:
        with self._filling:
            site.replace(self._plain_values())

    def _plain_values(self) -> dict[str, SecretValue]:
        return {name: held.value for name, held in self._values.items()}

    def _mapping(self) -> str:
        """Without root: who we are is who the container runs as, so that our files are its own."""
        uid, gid = self._user
        return f"keep-id:uid={uid},gid={gid or uid}" if uid else "host"

    async def _watch(self, life: Life, on_ready: Callable[[], object]) -> None:
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
                    f"on its port {deployment.port} gave {seen}{life.last_lines()}",
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
            await asyncio.sleep(max(_POLL, min(_PULSE, health.restart, health.stop_traffic)))
            now = time.monotonic()
            answers = {path: await self._ask(path) for path in {deployment.readiness, deployment.liveness}}
            if _is_well(answers[deployment.readiness]):
                ready = now
            if _is_well(answers[deployment.liveness]) or now - started < health.restart_delay:
                alive = now
            self._unready = None if now - ready < health.stop_traffic else "It says that it is not ready."
            if now - alive >= health.restart:
                raise ModelFailed(f"the container was not alive for {health.restart:g} s")

    async def _ask(self, path: str) -> str:
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                return str(await probe(self._connect, path))
        except TimeoutError:
            return "no answer"
        except OSError as error:
            return error.strerror or str(error) or type(error).__name__


def _awaited(life: Life) -> asyncio.Future[str]:
    """Its end, heard in a thread that nobody waits for: an engine that hangs never tells."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[str] = loop.create_future()

    def tell(how: str) -> None:
        if not ended.done():
            ended.set_result(how)

    def wait() -> None:
        how = life.wait()
        with contextlib.suppress(RuntimeError):  # we have ended before it
            loop.call_soon_threadsafe(tell, how)

    threading.Thread(target=wait, name="gusset-wait", daemon=True).start()
    return ended


def _is_used(port: int) -> bool:
    """Whether something listens there on this machine: it would get the container's requests."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _is_well(seen: str) -> bool:
    """Whether the answer to a probe is a good one: any status that is no error."""
    return seen.isdecimal() and 200 <= int(seen) < 400
