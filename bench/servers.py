"""The servers that benchmarks measure: a manager on SQLite or PostgreSQL, and etcd. Needs `etcd` (make system-deps)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # for `tests.postgres_server`

EMAIL, PASSWORD = "a@example.com", "correct horse battery staple"
DATABASES = ("SQLite", "PostgreSQL")
_MANAGER = (sys.executable, "-m", "gusset", "manager")
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server. `key` is an administrator's."""

    address: str
    processes: tuple[int, ...]
    key: str = ""

    def client(self, key: str | None = None) -> httpx.Client:
        """A client with the administrator's key, or another."""
        headers = {"authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.address, headers=headers, trust_env=False, timeout=60)

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def cpu(self) -> float:
        """Seconds of processor time that its processes and their children have taken so far."""
        return sum(tree_cpu(process) for process in self.processes)

    def memory(self) -> int:
        """Resident bytes of its first process."""
        return int(Path(f"/proc/{self.processes[0]}/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGESIZE"
        )


def tree_cpu(process: int) -> float:
    """Seconds of processor time of a process and its children, also of those that have ended."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    own = sum(map(int, fields[11:15])) / _TICK
    children = [
        child
        for task in Path(f"/proc/{process}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return own + sum(tree_cpu(int(child)) for child in children)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder on the disk of the working directory: /tmp may be in memory, where a flush is free."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL may run as another user
        yield Path(folder)


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A vault with its first administrator. `processes` are those of the database's server."""

    environ: dict[str, str]
    key: str
    processes: tuple[int, ...] = ()

    @contextmanager
    def serving(self, port: int = 0) -> Iterator[Server]:
        """A running manager."""
        command = [*_MANAGER, "--port", str(port), "--key-rate", "0", "--output", "json"]
        process = subprocess.Popen(command, env=self.environ, stdout=subprocess.PIPE)  # its log is shown
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["address"]
        try:
            yield Server(address=address, processes=(process.pid, *self.processes), key=self.key)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


@contextmanager
def installation(database: str, folder: Path) -> Iterator[Installation]:
    """A new vault in one of `DATABASES`, whose files are in `folder`."""
    if database == "SQLite":
        yield _initialized(folder / "gusset")
        return
    with postgres(folder / "postgres") as (url, process):
        yield _initialized(folder / "gusset-postgres", url, process)


def _initialized(home: Path, url: str | None = None, *processes: int) -> Installation:
    environ = os.environ | {"GUSSET_HOME": str(home), "GUSSET_SETTINGS": str(home / "none")}
    if url is not None:
        environ["GUSSET_DATABASE"] = url
    command = [*_MANAGER, "init", "--email", EMAIL, "--output", "json"]
    made = subprocess.run(command, input=PASSWORD.encode(), env=environ, capture_output=True, check=True)
    return Installation(environ=environ, key=json.loads(made.stdout)["api_key"], processes=processes)


@contextmanager
def manager_on(database: str, folder: Path) -> Iterator[Server]:
    """A running manager with a new vault in one of `DATABASES`."""
    with installation(database, folder) as installed, installed.serving() as server:
        yield server


@contextmanager
def postgres(folder: Path) -> Iterator[tuple[str, int]]:
    """A PostgreSQL as it is by default, also in its durability: the URL of an empty database, and its process."""
    from tests.postgres_server import PostgresServer

    folder.mkdir()
    server = PostgresServer(folder, {"max_connections": "100"})
    server.create()
    try:
        url = server.url(server.new_database())
        yield url, int((server.data / "postmaster.pid").read_text().split()[0])
    finally:
        server.stop()


@contextmanager
def etcd(folder: Path) -> Iterator[Server]:
    """A running etcd of one member, as it is by default: each put is on disk before it is acknowledged."""
    client, peer = (f"http://127.0.0.1:{_free_port()}" for _ in range(2))
    command = ["etcd", "--data-dir", str(folder), "--log-level", "error"]
    command += ["--listen-client-urls", client, "--advertise-client-urls", client]
    command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
    command += ["--initial-cluster", f"default={peer}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                if httpx.get(f"{client}/health", trust_env=False).json().get("health") == "true":
                    break
            except (httpx.HTTPError, ValueError):
                time.sleep(0.1)
        yield Server(address=client, processes=(process.pid,))
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
