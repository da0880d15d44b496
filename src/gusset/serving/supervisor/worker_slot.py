"""Worker slots: start, replace and drain their replicas. For one event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from gusset.runtime.supervision import DRAIN_SECONDS
from gusset.secrets.masking import Masker
from gusset.serving.deployment import ModelDeployment
from gusset.serving.supervisor.downloads import Downloads
from gusset.serving.supervisor.replica import Replica, ReplicaState
from gusset.serving.supervisor.secret_distributor import SecretDistributor
from gusset.serving.supervisor.worker_process import WorkerOptions, WorkerProcess

log = logging.getLogger("gusset")


@dataclass(slots=True)
class WorkerSlot:
    """One of `--workers`, and the replica that fills it now."""

    name: str
    replica: Replica


class WorkerSlots:
    """All slots of a deployment: starts, replaces and ends the replicas in them."""

    def __init__(
        self,
        deployment: ModelDeployment,
        secrets: SecretDistributor,
        downloads: Downloads,
        options: WorkerOptions,
        *,
        stop_now: asyncio.Event,
        on_ready: Callable[[WorkerSlot], object],
    ) -> None:
        """`on_ready` is called whenever a slot gets a ready replica. `stop_now` cuts drains short."""
        self.deployment = deployment
        self.slots: Sequence[WorkerSlot] = ()
        self._secrets = secrets
        self._downloads = downloads
        self._options = options
        self._stop_now = stop_now
        self._on_ready = on_ready
        self._replicas: set[Replica] = set()  # also those that start or drain outside of a slot
        self._drains: set[asyncio.Task[None]] = set()

    @property
    def masker(self) -> Masker:
        return self._options.masker

    def states(self) -> Collection[ReplicaState]:
        """The states of the replicas in the slots."""
        return {slot.replica.state for slot in self.slots}

    def fill_all(self, processes: Sequence[WorkerProcess]) -> None:
        """Make a slot for each of these processes, which have no plan yet."""
        count = len(processes)
        names = ["the model"] if count == 1 else [f"replica {n} of {count}" for n in range(1, count + 1)]
        self.slots = [
            WorkerSlot(name, self._begin(process, self.deployment))
            for name, process in zip(names, processes, strict=True)
        ]

    def refill(self, slot: WorkerSlot) -> None:
        """Start a new replica in place of one that has ended.

        Raises:
            HostError: the model's Python cannot be started any more; see `WorkerProcess.start`.
        """
        self._discard(slot.replica)
        slot.replica = self._start(self.deployment)

    async def replace(self, slot: WorkerSlot, deployment: ModelDeployment) -> None:
        """Start a replica of this deployment, and put it in the slot once it is ready.

        The previous one serves until then, and is drained afterwards.

        Raises:
            ModelFailed: it did not become ready; the slot stays as it was.
            HostError: its Python cannot be started.
        """
        replica = self._start(deployment)
        try:
            is_ready = await replica.wait_ready()
        except asyncio.CancelledError:  # by a newer change, or because serving ends
            replica.process.kill()
            self._drain_soon(replica)
            raise
        if not is_ready:
            self._discard(replica)
            raise replica.start_error(await replica.wait(), self.masker)
        self.deployment = deployment
        self._secrets.adopt(deployment)
        self._drain_soon(slot.replica)
        slot.replica = replica
        self._on_ready(slot)

    async def drain(self, seconds: float) -> None:
        """Let all replicas finish their requests for so many seconds, then end them."""
        for slot in self.slots:
            slot.replica.state = ReplicaState.STOPPING
        await asyncio.gather(
            *(self._drain(slot.replica, seconds) for slot in self.slots),
            *self._drains,
        )

    def kill_all(self) -> None:
        """Kill every replica that is left, and wait for its end."""
        left = tuple(self._replicas)
        for replica in left:
            replica.process.kill()
        for replica in left:
            replica.process.join()

    def _start(self, deployment: ModelDeployment) -> Replica:
        return self._begin(WorkerProcess.start(self._options, deployment.python), deployment)

    def _begin(self, process: WorkerProcess, deployment: ModelDeployment) -> Replica:
        replica = Replica(process, deployment, self._on_replica_ready)
        self._replicas.add(replica)
        try:
            self._secrets.add(replica)
            self._downloads.add(replica)
        except BaseException:
            self._discard(replica)
            process.abandon()
            raise
        return replica

    def _on_replica_ready(self, replica: Replica) -> None:
        for slot in self.slots:
            if slot.replica is replica:
                self._on_ready(slot)

    def _drain_soon(self, replica: Replica) -> None:
        drain = asyncio.get_running_loop().create_task(self._drain(replica, DRAIN_SECONDS))
        self._drains.add(drain)
        drain.add_done_callback(self._drains.discard)

    async def _drain(self, replica: Replica, seconds: float) -> None:
        if not await replica.drain(seconds, self._stop_now):
            log.warning("Requests were still in flight after %g s and are cut off.", seconds)
        self._discard(replica)

    def _discard(self, replica: Replica) -> None:
        self._secrets.remove(replica)
        self._downloads.remove(replica)
        self._replicas.discard(replica)
