"""How long a rotation takes to reach the replicas, and pages with many secrets: python bench/rotation.py [rotations]

One replica uses the real source and the real mapping, up to the look-up of a model. A hundred replicas are
simulated in one process by the same requests, so that the manager is measured.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

from gusset.client.manager_client import ManagerClient
from gusset.client.manager_source import ManagerSource
from gusset.secrets.mapping import Secrets
from gusset.secrets.value import SecretValue
from manager import manager

REPLICAS = 100
MANY = 10_000


def percentiles(seconds: list[float]) -> str:
    """p50, p95 and p99 in milliseconds, as cells of a table."""
    cuts = statistics.quantiles(seconds, n=100)
    return " | ".join(f"{cuts[at] * 1000:.1f}" for at in (49, 94, 98))


def one_replica(address: str, key: str, rotations: int) -> list[float]:
    """Seconds from sending a new value until a look-up returns it, for each rotation."""
    client = ManagerClient(address, SecretValue(key.encode()))
    source = ManagerSource(client, deployment="bench-1", key=SecretValue(key.encode()))
    names, stop, arrived = ["rotated"], threading.Event(), threading.Event()
    held = {name: each.value for name, each in source.read(names).items()}
    secrets = Secrets(names, held, config_file="config.yaml")

    def follow() -> None:
        for _ in source.watch(names, stop):
            secrets.replace({name: each.value for name, each in source.read(names).items()})
            arrived.set()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    time.sleep(1)
    taken = []
    with httpx.Client(base_url=address, headers={"authorization": f"Bearer {key}"}, trust_env=False) as admin:
        for number in range(rotations):
            value = f"value number {number}"
            arrived.clear()
            began = time.perf_counter()
            admin.post("/v1/secrets", json={"name": "rotated", "value": value})
            while secrets["rotated"] != value:
                arrived.wait(1)
                arrived.clear()
            taken.append(time.perf_counter() - began)
    stop.set()
    thread.join()
    source.close()
    return taken


class Replica:
    """A stream of changes, and a connection to fetch values."""

    def __init__(self, host: str, port: int, token: str) -> None:
        self._address = (host, port)
        self._head = f"Host: {host}\r\nAuthorization: Bearer {token}\r\n"
        self.value = b""
        self.fetched = asyncio.Event()

    async def run(self) -> None:
        events, out = await asyncio.open_connection(*self._address)
        out.write(f"GET /v1/deployment/changes HTTP/1.1\r\n{self._head}\r\n".encode())
        self._reader, self._writer = await asyncio.open_connection(*self._address)
        await events.readuntil(b"\r\n\r\n")
        async for line in events:
            if b'"changed"' in line:
                await self._fetch()

    async def _fetch(self) -> None:
        self._writer.write(
            f"POST /v1/deployment/secrets HTTP/1.1\r\n{self._head}Content-Length: 2\r\n\r\n{{}}".encode()
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        data = json.loads(await self._reader.readexactly(length))
        self.value = data["secrets"]["rotated"]["version"]
        self.fetched.set()


async def many_replicas(
    address: str, key: str, token: str, rotations: int
) -> tuple[list[float], list[float]]:
    """Seconds until the first and until the last replica has the value, for each rotation."""
    host, _, port = address.removeprefix("http://").partition(":")
    replicas = [Replica(host, int(port), token) for _ in range(REPLICAS)]
    tasks = [asyncio.create_task(replica.run()) for replica in replicas]
    await asyncio.sleep(2)
    first, last = [], []
    async with httpx.AsyncClient(
        base_url=address, headers={"authorization": f"Bearer {key}"}, trust_env=False, timeout=30
    ) as admin:
        for number in range(rotations):
            for replica in replicas:
                replica.fetched.clear()
            began = time.perf_counter()
            waits = [asyncio.create_task(replica.fetched.wait()) for replica in replicas]
            await admin.post("/v1/secrets", json={"name": "rotated", "value": f"again {number}"})
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            first.append(time.perf_counter() - began)
            await asyncio.wait(waits)
            last.append(time.perf_counter() - began)
    for task in tasks:
        task.cancel()
    return first, last


def pages(address: str, key: str) -> None:
    """Print the size and the time of pages with many secrets."""
    with httpx.Client(
        base_url=address, headers={"authorization": f"Bearer {key}"}, trust_env=False, timeout=60
    ) as admin:
        for start in range(0, MANY, 1000):
            batch = [{"name": f"secret_{number}", "value": "v" * 20} for number in range(start, start + 1000)]
            admin.post("/v1/secrets:batch", json={"secrets": batch}).raise_for_status()
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as person:
        form = person.get("/signin").text
        csrf = form.partition('name="csrf" value="')[2].partition('"')[0]
        data = {"email": "a@example.com", "password": "correct horse battery staple", "csrf": csrf}
        person.post("/signin", data=data)
        print(f"\n### Pages at {MANY:,} secrets\n")
        print("| what | bytes | median ms |\n|---|---:|---:|")
        for what, path in (
            ("the page of secrets", "/settings/secrets"),
            ("its page 100", "/settings/secrets?page=100"),
            ("filtered", "/settings/secrets?q=999"),
            ("the audit log", "/settings/audit"),
        ):
            times = []
            for _ in range(30):
                began = time.perf_counter()
                response = person.get(path)
                times.append(time.perf_counter() - began)
            assert response.status_code == 200, response.status_code
            print(f"| {what} | {len(response.content):,} | {statistics.median(times) * 1000:.1f} |")
        page = person.get("/settings/secrets").text
        static = {part.partition('"')[0] for part in page.split('="/static/')[1:]}
        sizes = [len(gzip.compress(person.get(f"/static/{name}").content)) for name in static]
        print(f"| scripts, styles and the icon, compressed, once | {sum(sizes):,} | |")


def main(rotations: int) -> None:
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd()) as folder,
        manager(Path(folder) / "gusset") as (address, key),
    ):
        with httpx.Client(
            base_url=address, headers={"authorization": f"Bearer {key}"}, trust_env=False
        ) as admin:
            admin.post("/v1/secrets", json={"name": "rotated", "value": "first"})
            made = admin.post("/v1/deployments", json={"name": "bench", "secrets": ["rotated"]}).json()
        print(f"\n### Rotation, {rotations:,} times\n")
        print("| to | p50 ms | p95 ms | p99 ms |\n|---|---:|---:|---:|")
        print(
            f"| the look-up of one replica | {percentiles(one_replica(address, key, rotations))} |",
            flush=True,
        )
        first, last = asyncio.run(many_replicas(address, key, made["token"], rotations))
        print(f"| the first of {REPLICAS} replicas | {percentiles(first)} |")
        print(f"| the last of {REPLICAS} replicas | {percentiles(last)} |", flush=True)
        pages(address, key)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
