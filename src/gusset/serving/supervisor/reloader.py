"""Serves the folder anew whenever it changes, for `--reload`. For one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from gusset.bugs import errors_logged
from gusset.errors import ConfigInvalid
from gusset.runtime.declared_secrets import names_to_read
from gusset.serving.deployment import ModelDeployment
from gusset.serving.supervisor.downloads import Downloads
from gusset.serving.supervisor.secret_distributor import SecretDistributor
from gusset.serving.supervisor.worker_slot import WorkerSlots

log = logging.getLogger("gusset")


class Reloader:
    """Replaces the replicas when the model's folder changes.

    A change during a reload cancels it and begins another: what the earlier
    change brought may never become ready.
    """

    def __init__(
        self,
        slots: WorkerSlots,
        secrets: SecretDistributor,
        downloads: Downloads,
        read_deployment: Callable[[], ModelDeployment],
    ) -> None:
        """`read_deployment` reads the folder; it blocks."""
        self._slots = slots
        self._secrets = secrets
        self._downloads = downloads
        self._read_deployment = read_deployment
        self._loading: ModelDeployment | None = None  # that the current reload has read

    async def run(self) -> None:
        """Watch the folder, until cancelled.

        Raises:
            HostError: it cannot be watched.
        """
        # Imported here: only --reload needs the library that it uses.
        from gusset.serving.supervisor.reload_watcher import changes

        reload: asyncio.Task[None] | None = None
        try:
            async for file in changes(self._slots.deployment.folder, self._is_own_change):
                log.info("Serving the folder again: %r has changed.", file)
                await _cancel(reload)
                reload = asyncio.create_task(self._try_reload())
        finally:
            await _cancel(reload)

    def _is_own_change(self, path: Path) -> bool:
        """Whether gusset itself has put what is at the path, or in the folder at the path."""
        deployments = (self._slots.deployment, self._loading)
        made = [file for each in deployments if each is not None for file in _made_by_gusset(each)]
        return any(file.is_relative_to(path) for file in made)

    async def _try_reload(self) -> None:
        problem = "The change is not served; the previous model stays in use"
        mask = self._slots.masker.mask_text
        with errors_logged(log, problem, mask):
            try:
                await self._reload()
            except ConfigInvalid as error:
                log.error("%s: %s", problem, mask(_with_problems(error)))  # noqa: TRY400

    async def _reload(self) -> None:
        """Replace the replicas one by one, each when its successor is ready.

        Raises:
            GussetError: the folder cannot be served as it is now; the replicas stay.
        """
        self._loading = deployment = await _in_daemon_thread(self._read_deployment)
        if names_to_read(deployment) != names_to_read(self._slots.deployment):
            self._secrets.begin_reload(await asyncio.to_thread(self._secrets.read, deployment))
        try:
            if deployment.downloads != self._slots.deployment.downloads:
                await self._downloads.fetch(deployment)
            for slot in self._slots.slots:
                await self._slots.replace(slot, deployment)
        finally:
            self._secrets.end_reload()


def _made_by_gusset(deployment: ModelDeployment) -> Iterator[Path]:
    """The files of external data, and the data folder, which workers create; one with files is a person's."""
    data_dir = deployment.data_dir or deployment.folder / "data"
    yield from (data_dir / each.data_file for each in deployment.downloads if each.data_file is not None)
    with contextlib.suppress(OSError):  # one that cannot be read is a person's, too
        if data_dir.is_dir() and not any(data_dir.iterdir()):
            yield data_dir


def _with_problems(error: ConfigInvalid) -> str:
    """The error's message, and a line for each problem of the folder."""
    lines = [f"  {each.location()}: {each.message}" for each in error.problems if not each.warning]
    return "\n".join((error.message, *lines))


async def _in_daemon_thread(function: Callable[[], ModelDeployment]) -> ModelDeployment:
    """The result of a function that may install packages, for minutes. A stop does not wait for it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[ModelDeployment] = loop.create_future()

    def run() -> None:
        try:
            finish = partial(_finish, future, result=function())
        except BaseException as error:
            finish = partial(_finish, future, error=error)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(finish)

    threading.Thread(target=run, name="gusset-reread", daemon=True).start()
    return await future


def _finish(
    future: asyncio.Future[ModelDeployment],
    *,
    result: ModelDeployment | None = None,
    error: BaseException | None = None,
) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    elif result is not None:
        future.set_result(result)


async def _cancel(task: asyncio.Task[None] | None) -> None:
    """Cancel a task, and return when it has ended."""
    if task is not None:
        task.cancel()
        await asyncio.wait([task])
