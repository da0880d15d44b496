"""How long `secret set --wait` takes, and whether it is ever wrong: python bench/acknowledged.py [PostgreSQL|SQLite]

Two managers share one vault. `GUSSET_ROTATIONS` (1,000) rotations of one secret, each waited for; `GUSSET_REAL`
(8) processes of `gusset serve` with two workers each, and `GUSSET_CLIENTS` (492) clients of the protocol. After each wait every
client must have acknowledged the version, and every model must respond with the new value.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import httpx
import uvloop
from replicas import Replica, deployment_tokens
from servers import installation, scratch

from gusset.client.manager_client import ManagerClient
from gusset.client.remote_secrets import RemoteSecrets
from gusset.client.rotation import wait_for_rotation
from gusset.secrets.value import SecretValue

ROTATIONS = int(os.environ.get("GUSSET_ROTATIONS", "1000"))
REAL = int(os.environ.get("GUSSET_REAL", "8"))
CLIENTS = int(os.environ.get("GUSSET_CLIENTS", "492"))
TIMEOUT = 60.0
AT_ONCE = 32

CONFIG = "model_name: real\nsecrets:\n  rotated: null\n"
MODEL = """\
class Model:
    def __init__(self, **kwargs):
        self._secrets = kwargs["secrets"]

    def predict(self, inputs):
        return {"value": self._secrets["rotated"]}
"""


class Clients:
    """Clients of both managers, on an event loop in a thread of their own."""

    def __init__(self, clients: Sequence[Replica]) -> None:
        self._clients = clients
        self._ready = threading.Event()
        self._loop = uvloop.new_event_loop()
        self._failed: BaseException | None = None
        self._running: asyncio.Task[None] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Open all of them, and have them follow changes within the context."""
        thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)
        thread.start()
        assert self._ready.wait(120)
        yield
        assert self._failed is None, self._failed
        assert self._running is not None
        self._loop.call_soon_threadsafe(self._running.cancel)
        thread.join()

    async def _run(self) -> None:
        self._running = asyncio.current_task()
        at_once = asyncio.Semaphore(AT_ONCE)

        async def open_one(client: Replica) -> None:
            async with at_once:
                await client.open()

        await asyncio.gather(*(open_one(client) for client in self._clients))
        self._ready.set()
        tasks = [asyncio.create_task(client.follow()) for client in self._clients]
        tasks += [asyncio.create_task(client.keep_lease()) for client in self._clients]
        with suppress(asyncio.CancelledError):
            try:
                await asyncio.gather(*tasks)
            except Exception as error:
                self._failed = error

    def stale(self, version: int) -> list[int]:
        """The versions of the clients that are older."""
        return [each.versions["rotated"] for each in self._clients if each.versions["rotated"] < version]


@contextmanager
def served(folder: Path, managers: str, token: str) -> Iterator[str]:
    """A model that is served with two workers; its address."""
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "model" / "model.py").write_text(MODEL)
    (folder / "token").write_text(token)
    (folder / "token").chmod(0o600)
    environ = os.environ | {"GUSSET_HOME": str(folder / "home"), "GUSSET_SETTINGS": str(folder / "none")}
    environ["GUSSET_TOKEN_FILE"] = str(folder / "token")
    command = [sys.executable, "-m", "gusset", "serve", str(folder), "--manager", managers, "--workers", "2"]
    command += ["--port", "0", "--output", "json"]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, (folder / "log").read_text()
            yield json.loads(line)["address"]
        finally:
            process.terminate()


def rotate(managers: str, key: str, models: Sequence[str], clients: Clients) -> list[float]:
    """Rotate again and again, and check after each wait that no replica has an older value."""
    taken = []
    with (
        closing(ManagerClient(managers, SecretValue(key.encode()))) as client,
        httpx.Client(trust_env=False, timeout=30) as http,
    ):
        secrets = RemoteSecrets(client)
        for number in range(ROTATIONS):
            value = f"value number {number} of the rotated secret"
            began = time.perf_counter()
            info = secrets.set("rotated", SecretValue(value.encode()), actor="bench")
            version = info.version or 0
            status = wait_for_rotation(
                lambda version=version: secrets.rotation("rotated", version),
                secret_id=info.id,
                version=version,
                timeout=TIMEOUT,
            )
            taken.append(time.perf_counter() - began)
            assert status.acknowledged == REAL + CLIENTS, f"{len(status.replicas)} replicas were waited for"
            assert clients.stale(version) == [], f"clients are stale after the wait for version {version}"
            for model in models:
                found = http.post(f"{model}/predict", json={}).json()["value"]
                assert found == value, f"a model is stale after the wait for version {version}"
    return taken


def measure(database: str, folder: Path) -> list[float]:
    """Seconds of each rotation, until its wait was over."""
    with ExitStack() as stack:
        installed = stack.enter_context(installation(database, folder))
        servers = [stack.enter_context(installed.serving()) for _ in range(2)]
        managers = ",".join(server.address for server in servers)
        with servers[0].client() as admin:
            admin.post("/v1/secrets", json={"name": "rotated", "value": "the first value"}).raise_for_status()
            body = {"name": "real", "secrets": ["rotated"]}
            token = admin.post("/v1/deployments", json=body).raise_for_status().json()["token"]
            tokens = deployment_tokens(admin, CLIENTS, ["rotated"])
        models = [
            stack.enter_context(served(folder / f"model-{number}", managers, token)) for number in range(REAL)
        ]
        clients = Clients([Replica(servers[number % 2].port, each) for number, each in enumerate(tokens)])
        with clients.running():
            return rotate(managers, installed.key, models, clients)


def main(database: str) -> None:
    with scratch() as folder:
        taken = measure(database, folder)
    print(f"\n### {ROTATIONS:,} rotations with --wait, {REAL} models and {CLIENTS} clients, two managers\n")
    print("| database | p50 ms | p99 ms | longest ms | lost or stale |")
    print("|---|---:|---:|---:|---:|")
    cuts = statistics.quantiles(taken, n=100)
    print(f"| {database} | {cuts[49] * 1e3:.0f} | {cuts[98] * 1e3:.0f} | {max(taken) * 1e3:.0f} | 0 |")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "PostgreSQL")
