"""The manager on SQLite and PostgreSQL beside etcd, on the same disk: python bench/manager.py [seconds] [DATABASE ...]

wrk loads all of them over HTTP/1.1, etcd by its JSON gateway. Needs `wrk` and `etcd` (make system-deps).
Processor time is that of the server, with a database's server beside it.
"""

from __future__ import annotations

import base64
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from servers import DATABASES, Server, etcd, manager_on, scratch

from vault import bare

ROUNDS = 11
LUA = str(Path(__file__).parent / "load.lua")
VALUE = "v" * 40


@dataclass(frozen=True, kw_only=True)
class Load:
    """One request, sent again and again. `against` names the load of etcd that it is compared with."""

    server: Server
    url: str
    method: str = "GET"
    body: str = ""
    key: str = ""
    against: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """Requests per second, microseconds of processor time for each, and percentiles of their microseconds."""

    rate: float
    cpu: float
    p50: float
    p95: float
    p99: float


def run(load: Load, clients: int, seconds: int) -> Run:
    environ = os.environ | {"METHOD": load.method, "BODY": load.body, "KEY": load.key}
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--latency", "-s", LUA, load.url]
    cpu = load.server.cpu()
    done = subprocess.run(command, env=environ, capture_output=True, check=True, text=True)
    cpu = load.server.cpu() - cpu
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert not found["errors"], done.stdout
    percentiles = {name: found[name] for name in ("p50", "p95", "p99")}
    return Run(rate=found["rate"], cpu=cpu / found["requests"] * 1e6, **percentiles)


def loads_of(database: str, server: Server) -> dict[str, Load]:
    """A read, a write and a fetch at a manager."""
    with server.client() as admin:
        for name in ("read", "written"):
            admin.post("/v1/secrets", json={"name": name, "value": VALUE}).raise_for_status()
        made = admin.post("/v1/deployments", json={"name": "bench", "secrets": ["read"]}).json()
    with server.client(made["token"]) as replica:  # wrk's fetches begin no lease each, as those of a replica
        session = replica.post("/v1/deployment/secrets").raise_for_status().json()["session_key"]
    new = json.dumps({"name": "written", "value": VALUE})
    secrets, fetch = f"{server.address}/v1/secrets", f"{server.address}/v1/deployment/secrets"
    token = f"{made['token']}\r\nGusset-Session: {session}"
    common = {"server": server, "method": "POST"}
    return {
        f"durable write, {database}": Load(
            url=secrets, body=new, key=server.key, against="etcd put", **common
        ),
        f"audited fetch, {database}": Load(url=fetch, body="{}", key=token, against="etcd put", **common),
        f"metadata read, {database}": Load(
            url=f"{secrets}/read", key=server.key, against="etcd get", server=server
        ),
    }


def loads_of_etcd(server: Server) -> dict[str, Load]:
    key, value = (base64.b64encode(text.encode()).decode() for text in ("written", VALUE))
    put, get = json.dumps({"key": key, "value": value}), json.dumps({"key": key})
    kv = f"{server.address}/v3/kv"
    return {
        "etcd put": Load(server=server, url=f"{kv}/put", method="POST", body=put, against="etcd put"),
        "etcd get": Load(server=server, url=f"{kv}/range", method="POST", body=get, against="etcd get"),
    }


def main(seconds: int, databases: Sequence[str]) -> None:
    with scratch() as folder, ExitStack() as stack:
        loads = loads_of_etcd(stack.enter_context(etcd(folder / "etcd")))
        for database in databases:
            loads |= loads_of(database, stack.enter_context(manager_on(database, folder)))
        measure(loads, folder, seconds)


def measure(loads: dict[str, Load], folder: Path, seconds: int) -> None:
    commits: list[float] = []
    print("\n### The manager beside etcd\n")
    print("| what | clients | median per second | × etcd | CPU µs each | p50 ms | p95 ms | p99 ms |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for clients in (1, 32):
        runs: dict[str, list[Run]] = {name: [] for name in loads}
        for number in range(ROUNDS):  # in turns, so that a slow minute of the machine is everybody's
            for name, load in loads.items():
                runs[name].append(run(load, clients, seconds))
            commits.append(bare(folder / f"bare-{clients}-{number}.db"))
        for name, load in loads.items():
            print(row(name, clients, runs[name], runs[load.against]), flush=True)
    print(f"| bare SQLite commits, one after the other | | {statistics.median(commits):,.0f} | | | | | |")


def row(name: str, clients: int, runs: list[Run], against: list[Run]) -> str:
    """A row of the table: medians, and the median of the ratios within rounds."""
    ratio = statistics.median(a.rate / b.rate for a, b in zip(runs, against, strict=True))
    rate, cpu = (statistics.median(getattr(each, name) for each in runs) for name in ("rate", "cpu"))
    times = [statistics.median(getattr(each, name) for each in runs) / 1000 for name in ("p50", "p95", "p99")]
    cells = " | ".join(f"{milliseconds:.2f}" for milliseconds in times)
    return f"| {name} | {clients} | {rate:,.0f} | {ratio:.2f} | {cpu:.0f} | {cells} |"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2, sys.argv[2:] or list(DATABASES))
