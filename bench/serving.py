"""From `gusset serve` to ready, and requests a second as shipped: python bench/serving.py

The whole command is measured: a vault with one declared secret, supervisor and
worker, limits, time-outs and masking on. Requests come from one client process
that keeps each connection busy, so it shares the machine with what it measures.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop
from measure import interleave, table

ROUNDS = 7
SECONDS = 2.0
BODY = json.dumps({"text": "The capital of France is [MASK]."}).encode()
MODELS = {
    "sync predict": "def predict(self, x): return x",
    "async predict": "async def predict(self, x): return x",
    "sync predict, a secret looked up": "def predict(self, x): self.secrets['token']; return x",
}


def make_folder(root: Path, method: str) -> Path:
    folder = root / method.replace(" ", "-").replace(",", "")
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text("model_name: bench\nsecrets:\n  token: null\n")
    (folder / "model" / "model.py").write_text(
        f"class Model:\n    def __init__(self, secrets): self.secrets = secrets\n    {MODELS[method]}\n"
    )
    return folder


@contextmanager
def serving(folder: Path, environ: dict[str, str], *options: str) -> Iterator[tuple[int, float, int]]:
    """The port, the milliseconds until it was ready, and the process id."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "gusset", "serve", str(folder), "--port", "0", "--output", "json"]
    command += options
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        address = json.loads(process.stdout.readline())["address"]
        ready = (time.perf_counter() - began) * 1000
        try:
            yield int(address.rpartition(":")[2]), ready, process.pid
        finally:
            process.terminate()


class Client(asyncio.Protocol):
    """Sends the next request when the response to the last one is whole."""

    REQUEST = b"POST /v1/models/model:predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n%b" % (
        len(BODY),
        BODY,
    )

    def __init__(self) -> None:
        self.done = 0
        self.rest = b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        transport.write(self.REQUEST)

    def data_received(self, data: bytes) -> None:
        self.rest += data
        head, end, body = self.rest.partition(b"\r\n\r\n")
        if end and len(body) >= int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            assert head.startswith(b"HTTP/1.1 200"), head
            self.rest = b""
            self.done += 1
            self.transport.write(self.REQUEST)


def requests_a_second(port: int, connections: int) -> float:
    async def run() -> float:
        loop = asyncio.get_running_loop()
        clients = [(await loop.create_connection(Client, "127.0.0.1", port))[1] for _ in range(connections)]
        before, began = sum(c.done for c in clients), time.perf_counter()
        await asyncio.sleep(SECONDS)
        rate = (sum(c.done for c in clients) - before) / (time.perf_counter() - began)
        for client in clients:
            client.transport.abort()
        return rate

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def memory(pid: int) -> float:
    """Megabytes resident in a process and all below it, pages that they share counted once each."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    own = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return own + sum(memory(int(child)) for child in children)


def start_figures(folder: Path, environ: dict[str, str]) -> dict[str, Callable[[], float]]:
    def python() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        return (time.perf_counter() - began) * 1000

    def ready() -> float:
        with serving(folder, environ) as (_, milliseconds, _pid):
            return milliseconds

    return {"python -c pass": python, "gusset serve, to ready": ready}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        environ = os.environ | {"GUSSET_HOME": str(root / "home")}
        command = [sys.executable, "-m", "gusset", "secret", "set", "token"]
        subprocess.run(command, input=b"a-secret-value", env=environ, check=True, capture_output=True)
        folders = {name: make_folder(root, name) for name in MODELS}
        parts = start_figures(folders["sync predict"], environ)
        for once in parts.values():  # page cache and byte code
            once()
        table("Start of a trivial model", "ms", interleave(parts, ROUNDS), against="python -c pass")
        for connections in (1, 32):
            figures: dict[str, Callable[[], float]] = {}
            running = [serving(folder, environ) for folder in folders.values()]
            servers = [server.__enter__() for server in running]
            for name, (port, _, _pid) in zip(folders, servers, strict=True):
                figures[name] = lambda port=port: requests_a_second(port, connections)  # noqa: B023
            results = interleave(figures, 3)
            title = f"Echo of small JSON, {connections} connection{'s' if connections > 1 else ''}"
            table(title, "requests/s", results, against="sync predict")
            print(f"\nMemory of supervisor and worker together: {memory(servers[0][2]):.0f} MB")
            for server in running:
                server.__exit__(None, None, None)


if __name__ == "__main__":
    main()
