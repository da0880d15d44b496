"""Managers of two releases on one PostgreSQL: beside each other where the schema allows it, else refused.

The newer release is simulated: it is this one with one more migration, see `tests.newer_gusset`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

from tests.conftest import Cli
from tests.faults.conftest import database, gusset, put, server, set_up, start  # noqa: F401  # fixtures
from tests.manager.conftest import Manager
from tests.newer_gusset import BASE, NEWER
from tests.postgres_server import PostgresServer
from tests.serving.conftest import eventually

Start = Callable[[str], Manager]


def newer(gusset: Cli, kind: str, *words: str, status: int = 0) -> str:  # noqa: F811
    """Execute a command of the newer release; what it printed."""
    command = [sys.executable, "-m", "tests.newer_gusset", kind, *words]
    done = subprocess.run(command, env=gusset.environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def reports(server: PostgresServer, database: str) -> list[str]:  # noqa: F811
    """The revisions that managers report."""
    return [row[0] for row in server.run("SELECT revision FROM managers", database=database)]


class NewerManager(Manager):
    """A manager of the newer release."""

    module = ("tests.newer_gusset", "compatible")


def test_an_older_manager_goes_on_beside_a_compatible_schema(start: Start, gusset: Cli) -> None:  # noqa: F811
    """One after the other is replaced, without a moment in which none serves; the log stays whole."""
    older, other = start("one"), start("two")
    with older.client() as client:
        assert put(client, "a").status_code == 200
        migrated = json.loads(newer(gusset, "compatible", "manager", "migrate", "--output", "json"))
        assert migrated == {"schema": NEWER, "oldest_compatible": BASE}
        upgraded = NewerManager(other.gusset, other.key, other.log.parent)
        try:
            with upgraded.client() as new:
                for number in range(5):
                    assert put(client, f"older-{number}").status_code == 200
                    assert put(new, f"newer-{number}").status_code == 200
                assert len(new.get("/v1/secrets").json()["secrets"]) == 11
                assert client.get("/readyz").status_code == new.get("/readyz").status_code == 200
            older.stop()
            older.start()  # also when it is started again
            assert put(client, "after").status_code == 200
            assert "intact" in gusset("audit", "verify").stdout.decode()
        finally:
            assert upgraded.stop() == 0


def test_a_schema_that_older_managers_cannot_use_waits_until_they_have_stopped(
    start: Start,  # noqa: F811
    gusset: Cli,  # noqa: F811
    server: PostgresServer,  # noqa: F811
    database: str,  # noqa: F811
) -> None:
    """The newer one is refused, with the older ones' names, and changes nothing; then it is the other way round."""
    older = start("one")
    with older.client() as client:
        eventually(lambda: reports(server, database))
        refused = newer(gusset, "incompatible", "manager", "migrate", status=10)
        assert "managers of an older version of gusset are running" in refused and NEWER in refused
        assert put(client, "a").status_code == 200
        older.stop()
        newer(gusset, "incompatible", "manager", "migrate")
    refused = gusset("secret", "list", status=10).stderr.decode()
    assert f"schema {NEWER}" in refused and "nothing was changed" in refused
    assert newer(gusset, "incompatible", "manager", "migrate")


def test_a_manager_that_missed_an_incompatible_migration_is_not_ready(
    start: Start,  # noqa: F811
    gusset: Cli,  # noqa: F811
    server: PostgresServer,  # noqa: F811
    database: str,  # noqa: F811
) -> None:
    """It was paused for so long that it no longer counted as running."""
    older = start("one")
    with older.client() as client:
        eventually(lambda: reports(server, database))
        os.kill(older.process.pid, signal.SIGSTOP)
        try:
            paused = "UPDATE managers SET seen_at = '2020-01-01T00:00:00.000Z'"
            server.run(paused, database=database)
            newer(gusset, "incompatible", "manager", "migrate")
        finally:
            os.kill(older.process.pid, signal.SIGCONT)
        refused = put(client, "a")
        assert (refused.status_code, refused.json()["code"]) == (503, "vault_too_new")
        eventually(lambda: client.get("/readyz").status_code == 503, client.get("/readyz").text, patience=15)
        eventually(lambda: "newer gusset" in older.log.read_text())
