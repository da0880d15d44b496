"""A vault of its own for each test, as a person's first command makes it: once in a file, once on PostgreSQL.

A test with the mark `sqlite` concerns only SQLite; the mark says why.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher

from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.crypto import passwords
from tests.postgres_server import PostgresServer
from tests.vault.rights import rights  # noqa: F401  # a fixture

MakeSettings = Callable[..., Settings]
Sql = Callable[..., list[Any]]

VECTORS = Path(__file__).parent.parent / "vectors"


class Clock:
    """A clock that only `advance` moves on."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture(autouse=True)
def quick_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords are hashed in a hundredth of the time, but where modules are compiled."""
    hasher = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
    monkeypatch.setattr(passwords, "_hasher", lambda: hasher)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not (_uses_postgres(item) and item.get_closest_marker("sqlite"))]
    for item in filter(_uses_postgres, items):
        item.add_marker("server")


def _uses_postgres(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    return callspec is not None and callspec.params.get("database") == "postgres"


def settings_in(home: Path, **changes: Any) -> Settings:
    """Settings of a vault that lies in `home` alone."""
    places = {
        "home": home,
        "cache": home / "cache",
        "database": f"sqlite:///{home / 'vault.db'}",
        "root_key_file": home / "root.key",
        "witness_file": home / "audit.witness",
    }
    return Settings(**(places | changes))


def write_older_vault(home: Path, vector: str = "vault-0002") -> None:
    """Make the vault in `home` that a release before signed rows wrote: schema 0002, on SQLite."""
    source = VECTORS / vector
    home.mkdir(mode=0o700, parents=True)
    with closing(sqlite3.connect(home / "vault.db")) as database:
        database.executescript((source / "vault.sql").read_text())
    for name in ("root.key", "audit.witness"):
        shutil.copy(source / name, home / name)
    for file in home.iterdir():
        file.chmod(0o600)


@pytest.fixture
def new_database(request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """Makes empty databases on the shared server; returns their URLs."""
    server: PostgresServer = request.getfixturevalue("postgres_server")
    made: list[str] = []

    def make() -> str:
        made.append(server.new_database())
        return server.url(made[-1])

    yield make
    for name in made:
        server.drop(name)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, home: Path) -> str:
    """The URL of a database without a vault; tests run once with each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{home / 'vault.db'}"
    url: str = request.getfixturevalue("new_database")()
    return url


@pytest.fixture
def settings(home: Path, database: str) -> Settings:
    return settings_in(home, database=database)


@pytest.fixture
def vault(settings: Settings) -> Iterator[Vault]:
    with open_vault(settings) as opened:
        yield opened


@pytest.fixture
def sql(database: str) -> Sql:
    """Runs SQL in the database behind the vault's back, as an attacker would."""

    def run(statement: str, *values: Any) -> list[Any]:
        return run_sql(database, statement, *values)

    return run


class OlderCopy:
    """A copy of a database that can be restored in its place. No process has the vault open meanwhile."""

    def __init__(self, url: str, home: Path, server: PostgresServer | None) -> None:
        self._file = home / "vault.db"
        self._server = server
        self._name = url.rpartition("/")[2]

    def save(self) -> None:
        if self._server is None:
            shutil.copy(self._file, self._file.with_name("old.db"))
        else:
            self._server.run(f"CREATE DATABASE {self._name}_old TEMPLATE {self._name}")

    def restore(self) -> None:
        if self._server is None:
            for leftover in self._file.parent.glob("vault.db-*"):
                leftover.unlink()
            shutil.copy(self._file.with_name("old.db"), self._file)
        else:
            self._server.drop(self._name)
            self._server.run(f"ALTER DATABASE {self._name}_old RENAME TO {self._name}")


@pytest.fixture
def older_copy(request: pytest.FixtureRequest, database: str, home: Path) -> OlderCopy:
    on_server = database.startswith("postgresql:")
    return OlderCopy(database, home, request.getfixturevalue("postgres_server") if on_server else None)


def run_sql(url: str, statement: str, *values: Any) -> list[Any]:
    """Execute a statement in SQLite's words on either database."""
    if url.startswith("sqlite:///"):
        file = url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(file, timeout=30)) as connection, connection:
            return connection.execute(statement, values).fetchall()
    import psycopg

    statement = re.sub(r"\bx'([0-9a-f]*)'", r"'\\x\1'::bytea", statement).replace("?", "%s")
    with psycopg.connect(url) as server:
        server.execute("SET session_replication_role = replica")  # as in SQLite, no foreign key is checked
        cursor = server.execute(statement, values or None)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []
