"""Managers that start on an empty database: several at once, with different root keys, and killed meanwhile."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gusset.vault import open_vault
from tests.conftest import Cli
from tests.faults.conftest import Starter
from tests.manager.conftest import Manager
from tests.postgres_server import PostgresServer
from tests.vault.conftest import settings_in

KILLS = 6


@pytest.fixture
def database(server: PostgresServer) -> Iterator[str]:
    """An empty one."""
    name = server.new_database()
    yield name
    server.drop(name)


def started_at_once(clis: list[Cli]) -> list[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "gusset", "manager", "--port", "0", "--output", "json"]
    return [
        subprocess.Popen(command, env=cli.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for cli in clis
    ]


def first_line(process: subprocess.Popen[bytes]) -> dict[str, str]:
    """What a manager prints when it has started, or when it refuses to."""
    assert process.stdout is not None
    found: dict[str, str] = json.loads(process.stdout.readline())
    return found


def stop(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    return process.returncode


def test_five_managers_that_start_at_once_make_one_vault(start: Starter, gusset: Cli) -> None:
    processes = started_at_once([start.home(f"manager-{number}") for number in range(5)])
    assert ["address" in first_line(process) for process in processes] == [True] * 5
    assert [stop(process) for process in processes] == [0] * 5
    settings = settings_in(gusset.home, database=gusset.environ["GUSSET_DATABASE"])
    with open_vault(settings, create=False) as vault:
        assert vault.audit.verify().problems == ()
        assert len(vault.audit.show(action="vault.create", limit=10)) == 1
        assert len(vault.teams.all()) == 1


def test_of_managers_with_root_keys_of_their_own_one_makes_the_vault(gusset: Cli, tmp_path: Path) -> None:
    """The others refuse it, and do not serve."""
    homes = [tmp_path / f"manager-{number}" for number in range(3)]
    processes = started_at_once([Cli(home, gusset.environ | {"GUSSET_HOME": str(home)}) for home in homes])
    lines = [first_line(process) for process in processes]
    assert sorted(line.get("code", "") for line in lines) == ["", "root_key", "root_key"], lines
    for process, line in zip(processes, lines, strict=True):
        if "address" in line:
            assert stop(process) == 0
        else:
            process.communicate(timeout=30)
            assert process.returncode == 10


@pytest.mark.slow
def test_a_migration_that_is_killed_leaves_nothing(
    start: Starter, gusset: Cli, server: PostgresServer, database: str
) -> None:
    """At random moments of the migration; the next manager makes the vault as if nothing had been."""
    moments = random.Random(4711)
    for number in range(KILLS):
        [process] = started_at_once([start.home(f"killed-{number}")])
        deadline = time.monotonic() + 30
        while not _changes_schema(server, database):
            assert time.monotonic() < deadline and process.poll() is None
        time.sleep(moments.uniform(0, 0.15))
        process.kill()
        process.communicate()
        tables = server.run("SELECT relname FROM pg_class WHERE relname = 'audit'", database=database)
        if tables:  # it was faster, or its commit was on the way
            break
    last = start("last")
    assert isinstance(last, Manager)
    assert last.stop() == 0
    gusset("audit", "verify")


def _changes_schema(server: PostgresServer, database: str) -> bool:
    """Whether a session has begun to write: the creation of tables is the first that is written."""
    query = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND backend_xid IS NOT NULL"
    return bool(server.run(query, database))
