"""How soon all waiting replicas are served when their manager returns: python bench/waiting.py [replicas]

They try again with the backoff of gusset's own client, spread over its longest pause. Refused is what the manager
does not serve once it listens: each response but 200, each 503 that a replica tries again, each connection that is reset.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time

import uvloop
from replicas import Replica, deployment_tokens
from servers import DATABASES, installation, scratch

from gusset.backoff import Backoff
from gusset.client.manager_source import FIRST_RETRY, LONGEST_RETRY

AWAY = 8.0  # seconds: until all wait for the longest pause
ROUNDS = 3


class Waiting:
    """A replica that is opened again and again when it loses its manager."""

    def __init__(self, port: int, token: str) -> None:
        self._replica = Replica(port, token)
        self._failed = 0  # attempts
        self.served = asyncio.Event()

    @property
    def refused(self) -> int:
        return self._failed + self._replica.refused

    async def run(self) -> None:
        backoff = Backoff(FIRST_RETRY, LONGEST_RETRY)
        while True:
            try:
                await self._replica.open()
                self.served.set()
                backoff.reset()
                await self._replica.follow()
            except ConnectionRefusedError:
                pass  # no manager listens
            except (OSError, asyncio.IncompleteReadError, AssertionError):
                self._failed += 1
            self.served.clear()
            await asyncio.sleep(random.uniform(0, backoff.next_delay()))


async def measure(database: str, count: int) -> None:
    """Print how long it takes, several times."""
    with scratch() as folder, installation(database, folder) as installed:
        with installed.serving() as server:
            port = server.port
            with server.client() as admin:
                admin.post("/v1/secrets", json={"name": "waited_for", "value": "a value"}).raise_for_status()
                tokens = await asyncio.to_thread(deployment_tokens, admin, count, ["waited_for"])
            replicas = [Waiting(port, token) for token in tokens]
            tasks = [asyncio.create_task(replica.run()) for replica in replicas]
            await all_served(replicas)
        for _ in range(ROUNDS):
            await asyncio.sleep(AWAY)
            before = sum(each.refused for each in replicas)
            with installed.serving(port) as server:
                began, cpu = time.monotonic(), server.cpu()
                await all_served(replicas)
                taken, used = time.monotonic() - began, server.cpu() - cpu
            refused = sum(each.refused for each in replicas) - before
            print(f"| {database} | {count:,} | {taken:.1f} | {used:.1f} | {refused} |", flush=True)
        for task in tasks:
            task.cancel()


async def all_served(replicas: list[Waiting]) -> None:
    async with asyncio.timeout(60):
        for replica in replicas:
            await replica.served.wait()


def main(count: int) -> None:
    print("\n### Replicas that wait for their manager\n")
    print("| database | replicas | seconds until all are served | CPU seconds | refused |")
    print("|---|---:|---:|---:|---:|")
    for database in DATABASES:
        uvloop.run(measure(database, count))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
