"""Fixtures: a running manager process, with an administrator and clients with API keys."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from gusset.vault.services.leases import LEASE_SECONDS
from tests.conftest import Cli, leaks_in
from tests.ports import free_port

ADMIN = "ada@example.com"
PASSWORD = b"correct horse battery staple"


class Manager:
    """A `gusset manager` process with its first administrator's key; it logs to a file."""

    module: tuple[str, ...] = ("gusset",)  # that Python runs, with its arguments

    def __init__(self, gusset: Cli, key: str, folder: Path, *options: str) -> None:
        self.gusset = gusset
        self.key = key
        self.log = folder / "manager.log"
        self.port = free_port()
        self.start(*options)

    @property
    def database(self) -> str:
        """The URL of its database."""
        file = f"sqlite:///{self.gusset.home / 'vault.db'}"
        return self.gusset.environ.get("GUSSET_DATABASE", file)

    def start(self, *options: str) -> None:
        command = [sys.executable, "-m", *self.module, "manager", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--output", "json", *options],
                env=self.gusset.environ,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the manager did not start:\n{self.log.read_text()}"
        started = json.loads(line)
        self.address: str = started["address"]
        self.link: str | None = started["setup"]  # if there are no accounts yet

    def kill(self) -> None:
        """Kill the process, as a power failure would."""
        self.process.kill()
        self.process.wait()
        self._close()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(20)
        self._close()
        return status

    def _close(self) -> None:
        assert self.process.stdout is not None
        self.process.stdout.close()

    def client(self, key: str | None = None, **headers: str) -> httpx.Client:
        """A client with a key: the administrator's by default, none for ""."""
        key = self.key if key is None else key
        bearer = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.address, headers=bearer | headers, timeout=20, trust_env=False)

    def laptop(self, folder: Path, **environ: str) -> Cli:
        """The command line of another machine, logged in with the administrator's key; its home is `folder`."""
        own = {"GUSSET_HOME": str(folder), "GUSSET_SETTINGS": str(folder.with_suffix(".toml"))}
        cli = Cli(folder, self.gusset.environ | own | environ)
        cli.environ.pop("GUSSET_DATABASE", None)
        done = cli("login", self.address, input=self.key.encode() + b"\n")
        assert not leaks_in(done.stdout + done.stderr, self.key.encode())
        return cli

    def member(self, email: str = "mem@example.com", *, teams: list[str] | None = None) -> str:
        """The API key of a new member, who was invited and chose a password."""
        with self.client() as admin:
            team_ids = teams if teams is not None else [admin.get("/v1/teams").json()["teams"][0]["id"]]
            invited = admin.post("/v1/people", json={"email": email, "team_ids": team_ids})
            assert invited.status_code == 200, invited.text
        code = _MAKE_KEY.format(link=invited.json()["link"].rpartition("/")[2], password=PASSWORD)
        done = subprocess.run(
            [sys.executable, "-c", code], env=self.gusset.environ, capture_output=True, check=True
        )
        return done.stdout.decode()


@dataclass(frozen=True)
class Replica:
    """A replica with a lease."""

    client: httpx.Client
    id: str
    key: str

    def renew(self, report: Mapping[str, Any]) -> httpx.Response:
        path, headers = f"/v1/deployment/replicas/{self.id}", {"gusset-session": self.key}
        return self.client.put(path, json=report, headers=headers)


def has_lapsed(replica: Mapping[str, Any]) -> bool:
    """Whether a lost replica's lease had ended, to the second, before whatever is stored from now on."""
    seen = datetime.fromisoformat(replica["seen_at"])
    return datetime.now(UTC) > seen + timedelta(seconds=LEASE_SECONDS + 1)


def lease(client: httpx.Client) -> Replica:
    """A new replica of the deployment whose token `client` has."""
    fetched = client.post("/v1/deployment/secrets")
    assert fetched.status_code == 200, fetched.text
    return Replica(client, fetched.json()["replica"], fetched.json()["session_key"])


_MAKE_KEY = """
import os
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import open_vault
from gusset.vault.services.access_keys import SCOPES
with open_vault(Settings.load(os.environ)) as vault:
    person = vault.invitations.accept(SecretValue({link!r}.encode()), SecretValue({password!r}))
    scopes = [scope for scope in SCOPES if scope != "admin"]
    key = vault.access_keys.create(person.id, "test", scopes=scopes, gives=["*"], actor=person.email)[1]
print(key.reveal().decode(), end="")
"""


# The managers of these tests keep their vaults in SQLite's files, or on PostgreSQL where this is "postgres".
ON_POSTGRES = os.environ.get("GUSSET_TEST_DATABASE") == "postgres"
_SET_UP = "gusset_set_up"


@pytest.fixture(scope="session")
def set_up(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A home made by `manager init`, for copying with its database, and the key that it printed."""
    folder = tmp_path_factory.mktemp("set-up")
    places = {"GUSSET_HOME": str(folder / "home"), "GUSSET_SETTINGS": "/nowhere"}
    if ON_POSTGRES:
        server = request.getfixturevalue("postgres_server")
        server.run(f"CREATE DATABASE {_SET_UP}")
        places["GUSSET_DATABASE"] = server.url(_SET_UP)
    gusset = Cli(folder / "home", os.environ | places)
    initialized = gusset("manager", "init", "--email", ADMIN, "--output", "json", input=PASSWORD)
    return folder / "home", json.loads(initialized.stdout)["api_key"]


@pytest.fixture
def manager(
    request: pytest.FixtureRequest, gusset: Cli, tmp_path: Path, set_up: tuple[Path, str]
) -> Iterator[Manager]:
    shutil.copytree(set_up[0], gusset.home)
    if ON_POSTGRES:
        server = request.getfixturevalue("postgres_server")
        gusset.environ["GUSSET_DATABASE"] = server.url(server.new_database(template=_SET_UP))
    running = Manager(gusset, set_up[1], tmp_path)
    yield running
    if running.process.poll() is None:
        assert running.stop() == 0
    assert b"A bug in gusset" not in running.log.read_bytes(), running.log.read_text()


@pytest.fixture
def admin(manager: Manager) -> Iterator[httpx.Client]:
    """A client with the first administrator's key."""
    with manager.client() as client:
        yield client


@pytest.fixture
def deployment(manager: Manager, admin: httpx.Client) -> Callable[..., httpx.Client]:
    """Registers a deployment and returns a client with its token."""

    def register(name: str, *secrets: str) -> httpx.Client:
        made = admin.post("/v1/deployments", json={"name": name, "secrets": list(secrets)})
        assert made.status_code == 200, made.text
        return manager.client(made.json()["token"])

    return register
