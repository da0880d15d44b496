"""Requests a second of one class on Ray Serve, with gusset and without, and on gusset alone: python bench/ray_serve.py

Each has one replica, or one worker, and the figures are taken in turns, so the ratios hold on a busy machine, too. The
client keeps 1 or 32 connections busy, on the same machine. Takes less than two minutes; needs gusset[ray].
"""

# Not named `ray.py`: Python looks for `import ray` in the folder of the script first.

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import uvloop
from measure import interleave, table
from starlette.requests import Request

import ray
from gusset.ray import application
from ray import serve
from serving import serving

ROUNDS = 5
SECONDS = 2.0
CONNECTIONS = (1, 32)
BODY = json.dumps({"text": "The capital of France is [MASK]."}).encode()
MODEL = """\
class Model:
    def __init__(self, **kwargs):
        self.secrets = kwargs["secrets"]

    def predict(self, inputs):
        return {"length": len(self.secrets["token"]), "inputs": inputs}
"""
ACTOR = {"num_cpus": 0.5}
AT_ONCE = 64  # requests in one replica, for both


class Plain:
    """The same class as people write it for Ray Serve."""

    def __init__(self) -> None:
        self.token = "a-token-of-some-length"

    async def __call__(self, request: Request) -> dict[str, Any]:
        inputs = await request.json()
        return {"length": len(self.token), "inputs": inputs}


@contextmanager
def cluster(folder: Path, secrets: Path) -> Iterator[dict[str, tuple[int, str]]]:
    """Name -> port and path of both applications."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=80 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        serve.start(http_options={"port": port})
        options = {"max_ongoing_requests": AT_ONCE, "ray_actor_options": ACTOR}
        targets = {
            "gusset": application(folder, secrets_dir=str(secrets), **options),
            "plain": serve.deployment(**options)(Plain).bind(),
        }
        serve.run_many(
            [serve.RunTarget(each, name=name, route_prefix=f"/{name}") for name, each in targets.items()]
        )
        yield {"Ray Serve with gusset": (port, "/gusset/predict"), "plain Ray Serve": (port, "/plain")}
    finally:
        serve.shutdown()
        ray.shutdown()


async def keep_busy(port: int, path: str, ends_at: float) -> int:
    """Send one request after the other on one connection; how many were complete."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    request = head.encode() + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
    done = 0
    while time.perf_counter() < ends_at:
        writer.write(request)
        head_of_response = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head_of_response.startswith(b"http/1.1 200"), head_of_response
        if length := head_of_response.partition(b"content-length: ")[2].partition(b"\r\n")[0]:
            await reader.readexactly(int(length))
        else:  # Ray sends what a method returns in chunks
            await reader.readuntil(b"0\r\n\r\n")
        done += 1
    writer.close()
    return done


def requests_a_second(port: int, path: str, connections: int) -> float:
    async def run() -> float:
        began = time.perf_counter()
        counts = await asyncio.gather(*(keep_busy(port, path, began + SECONDS) for _ in range(connections)))
        return sum(counts) / (time.perf_counter() - began)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def replica_cpu(application: str) -> float:
    """Seconds of processor time of the application's replica."""
    title = f"ray::ServeReplica:{application}:"
    commands = (
        (each, each.info["cmdline"]) for each in psutil.process_iter(["cmdline"])
    )  # None: it has ended
    found = [each for each, command in commands if command and command[0].startswith(title)]
    return sum(sum(each.cpu_times()[:2]) for each in found)


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench-ray"))
    model, secrets = folder / "bench", folder / "secrets"
    (model / "model").mkdir(parents=True)
    secrets.mkdir()
    (secrets / "token").write_text("a-token-of-some-length")
    (model / "config.yaml").write_text("model_name: bench\nsecrets:\n  token: null\n")
    (model / "model" / "model.py").write_text(MODEL)
    environ = os.environ | {"GUSSET_HOME": str(folder / "home"), "GUSSET_SETTINGS": str(folder / "none")}
    arguments = ("--secrets-dir", str(secrets))
    with cluster(model, secrets) as applications, serving(model, environ, *arguments) as (alone, _, _):
        servers = {**applications, "gusset alone": (alone, "/predict")}
        for port, path in servers.values():
            requests_a_second(port, path, 4)  # warm
        for connections in CONNECTIONS:
            parts: dict[str, Callable[[], float]] = {
                name: partial(requests_a_second, port, path, connections)
                for name, (port, path) in servers.items()
            }
            title = f"Requests a second, {connections} connection{'s' if connections > 1 else ''}"
            table(title, "requests/s", interleave(parts, ROUNDS), against="plain Ray Serve")
        print("\nProcessor time of the replica for one request:", end="")
        for name, (port, path) in applications.items():
            before = replica_cpu(path.split("/")[1])
            rate = requests_a_second(port, path, 8)
            used = replica_cpu(path.split("/")[1]) - before
            print(f" {used / rate / SECONDS * 1e6:,.0f} µs ({name})", end="")
        print()


if __name__ == "__main__":
    main()
