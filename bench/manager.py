"""The manager beside etcd, on the same disk in the same run: python bench/manager.py [seconds]

wrk loads both over HTTP/1.1, etcd by its JSON gateway. Needs `wrk` and `etcd` (make system-deps).
"""

from __future__ import annotations

import base64
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from vault import bare

ROUNDS = 3
LUA = str(Path(__file__).parent / "load.lua")
ETCD = 23790


@contextmanager
def manager(home: Path) -> Iterator[tuple[str, str]]:
    """A running manager: its address, and an administrator's key."""
    environ = os.environ | {"GUSSET_HOME": str(home), "GUSSET_SETTINGS": str(home / "none")}
    gusset = [sys.executable, "-m", "gusset", "manager"]
    made = subprocess.run(
        [*gusset, "init", "--email", "a@example.com", "--output", "json"],
        input=b"correct horse battery staple",
        env=environ,
        capture_output=True,
        check=True,
    )
    process = subprocess.Popen(
        [*gusset, "--port", "0", "--key-rate", "0", "--output", "json"], env=environ, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    address = json.loads(process.stdout.readline())["address"]
    try:
        yield address, json.loads(made.stdout)["api_key"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


@contextmanager
def etcd(folder: Path) -> Iterator[str]:
    """A running etcd of one member, as it is by default: each put is on disk before it is acknowledged."""
    client, peer = f"http://127.0.0.1:{ETCD}", f"http://127.0.0.1:{ETCD + 1}"
    command = [
        "etcd",
        "--data-dir",
        str(folder),
        "--listen-client-urls",
        client,
        "--advertise-client-urls",
        client,
    ]
    command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
    command += ["--initial-cluster", f"default={peer}", "--log-level", "error"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                httpx.get(f"{client}/health", trust_env=False)
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        yield client
    finally:
        process.terminate()
        process.wait()


def load(
    url: str, clients: int, seconds: int, *, method: str = "GET", body: str = "", key: str = ""
) -> dict[str, float]:
    """Requests per second, and the microseconds that they took."""
    environ = os.environ | {"METHOD": method, "BODY": body, "KEY": key}
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--latency", "-s", LUA, url]
    done = subprocess.run(command, env=environ, capture_output=True, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    assert not found["errors"], done.stdout
    return found


def main(seconds: int) -> None:
    # /tmp may be in memory, where a flush to disk is free.
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd()) as folder,
        manager(Path(folder) / "gusset") as (address, key),
        etcd(Path(folder) / "etcd") as beside,
    ):
        measure(address, key, beside, Path(folder), seconds)


def measure(address: str, key: str, beside: str, folder: Path, seconds: int) -> None:
    value = "v" * 40
    with httpx.Client(base_url=address, headers={"authorization": f"Bearer {key}"}, trust_env=False) as admin:
        for name in ("read", "written"):
            admin.post("/v1/secrets", json={"name": name, "value": value})
        made = admin.post("/v1/deployments", json={"name": "bench", "secrets": ["read"]}).json()
    b64 = base64.b64encode
    put = json.dumps({"key": b64(b"written").decode(), "value": b64(value.encode()).decode()})
    get = json.dumps({"key": b64(b"written").decode()})
    new = json.dumps({"name": "written", "value": value})
    loads = {
        "metadata read": {"url": f"{address}/v1/secrets/read", "key": key},
        "etcd get": {"url": f"{beside}/v3/kv/range", "method": "POST", "body": get},
        "durable write": {"url": f"{address}/v1/secrets", "method": "POST", "body": new, "key": key},
        "etcd put": {"url": f"{beside}/v3/kv/put", "method": "POST", "body": put},
        "audited fetch": {
            "url": f"{address}/v1/deployment/secrets",
            "method": "POST",
            "body": "{}",
            "key": made["token"],
        },
    }
    commits: list[float] = []
    print("\n### The manager beside etcd\n")
    print("| what | clients | median per second | p50 ms | p95 ms | p99 ms |")
    print("|---|---:|---:|---:|---:|---:|")
    for clients in (1, 32):
        found: dict[str, list[dict[str, float]]] = {name: [] for name in loads}
        for number in range(ROUNDS):  # in turns, so that a slow minute of the machine is everybody's
            for name, options in loads.items():
                found[name].append(load(clients=clients, seconds=seconds, **options))  # type: ignore[arg-type]
            commits.append(bare(folder / f"bare-{clients}-{number}.db"))
        for name, runs in found.items():
            rate, *times = (statistics.median(run[k] for run in runs) for k in ("rate", "p50", "p95", "p99"))
            cells = " | ".join(f"{microseconds / 1000:.2f}" for microseconds in times)
            print(f"| {name} | {clients} | {rate:,.0f} | {cells} |", flush=True)
    print(f"| bare SQLite commits, one after the other | | {statistics.median(commits):,.0f} | | | |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
