"""One class on Ray Serve, with gusset and without, and on gusset alone: python bench/ray_serve.py [rounds]

Each has one replica, or one worker. The client keeps 1 or 32 connections busy, on the same machine. Rounds are short
and in turns, and ratios are those within rounds, so they hold on a busy machine, too. The plain class is deployed
twice: the second one's ratio would be 1 if nothing else influenced the figures. Processor time says more than
requests a second where other work shares the machine. Takes two minutes; needs gusset[ray].
"""

# Not named `ray.py`: Python looks for `import ray` in the folder of the script first.

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop
from measure import table
from request_cpu import cpu_microseconds
from starlette.requests import Request

import ray
from gusset.ray import application
from ray import serve
from serving import serving

ROUNDS = 30
SECONDS = 0.4
CONNECTIONS = (1, 32)
BODY = json.dumps({"text": "The capital of France is [MASK]."}).encode()
MODEL = """\
class Model:
    def __init__(self, **kwargs):
        self.secrets = kwargs["secrets"]

    def predict(self, inputs):
        return {"length": len(self.secrets["token"]), "inputs": inputs}
"""
ACTOR = {"num_cpus": 0.3}
AT_ONCE = 64  # requests in one replica, for both


class Plain:
    """The same class as people write it for Ray Serve."""

    def __init__(self) -> None:
        self.token = "a-token-of-some-length"

    async def __call__(self, request: Request) -> dict[str, Any]:
        inputs = await request.json()
        return {"length": len(self.token), "inputs": inputs}


@dataclass(frozen=True)
class Server:
    """An application, with the processes of Ray that work for it, if any: its replica and the proxy."""

    port: int
    path: str
    processes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Figures:
    """One round: requests a second, and microseconds of processor time of each process for one of them."""

    rate: float
    cpu: list[float]


@contextmanager
def cluster(folder: Path, secrets: Path) -> Iterator[dict[str, Server]]:
    """The applications by name."""
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
            "plain": serve.deployment(**options)(Plain).bind(),
            "again": serve.deployment(**options)(Plain).bind(),
            "gusset": application(folder, secrets_dir=str(secrets), **options),
        }
        serve.run_many(
            [serve.RunTarget(each, name=name, route_prefix=f"/{name}") for name, each in targets.items()]
        )
        proxy = process("ray::ProxyActor")
        replicas = {name: process(f"ray::ServeReplica:{name}:") for name in targets}
        yield {
            "plain Ray Serve": Server(port, "/plain", (replicas["plain"], proxy)),
            "plain Ray Serve, again": Server(port, "/again", (replicas["again"], proxy)),
            "Ray Serve with gusset": Server(port, "/gusset/predict", (replicas["gusset"], proxy)),
        }
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


def process(title: str) -> int:
    """The process of Ray with this title."""
    commands = ((each.pid, each.info["cmdline"]) for each in psutil.process_iter(["cmdline"]))
    ours = {each.pid for each in psutil.Process().children(recursive=True)}
    return next(pid for pid, command in commands if pid in ours and command and command[0].startswith(title))


def measured(server: Server, connections: int) -> Figures:
    """One round."""

    async def run() -> tuple[int, float]:
        began = time.perf_counter()
        clients = (keep_busy(server.port, server.path, began + SECONDS) for _ in range(connections))
        return sum(await asyncio.gather(*clients)), time.perf_counter() - began

    before = [cpu_microseconds(pid) for pid in server.processes]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        done, seconds = runner.run(run())
    after = [cpu_microseconds(pid) for pid in server.processes]
    return Figures(done / seconds, [(end - start) / done for start, end in zip(before, after, strict=True)])


def compare(servers: dict[str, Server], connections: int, rounds: int) -> None:
    """Print requests a second, and the processor time of Ray's processes."""
    results: dict[str, list[Figures]] = {name: [] for name in servers}
    for number in range(rounds):
        first = number % len(servers)  # another one in each round, so that nobody is always first
        for name in [*list(servers)[first:], *list(servers)[:first]]:
            results[name].append(measured(servers[name], connections))
    kinds: tuple[tuple[str, str, Callable[[Figures], float]], ...] = (
        ("Requests a second", "requests/s", lambda figures: figures.rate),
        ("Processor time of the replica for a request", "µs", lambda figures: figures.cpu[0]),
        ("Processor time of the proxy for a request", "µs", lambda figures: figures.cpu[1]),
    )
    for title, unit, figure in kinds:
        columns = {name: [figure(each) for each in figures] for name, figures in results.items()}
        table(f"{title}, {connections} at a time", unit, columns, against="plain Ray Serve")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    folder = Path(tempfile.mkdtemp(prefix="bench-ray"))
    model, secrets = folder / "bench", folder / "secrets"
    (model / "model").mkdir(parents=True)
    secrets.mkdir()
    (secrets / "token").write_text("a-token-of-some-length")
    (model / "config.yaml").write_text("model_name: bench\nsecrets:\n  token: null\n")
    (model / "model" / "model.py").write_text(MODEL)
    environ = os.environ | {"GUSSET_HOME": str(folder / "home"), "GUSSET_SETTINGS": str(folder / "none")}
    arguments = ("--secrets-dir", str(secrets))
    with cluster(model, secrets) as applications, serving(model, environ, *arguments) as (port, _, _):
        alone = Server(port, "/predict")
        for server in (*applications.values(), alone):
            measured(server, connections=4)  # warm
        for connections in CONNECTIONS:
            compare(applications, connections, rounds)
            rate = statistics.median(measured(alone, connections).rate for _ in range(5))
            print(f"\ngusset alone, {connections} at a time: {rate:,.0f} requests/s")


if __name__ == "__main__":
    main()
