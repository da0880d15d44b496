"""`serve` of a custom image: keeps one container running behind one port until a signal stops it.

Delivers the values to the container, masks its output, proxies requests while
it is ready, and replaces it when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from gusset.bugs import errors_logged
from gusset.containers import grpc_health
from gusset.containers.build.builder import BuildValues, build, local_name
from gusset.containers.build.cache_key import load_key
from gusset.containers.container_starter import ContainerOptions, ContainerStarter
from gusset.containers.downloads import fetch_folders
from gusset.containers.engine import leftovers
from gusset.containers.engine.container import Notify
from gusset.containers.engine.engine import Engine
from gusset.containers.engine.images import Image
from gusset.containers.engine.registry import Credentials
from gusset.containers.engine.run_id import run_has_ended, run_id
from gusset.containers.health_monitor import PROBE_SECONDS, HealthMonitor
from gusset.containers.image_deployment import ImageDeployment, user_ids
from gusset.containers.proxy.proxy import Proxy, Routes
from gusset.containers.reaper import Reaper
from gusset.containers.running_container import RunningContainer
from gusset.containers.secrets import memory_folder
from gusset.errors import HostError, ModelFailed
from gusset.runtime.declared_secrets import Values, names_to_read, read_secrets
from gusset.runtime.hit_reporter import HitReporter
from gusset.runtime.listener import listen, url_of
from gusset.runtime.secret_watcher import SecretWatcher, acknowledge
from gusset.runtime.supervision import (
    Announcer,
    RestartBackoff,
    SecretIntake,
    ServingOptions,
    StopSignals,
    prepare_process,
)
from gusset.runtime.tls import ServerTls
from gusset.secrets.masking import Masker
from gusset.secrets.sources.source import SecretSource, reading_once
from gusset.weights.fetching import FetchOptions

log = logging.getLogger("gusset")

STOP_SECONDS = 10  # for a container to end on SIGTERM

# The deployment and the source of its secrets; closed when serving ends.
PreparedImage = AbstractContextManager[tuple[ImageDeployment, SecretSource]]


def serve_image(
    prepare: Callable[[], PreparedImage],
    options: ServingOptions,
    *,
    docker_host: str | None,
    host_network: bool = False,
    gpus: int | None = None,
) -> int:
    """Serve a custom image with the secrets of its source until SIGTERM or SIGINT; then return 0.

    Call it on the main thread. `prepare` returns the deployment and the source.
    `host_network` puts the container on this machine's network. `gpus` is the
    number of GPUs that it gets (-1: all).

    Raises:
        HostError: there is no engine, no such image or no folder in memory, or the address cannot be used.
        UsageError: the files of `options.tls` cannot be used.
        SecretsMissing, Denied, Unreachable: see `read_secrets`. SecretsMissing also if the start_command
            reads a secret that is missing.
        GussetError: a download failed; see `gusset.weights.fetcher`.
        ModelFailed: the container did not become ready; the message has its last lines.
    """
    intake = SecretIntake()
    prepare_process(debuggable=options.debuggable, mask=intake.mask_log)
    tls = ServerTls.open(options.tls) if options.tls else None
    with listen(options.host, options.port) as listener, contextlib.ExitStack() as stack:
        deployment, source = stack.enter_context(prepare())
        if deployment.is_grpc:
            grpc_health.check_library()
            if tls is not None:
                tls.offer_http2()
        values = read_secrets(deployment, source, options.allow_missing)
        deployment.check_command([name for name in deployment.declared if name in values])
        with reading_once(source) as once:
            login = deployment.login.read(once, options.allow_missing) if deployment.login else None
            if host_network:
                _check_port_is_free(deployment.port, own_port=listener.getsockname()[1])
            engine, reaper = stack.enter_context(_open_engine(docker_host, host_network=host_network))
            intake.accept(values)
            stack.callback(HitReporter.start(intake.masker.hits, source).stop)
            fetch_options = FetchOptions(
                masker=intake.masker, errors=sys.stderr.fileno(), debuggable=options.debuggable
            )
            folders = fetch_folders(
                engine, deployment, values, fetch_options, cache=options.cache / "weights"
            )
            build_values = _read_build_values(deployment, once, options.cache)
            image = _prepare_image(engine, deployment, login, build_values, intake.masker, reaper.notify)
        container_options = ContainerOptions(
            user=_find_user(deployment, engine, image),
            outputs=(options.output_fd, sys.stderr.fileno()),
            host_network=host_network,
            gpus=gpus,
            debuggable=options.debuggable,
            folders=folders,
        )
        starter = ContainerStarter(deployment, engine, image, intake, options=container_options)

        def deliver(values: Values) -> None:
            starter.deliver(values)
            acknowledge(source, values)

        deliver(values)
        watcher = SecretWatcher(source, deliver)
        watcher.start(names_to_read(deployment), values)
        stack.callback(watcher.stop)
        supervisor = ImageSupervisor(deployment, starter, listener, options, intake=intake, tls=tls)
        asyncio.run(supervisor.run())
        return 0


@contextlib.contextmanager
def _open_engine(docker_host: str | None, *, host_network: bool) -> Iterator[tuple[Engine, Reaper]]:
    """The engine, and the reaper that removes what this process leaves there if it is killed.

    What killed processes have left is removed.

    Raises:
        HostError: there is no engine, or it has no access to this machine's network if that is wanted.
    """
    with (
        contextlib.closing(Reaper.start(run_id())) as reaper,
        contextlib.closing(Engine.find(docker_host, reaper.notify)) as engine,
    ):
        try:
            if host_network and not engine.is_on_our_network:
                raise HostError(
                    "with --network host the container would be on its engine's network, "
                    "not on this machine's",
                    hint="leave --network out",
                )
            leftovers.remove_orphans(engine.api)
            memory_folder.remove_all(run_has_ended)
            yield engine, reaper
        finally:
            _finish(engine, reaper)


def _read_build_values(deployment: ImageDeployment, source: SecretSource, cache: Path) -> BuildValues:
    """The values of the secrets that the build of the image reads."""
    if not deployment.build_secrets.secrets:
        return BuildValues()
    return BuildValues(values=deployment.build_secrets.read(source), key=load_key(cache))


def _finish(engine: Engine, reaper: Reaper) -> None:
    """Let the reaper end at once if nothing is left to remove."""
    with contextlib.suppress(ModelFailed, HostError):
        if not leftovers.remove_own(engine.api):
            reaper.notify("done")


def _check_port_is_free(port: int, *, own_port: int) -> None:
    """Raise HostError if the container cannot listen on this port of this machine."""
    with socket.socket() as sock:
        is_used = sock.connect_ex(("127.0.0.1", port)) == 0  # that server would get the requests
    if is_used or port in (8080, own_port):
        raise HostError(
            f"with --network host the container's port {port} clashes with this machine's",
            hint="set docker_server.server_port to another port (not 8080, not gusset's own, and none "
            "that another server uses), or leave --network out",
        )


def _prepare_image(
    engine: Engine,
    deployment: ImageDeployment,
    credentials: Credentials | None,
    given: BuildValues,
    masker: Masker,
    notify: Notify,
) -> Image:
    """The deployment's image, pulled if necessary; with a recipe, the image that is built from it."""
    masker.learn(credentials.parts if credentials else ())
    try:
        image = engine.images.get(deployment.image, log.info, credentials)
    except HostError as error:  # a registry's error message may quote the credentials
        raise HostError(masker.mask_text(error.message), hint=error.hint) from None
    if deployment.recipe.is_empty:
        return image
    log.info("Building the image of %s.", deployment.folder)
    built = build(engine, deployment.recipe.plan(image.user), given, masker=masker, notify=notify)
    engine.images.tag(built.id, local_name(deployment.folder))
    return engine.images.get(built.id, log.info)


def _find_user(deployment: ImageDeployment, engine: Engine, image: Image) -> tuple[int, int]:
    """The user and group id that the container runs as; they own its secret files."""
    passwd, group = engine.images.files(image, "/etc/passwd", "/etc/group")
    user_id = deployment.user_id
    if user_id is not None and passwd and f":{user_id}:" not in passwd.decode("utf-8", "replace"):
        log.warning(
            "The image's /etc/passwd has no user %d: the server has no user name and no home folder.", user_id
        )
    return user_ids(image.user if user_id is None else str(user_id), passwd, group)


class ImageSupervisor:
    """Keeps one container of an image running until a signal stops it. For one event loop."""

    def __init__(
        self,
        deployment: ImageDeployment,
        starter: ContainerStarter,
        listener: socket.socket,
        options: ServingOptions,
        *,
        intake: SecretIntake,
        tls: ServerTls | None,
    ) -> None:
        """`intake` is the starter's. `tls` are the loaded files of `options.tls`."""
        self._deployment = deployment
        self._starter = starter
        self._listener = listener
        self._browser_rules = options.browser_rules
        self._intake = intake
        self._announcer = Announcer(url_of(listener, secure=tls is not None), options.announce)
        self._drain_seconds = options.drain_seconds
        self._tls = tls
        self._signals = StopSignals(quiet=options.quiet_stop)
        self._unready: str | None = "It is starting."  # why requests get 503
        self._was_ready = False  # of the current container
        self._exposure: asyncio.Task[None] | None = None  # held while it runs

    async def run(self) -> None:
        """Serve until stopped.

        Raises:
            ModelFailed, HostError: the first container did not become ready, or at a stop, what the last one
                used could not be released. A container that the engine does not remove is left to the reaper.
        """
        self._signals.install()
        deployment = self._deployment
        routes = Routes(deployment.predict, deployment.readiness, deployment.liveness)
        proxy = Proxy(
            self._connect,
            routes,
            ready=lambda: self._unready,
            caller_auth=self._starter.caller_auth,
            browser_rules=self._browser_rules,
            hits=lambda: self._intake.masker.hits.total,
            is_grpc=deployment.is_grpc,
        )
        await proxy.start(self._listener.dup(), tls=self._tls)
        self._listener.close()
        running = asyncio.create_task(self._keep_running())
        stop_now = asyncio.create_task(self._signals.stop_now.wait())
        drain = asyncio.create_task(self._signals.drain.wait())
        await asyncio.wait((running, drain), return_when=asyncio.FIRST_COMPLETED)
        if self._signals.drain.is_set():
            drained = asyncio.create_task(proxy.drain(self._drain_seconds))
            await asyncio.wait((drained, stop_now, running), return_when=asyncio.FIRST_COMPLETED)
        else:
            await proxy.drain(0)
        running.cancel()  # stops and removes the container before it ends
        await asyncio.wait((running, stop_now), return_when=asyncio.FIRST_COMPLETED)
        if not running.done() and self._starter.running is not None:
            await asyncio.to_thread(self._starter.running.container.kill)
        with contextlib.suppress(asyncio.CancelledError):
            await running

    async def _connect(self) -> socket.socket:
        running = self._starter.running
        if running is None or running.network is None:
            raise ConnectionRefusedError
        return await running.network.connect()

    async def _keep_running(self) -> None:
        """Run one container after another, with backoff.

        Raises:
            ModelFailed, HostError: the first one did not become ready, or at a stop, what the last one used
                could not be released.

        An unexpected exception is raised before the first one is ready, and at a stop; else it is
        logged: what was missing, such as memory, may come back.
        """
        backoff = RestartBackoff()
        while True:
            started_at = time.monotonic()
            try:
                await self._run_container()
            except Exception:
                task = asyncio.current_task()
                is_stopping = task is not None and task.cancelling() > 0  # the removal has failed then
                if is_stopping or not self._announcer.is_done:
                    raise
                with errors_logged(log, "The container is restarted", self._intake.mask_log):
                    raise
            backoff.note_end(started_at=started_at, was_ready=self._was_ready)
            await asyncio.sleep(backoff.next_delay())

    async def _run_container(self) -> None:
        """Run one container, from its start to its removal.

        Raises:
            ModelFailed: it ended, or its health failed.
            HostError: the engine does not respond.
        """
        self._unready, self._was_ready = "It is starting.", False
        running = await self._start()
        monitor = HealthMonitor(
            self._deployment, self._connect, set_unready=self._set_unready, last_lines=running.last_lines
        )
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        watching = asyncio.create_task(monitor.watch(self._on_ready))
        try:
            _watch_end(running, ended)
            await asyncio.wait((ended, watching), return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
            what = "ended" if self._was_ready else "ended before it was ready"
            raise ModelFailed(f"the container {what}, with {await ended}{running.last_lines()}")
        finally:
            watching.cancel()
            removing = asyncio.create_task(self._remove(running, ended))
            try:
                await asyncio.shield(removing)
            except asyncio.CancelledError:  # by a stop, which must not cut this short
                with errors_logged(log, "The container could not be removed", self._intake.mask_log):
                    await removing
                raise

    async def _remove(self, running: RunningContainer, ended: asyncio.Future[str]) -> None:
        """Stop a container, and remove it with its values, whatever an earlier step raises."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(asyncio.to_thread, running.close)
            stack.callback(self._set_unready, "It has ended and will be restarted.")
            stack.push_async_callback(asyncio.to_thread, self._starter.release)
            self._unready = "It is stopping."
            if not ended.done():
                await asyncio.to_thread(running.container.stop, STOP_SECONDS)
                await asyncio.wait((ended,), timeout=PROBE_SECONDS)

    def _set_unready(self, reason: str | None) -> None:
        self._unready = reason

    def _on_ready(self) -> None:
        self._was_ready = True
        if self._announcer.is_done:
            log.info("The container is ready again.")
        else:
            self._announcer.announce()
            self._exposure = asyncio.create_task(asyncio.to_thread(self._starter.warn_if_exposed))

    async def _start(self) -> RunningContainer:
        """Start a container. If this is cancelled, the container is removed first."""
        starting = asyncio.create_task(asyncio.to_thread(self._starter.start))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            with (
                errors_logged(log, "The container did not start before the stop", self._intake.mask_log),
                contextlib.suppress(ModelFailed, HostError),  # it did not start, and serving ends anyway
            ):
                running = await starting
                await asyncio.to_thread(running.close)
            raise


def _watch_end(running: RunningContainer, ended: asyncio.Future[str]) -> None:
    """Have `ended` get how the container ended. A daemon thread waits for it, because an engine may hang."""
    loop = asyncio.get_running_loop()

    def set_result(how: str) -> None:
        if not ended.done():
            ended.set_result(how)

    def wait() -> None:
        how = running.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(set_result, how)

    threading.Thread(target=wait, name="gusset-wait", daemon=True).start()
