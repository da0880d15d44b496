"""Where replicas belong, and what each of them has let the supervisor know. For one event loop."""

from __future__ import annotations

import asyncio
import time

from gusset.serving.protocol import Failed
from gusset.serving.supervisor.replica import Replica, ReplicaState


class Life:
    """What one worker has let us know, from its start to its end."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.state = ReplicaState.STARTING
        self.ready = asyncio.Event()
        self.drained = asyncio.Event()
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.failure: Failed | None = None

    @property
    def was_ready(self) -> bool:
        return self.ready.is_set()

    @property
    def is_up(self) -> bool:
        return self.was_ready and not self.ended.done()

    def end(self, status: int) -> None:
        if not self.ended.done():
            self.ended.set_result(status)

    async def wait(self) -> int:
        """Its exit status, once it has one."""
        return await asyncio.shield(self.ended)


class Place:
    """One of the `--workers`: the replica that is there, and its life."""

    replica: Replica
    life: Life

    def __init__(self, name: str) -> None:
        self.name = name

    def take(self, replica: Replica, life: Life) -> None:
        self.replica, self.life = replica, life
