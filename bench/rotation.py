"""How long a new value takes to reach the last replica: python bench/rotation.py [rotations]

From the moment that the value is sent to the manager. Up to eight replicas are processes with gusset's
own client, and have the value when a look-up gives it; the others are clients of the protocol in one
process, and have it when its response has arrived. All report it, and renew their leases.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from pathlib import Path

import httpx
import uvloop
from replicas import Replica, deployment_tokens
from servers import DATABASES, Server, manager_on, scratch

SIZES = (1, 100, 500)
REAL = 8
NAME = "rotated"
REAL_REPLICA = str(Path(__file__).parent / "real_replica.py")
TIMEOUT = 60.0


class Arrivals:
    """When each replica had which value. Values are the numbers of rotations."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._times: dict[int, list[float]] = {}
        self._arrived = asyncio.Event()

    def add(self, number: int, at: float) -> None:
        self._times.setdefault(number, []).append(at)
        self._arrived.set()

    async def last(self, number: int) -> float:
        """When the last replica had the value."""
        async with asyncio.timeout(TIMEOUT):
            while len(self._times.get(number, ())) < self._replicas:
                self._arrived.clear()
                await self._arrived.wait()
        return max(self._times.pop(number))


async def start_real(server: Server, token: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, REAL_REPLICA, server.address, NAME]
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    process.stdin.write(f"{token}\n".encode())
    return process


async def follow_real(process: asyncio.subprocess.Process, arrivals: Arrivals) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        value, at = line.split()
        arrivals.add(int(value), float(at))


async def rotate(server: Server, size: int, rotations: int) -> list[float]:
    """Seconds from sending each value until the last of `size` replicas has it."""
    arrivals = Arrivals(size)
    with server.client() as client:
        client.post("/v1/secrets", json={"name": NAME, "value": "0"}).raise_for_status()
        first = client.get(f"/v1/secrets/{NAME}").json()["version"]
        tokens = await asyncio.to_thread(deployment_tokens, client, size, [NAME])
    real = [await start_real(server, token) for token in tokens[:REAL]]
    try:
        tasks = [asyncio.create_task(follow_real(process, arrivals)) for process in real]
        tasks += await open_replicas(server, tokens[REAL:], arrivals, first)
        await arrivals.last(0)
        await asyncio.sleep(2)  # until the real ones have opened their streams
        taken = await rotate_often(server, arrivals, rotations, pause=0.02 + size / 5000)
        for task in tasks:
            task.cancel()
        return taken
    finally:
        for process in real:
            process.kill()
            await process.wait()


async def open_replicas(
    server: Server, tokens: list[str], arrivals: Arrivals, first: int
) -> list[asyncio.Task[None]]:
    """Open clients of the protocol; `first` is the version of the value 0."""
    tasks = []
    for token in tokens:
        replica = Replica(server.port, token)
        replica.on_fetched = lambda it=replica: arrivals.add(it.versions[NAME] - first, time.monotonic())
        await replica.open()
        tasks += [asyncio.create_task(replica.follow()), asyncio.create_task(replica.keep_lease())]
    return tasks


async def rotate_often(server: Server, arrivals: Arrivals, rotations: int, *, pause: float) -> list[float]:
    """Seconds that each rotation took; after each there is a pause, in which all replicas report it."""
    taken = []
    headers = {"authorization": f"Bearer {server.key}"}
    async with httpx.AsyncClient(base_url=server.address, headers=headers, timeout=TIMEOUT) as admin:
        await admin.get("/healthz")  # the first request takes longer: it imports what it needs
        for number in range(1, rotations + 1):
            began = time.monotonic()
            sent = await admin.post("/v1/secrets", json={"name": NAME, "value": str(number)})
            sent.raise_for_status()
            taken.append(await arrivals.last(number) - began)
            await asyncio.sleep(pause)
    return taken


def main(rotations: int) -> None:
    print(f"\n### {rotations:,} rotations: until the last replica has the value\n")
    print("| database | replicas | p50 ms | p95 ms | p99 ms |\n|---|---:|---:|---:|---:|")
    for database in DATABASES:
        for size in SIZES:
            with scratch() as folder, manager_on(database, folder) as server:
                taken = uvloop.run(rotate(server, size, rotations))
            cuts = statistics.quantiles(taken, n=100)
            cells = " | ".join(f"{cuts[at] * 1000:.1f}" for at in (49, 94, 98))
            print(f"| {database} | {size} | {cells} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
