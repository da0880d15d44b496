"""What idle replicas cost a manager: python bench/watchers.py [replicas] [seconds] [--leases both|renewed|none]

Each is a client of the protocol with an open stream. With a lease that it renews it has a second connection,
so a manager that may open 20,000 files has room for 9,850 of them, and for 10,000 that only have a stream
(`watchers.py 10000 --leases none`).
The processor time is the manager's own, and that of the database's server.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import uvloop
from measure import print_bare_python
from replicas import Replica, deployment_tokens
from servers import DATABASES, Server, manager_on, scratch

AT_ONCE = 32
LEASES = {"both": (False, True), "renewed": (True,), "none": (False,)}
OF_ONE_PROCESS = (
    5000  # replicas: a process may open so many files, and a manager lets an address connect so often
)


@dataclass(frozen=True)
class Idle:
    """What a manager took while its replicas did nothing but stay."""

    memory: int
    own_memory: int  # of that, what it took before there were replicas
    cores: float
    renewals: float  # a second
    events: float  # a second, all of them heartbeats


def idle(server: Server, count: int, seconds: float, *, renew: bool) -> Idle:
    """Open `count` replicas, wait until all is quiet, and measure."""
    with server.client() as admin:
        admin.post("/v1/secrets", json={"name": "watched", "value": "a value"}).raise_for_status()
        tokens = deployment_tokens(admin, count, ["watched"])
    own = server.memory()
    with ExitStack() as stack:
        clients = [
            stack.enter_context(clients_of(server.port, tokens[start : start + OF_ONE_PROCESS], start, renew))
            for start in range(0, count, OF_ONE_PROCESS)
        ]
        for each in clients:
            each.recv()
        time.sleep(10)
        counts = _counts(clients)
        began, cpu = time.monotonic(), server.cpu()
        time.sleep(seconds)
        taken, used = time.monotonic() - began, server.cpu() - cpu
        renewals, events = (after - before for after, before in zip(_counts(clients), counts, strict=True))
    return Idle(server.memory(), own, used / taken, renewals / taken, events / taken)


@contextmanager
def clients_of(port: int, tokens: list[str], number: int, renew: bool) -> Iterator[Connection]:
    """A process with the replicas of these tokens. It sends once they are open, and then `_counts` on request."""
    ours, theirs = multiprocessing.Pipe()
    address = f"127.0.0.{2 + number // OF_ONE_PROCESS}"
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_run_clients, args=(theirs, port, tokens, address, renew))
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.terminate()
        process.join()


def _counts(clients: list[Connection]) -> tuple[int, int]:
    for each in clients:
        each.send(None)
    found = [each.recv() for each in clients]
    return sum(renewals for renewals, _ in found), sum(events for _, events in found)


def _run_clients(parent: Connection, port: int, tokens: list[str], address: str, renew: bool) -> None:
    uvloop.run(_be_clients(parent, [Replica(port, token, address=address) for token in tokens], renew))


async def _be_clients(parent: Connection, replicas: list[Replica], renew: bool) -> None:
    at_once = asyncio.Semaphore(AT_ONCE)
    tasks: list[asyncio.Task[None]] = []

    async def open_one(replica: Replica) -> None:
        async with at_once:
            await replica.open()
        tasks.append(asyncio.create_task(replica.follow()))
        if renew:
            tasks.append(asyncio.create_task(replica.keep_lease()))
        else:
            replica.close_requests()

    await asyncio.gather(*(open_one(replica) for replica in replicas))
    parent.send(None)
    while True:
        await asyncio.to_thread(parent.recv)
        assert not any(task.done() for task in tasks)
        parent.send((sum(each.renewals for each in replicas), sum(each.events for each in replicas)))


def main(count: int, seconds: float, leases: str) -> None:
    print(f"\n### {count:,} idle replicas\n")
    print(
        "| database | leases | resident MB | of that for replicas | % of a core | renewals/s | heartbeats/s |"
    )
    print("|---|---|---:|---:|---:|---:|---:|")
    for database in DATABASES:
        for renew in LEASES[leases]:
            with scratch() as folder, manager_on(database, folder) as server:
                found = idle(server, count, seconds, renew=renew)
            print(
                f"| {database} | {'renewed' if renew else 'not renewed'} | {found.memory / 1e6:.0f} "
                f"| {(found.memory - found.own_memory) / 1e6:.0f} | {found.cores * 100:.1f} "
                f"| {found.renewals:.0f} | {found.events:.0f} |",
                flush=True,
            )
    print_bare_python()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("replicas", type=int, nargs="?", default=5000)
    parser.add_argument("seconds", type=float, nargs="?", default=30)
    parser.add_argument("--leases", choices=LEASES, default="both")
    arguments = parser.parse_args()
    main(arguments.replicas, arguments.seconds, arguments.leases)
