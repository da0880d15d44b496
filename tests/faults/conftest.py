"""Fixtures: managers with one root key on one PostgreSQL, which tests kill, pause and starve."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.conftest import Cli, clean_environ, seconds_since
from tests.manager.conftest import ADMIN, PASSWORD, Manager
from tests.postgres_server import PostgresServer
from tests.serving.conftest import eventually

LIMIT = 5.0  # seconds within which every request ends
RECOVERY = 10.0  # seconds until all is well again


def soon(condition: Callable[[], object]) -> None:
    """Wait until `condition` is true, which takes less than `RECOVERY`."""
    began = time.monotonic()
    eventually(condition)
    assert seconds_since(began) < RECOVERY


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer.running() as running:
        yield running


@dataclass(frozen=True)
class SetUp:
    """What `manager init` made: a database, for copying; the home with the root key; the first API key."""

    database: str
    home: Path
    api_key: str


@pytest.fixture(scope="module")
def set_up(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> SetUp:
    folder = tmp_path_factory.mktemp("set-up")
    database = server.new_database()
    environ = clean_environ(folder / "home", folder / "settings.toml")
    gusset = Cli(folder / "home", environ | {"GUSSET_DATABASE": server.url(database)})
    done = gusset("manager", "init", "--email", ADMIN, "--output", "json", input=PASSWORD)
    return SetUp(database, folder / "home", json.loads(done.stdout)["api_key"])


@pytest.fixture
def database(server: PostgresServer, set_up: SetUp) -> Iterator[str]:
    """The name of a database with a vault of its own."""
    name = server.new_database(template=set_up.database)
    yield name
    if server.is_up:
        server.drop(name)


@pytest.fixture
def gusset(gusset: Cli, server: PostgresServer, set_up: SetUp, database: str) -> Cli:
    """The command with the vault's root key, and a home that no manager has."""
    gusset.home.mkdir(mode=0o700)
    shutil.copy(set_up.home / "root.key", gusset.home / "root.key")
    gusset.environ["GUSSET_DATABASE"] = server.url(database)
    return gusset


class Starter:
    """Starts managers with homes of their own, the same database and the same root key."""

    def __init__(self, gusset: Cli, api_key: str, folder: Path) -> None:
        self.managers: list[Manager] = []
        self._gusset = gusset
        self._api_key = api_key
        self._folder = folder

    def home(self, name: str) -> Cli:
        """The command as the manager `name` runs it."""
        home = self._folder / name
        home.mkdir(mode=0o700)
        shutil.copy(self._gusset.home / "root.key", home / "root.key")
        return Cli(home, self._gusset.environ | {"GUSSET_HOME": str(home)})

    def __call__(self, name: str, *options: str, **environ: str) -> Manager:
        own, log = self.home(name), self._folder / f"{name}-log"
        own.environ.update(environ)
        log.mkdir()
        self.managers.append(Manager(own, self._api_key, log, *options))
        return self.managers[-1]


@pytest.fixture
def start(gusset: Cli, set_up: SetUp, tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(gusset, set_up.api_key, tmp_path)
    yield starter
    for manager in starter.managers:
        if manager.process.poll() is None:
            assert manager.stop() == 0
        assert b"A bug in gusset" not in manager.log.read_bytes(), manager.log.read_text()


def put(client: httpx.Client, name: str, value: str = "value") -> httpx.Response:
    return client.post("/v1/secrets", json={"name": name, "value": value})


def put_in_turn(client: httpx.Client, name: str) -> httpx.Response:
    """`put`, repeated while a slow machine has it wait too long for others: then nothing was written."""
    while (response := put(client, name)).status_code == 503:
        assert response.json()["code"] == "unreachable"
    return response


def timed(request: Callable[[], httpx.Response]) -> httpx.Response:
    """The response, which must come within the limit."""
    began = time.monotonic()
    response = request()
    assert seconds_since(began) < LIMIT
    return response


def recovers(client: httpx.Client) -> None:
    """Writes, reads and readiness are well again, soon and without help."""
    soon(lambda: put(client, "after").status_code == 200)
    assert client.get("/v1/secrets").status_code == 200
    soon(lambda: client.get("/readyz").status_code == 200)


def number(name: str, default: int) -> int:
    """A size of a test: small in `make test`, larger by `make soak`."""
    return int(os.environ.get(f"GUSSET_TEST_{name}", default))


def as_gusset(cli: Cli, code: str) -> subprocess.Popen[bytes]:
    """Run Python code with the environment of a command."""
    return subprocess.Popen(
        [sys.executable, "-c", code], env=cli.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
