"""What idle replicas cost a manager: python bench/watchers.py [replicas] [seconds]

Each is a client of the protocol with an open stream and a lease that it renews.
The processor time is the manager's own, and that of the database's server.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass

import uvloop
from replicas import Replica, deployment_tokens
from servers import DATABASES, Server, manager_on, scratch

AT_ONCE = 64


@dataclass(frozen=True)
class Idle:
    """What a manager took while its replicas did nothing but stay."""

    memory: int
    cores: float
    renewals: float  # a second
    events: float  # a second, all of them heartbeats


async def idle(server: Server, count: int, seconds: float, *, renew: bool) -> Idle:
    """Open `count` replicas, wait until all is quiet, and measure."""
    with server.client() as admin:
        name = f"watched_{renew}".lower()
        admin.post("/v1/secrets", json={"name": name, "value": "a value"}).raise_for_status()
        tokens = await asyncio.to_thread(deployment_tokens, admin, count, [name])
    replicas = [Replica(server.port, token) for token in tokens]
    at_once = asyncio.Semaphore(AT_ONCE)

    async def open_one(replica: Replica) -> None:
        async with at_once:
            await replica.open()

    await asyncio.gather(*(open_one(replica) for replica in replicas))
    tasks = [asyncio.create_task(replica.follow()) for replica in replicas]
    if renew:
        tasks += [asyncio.create_task(replica.keep_lease()) for replica in replicas]
    await asyncio.sleep(10)
    counts = _counts(replicas)
    began, cpu = time.monotonic(), server.cpu()
    await asyncio.sleep(seconds)
    taken, used = time.monotonic() - began, server.cpu() - cpu
    renewals, events = (after - before for after, before in zip(_counts(replicas), counts, strict=True))
    for task in tasks:
        assert not task.done(), task.exception()
        task.cancel()
    return Idle(server.memory(), used / taken, renewals / taken, events / taken)


def _counts(replicas: list[Replica]) -> tuple[int, int]:
    return sum(each.renewals for each in replicas), sum(each.events for each in replicas)


def main(count: int, seconds: float) -> None:
    print(f"\n### {count:,} idle replicas\n")
    print("| database | leases | resident MB | % of a core | renewals/s | heartbeats/s |")
    print("|---|---|---:|---:|---:|---:|")
    for database in DATABASES:
        for renew in (False, True):
            with scratch() as folder, manager_on(database, folder) as server:
                found = uvloop.run(idle(server, count, seconds, renew=renew))
            leases = "renewed" if renew else "not renewed"
            print(
                f"| {database} | {leases} | {found.memory / 1e6:.0f} | {found.cores * 100:.1f} "
                f"| {found.renewals:.0f} | {found.events:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(int(arguments[0]) if arguments else 5000, float(arguments[1]) if len(arguments) > 1 else 30)
