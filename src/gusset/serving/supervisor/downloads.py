"""Has a process download what models need before `load`. For one event loop."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gusset.serving.deployment import ModelDeployment
from gusset.serving.protocol import Downloaded
from gusset.serving.supervisor.replica import Replica
from gusset.serving.supervisor.secret_distributor import SecretDistributor
from gusset.serving.supervisor.worker_process import WorkerOptions
from gusset.weights.download import Download, FetchRequest

if TYPE_CHECKING:
    from gusset.weights.mounts import Mounts


class Downloads:
    """What has been downloaded, and the replicas that wait for it."""

    def __init__(self, secrets: SecretDistributor, cache: Path, options: WorkerOptions) -> None:
        """`secrets` has the values to log in with. Progress goes where the workers' errors go."""
        self._secrets = secrets
        self._cache = cache
        self._options = options
        self._mounts: Mounts | None = None
        self._cache_in_use: int | None = None  # a descriptor; see `WeightsCache.hold`
        self._replicas: set[Replica] = set()
        self._finished: dict[tuple[Download, ...], Downloaded] = {}
        self.is_fetching = False

    def stop(self) -> None:
        """Let other processes change the mounts, and remove what is not used."""
        if self._mounts is not None:
            self._mounts.close()
        if self._cache_in_use is not None:
            os.close(self._cache_in_use)
            self._cache_in_use = None

    def add(self, replica: Replica) -> None:
        """Let the replica know what is downloaded, now and later."""
        self._replicas.add(replica)
        if finished := self._finished.get(replica.deployment.downloads):
            replica.process.send(finished)

    def remove(self, replica: Replica) -> None:
        """Forget a replica that has ended."""
        self._replicas.discard(replica)

    async def fetch(self, deployment: ModelDeployment) -> None:
        """Download what the deployment needs; returns at once if that was done before.

        Cancelling it ends the download; the next one continues from there.

        Raises:
            ConfigInvalid: a source does not have what the config names, or a library is missing.
            SecretsMissing, Denied, Unreachable, Conflict, HostError: a download or a mount failed.
        """
        if not deployment.downloads or deployment.downloads in self._finished:
            return
        self.is_fetching = True
        try:
            await self._fetch(deployment, deployment.downloads)
        finally:
            self.is_fetching = False

    async def _fetch(self, deployment: ModelDeployment, downloads: tuple[Download, ...]) -> None:
        # Imported here: most models download nothing.
        from gusset.weights.cache import WeightsCache
        from gusset.weights.fetching import FetchOptions, FetchProcess, fetch_environment
        from gusset.weights.mounts import Mounts

        cache = WeightsCache.open(self._cache)
        if self._cache_in_use is None:
            self._cache_in_use = await asyncio.to_thread(cache.hold)
        mounts = self._mounts = self._mounts or Mounts(cache)
        mounted = {each.mount: each for each in downloads if each.mount is not None}
        for download in mounted.values():
            mounts.check(download)
        request = FetchRequest(
            downloads=downloads,
            values=self._secrets.values_of(deployment.download_secrets),
            cache=self._cache,
            data_dir=deployment.data_dir or deployment.folder / "data",
            readable=self._options.readable_logs,
        )
        options = FetchOptions(
            masker=self._options.masker, errors=self._options.errors, debuggable=self._options.debuggable
        )
        environment = fetch_environment(deployment.environment_variables)
        process = FetchProcess.start(request, options, environment)
        try:
            await asyncio.to_thread(process.wait_for_external_data)
            self._finish(downloads, Downloaded(everything=False))
            for mount, folder in (await asyncio.to_thread(process.wait)).items():
                await asyncio.to_thread(mounts.mount, mounted[mount], folder)
        finally:
            process.kill()
        self._finish(downloads, Downloaded(everything=True))

    def _finish(self, downloads: tuple[Download, ...], finished: Downloaded) -> None:
        self._finished[downloads] = finished
        for replica in self._replicas:
            if replica.deployment.downloads == downloads:
                replica.process.send(finished)
