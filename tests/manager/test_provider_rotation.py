"""A rotation from end to end: a PostgreSQL password replaced under a model that keeps querying."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.test_serve import served, write_model
from tests.conftest import Cli, leaks_in
from tests.manager.conftest import Manager, has_lapsed, lease
from tests.manager.test_access import records
from tests.manager.test_rotation import rotation
from tests.postgres_server import PostgresServer, is_accepted
from tests.serving.conftest import eventually

PROGRAM = Path(__file__).parents[2] / "examples" / "rotation" / "postgres.py"
FIRST = "first-password-Zx81QqLmN4vTtYbWs93"
CONFIG = "model_name: m\nsecrets:\n  db_url: null\n"
MODEL = """\
import psycopg

class Model:
    def __init__(self, **kwargs):
        self._secrets = kwargs["secrets"]

    def predict(self, inputs):
        with psycopg.connect(self._secrets["db_url"], connect_timeout=10) as connection:
            return {"role": connection.execute("SELECT current_user").fetchone()[0]}
"""
IDLE = MODEL.replace("def predict(self, inputs):", "def predict(self, inputs):\n        if inputs: return {}")


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    """A server that wants the passwords of two roles, and logs every statement."""
    with PostgresServer.running() as server:
        rules = server.data / "pg_hba.conf"
        rules.write_text("host all app_a,app_b 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
        server.run("CREATE ROLE app_a LOGIN")
        server.run("CREATE ROLE app_b LOGIN")
        server.run("ALTER SYSTEM SET log_statement = 'all'")
        server.run("SELECT pg_reload_conf()")
        eventually(lambda: server.run("SHOW log_statement") == [("all",)])
        eventually(lambda: not is_accepted(url(server, "app_a", "wrong")))
        yield server


def url(server: PostgresServer, role: str, password: str) -> str:
    return f"postgresql://{role}:{password}@127.0.0.1:{server.port}/postgres"


@pytest.fixture
def elsewhere(manager: Manager, database: PostgresServer, tmp_path: Path) -> Cli:
    """The command line of another machine, logged in to the manager; `db_url` has the role app_a."""
    cli = manager.laptop(tmp_path / "elsewhere")
    database.run(f"ALTER ROLE app_a PASSWORD '{FIRST}'")
    database.run("ALTER ROLE app_b PASSWORD NULL")
    cli("secret", "set", "db_url", input=url(database, "app_a", FIRST).encode())
    return cli


def words_of(database: PostgresServer, *options: str) -> list[str]:
    command = f"{sys.executable} {PROGRAM} --admin {database.url('postgres')} --roles app_a,app_b"
    return ["secret", "rotate", "db_url", "--with", command, "--output", "json", *options]


def rotate(
    cli: Cli, database: PostgresServer, *options: str, status: int = 0
) -> tuple[dict[str, Any], bytes]:
    done = cli(*words_of(database, *options), status=status)
    [result] = json.loads(done.stdout)["rotations"]
    return result, done.stdout + done.stderr


def test_a_password_is_replaced_under_a_model_that_keeps_querying(
    elsewhere: Cli, manager: Manager, database: PostgresServer, tmp_path: Path
) -> None:
    """No query fails during two rotations, and at the end of each the old password is refused."""
    folder = write_model(tmp_path / "m", CONFIG, MODEL)
    roles, failures, stop = list[str](), list[str](), threading.Event()
    options = (str(folder), "--workers", "2")
    with served(elsewhere, *options, errors=tmp_path / "err") as (address, _):

        def query() -> None:
            while not stop.is_set():
                response = httpx.post(f"{address}/predict", json={}, trust_env=False, timeout=30)
                if response.status_code != 200:
                    failures.append(response.text)
                else:
                    roles.append(response.json()["role"])

        threads = [threading.Thread(target=query) for _ in range(3)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(roles) > 10)
        first, _ = rotate(elsewhere, database, "--current-handle", "app_a")
        assert (first["outcome"], first["version"]) == ("rotated", 2)
        assert not is_accepted(url(database, "app_a", FIRST))
        eventually(lambda: roles[-1] == "app_b")
        second, _ = rotate(elsewhere, database)
        assert second["version"] == 3
        count = len(roles)
        eventually(lambda: len(roles) > count + 10)
        stop.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert roles[-1] == "app_a" and "app_b" in roles
    with database.admin() as connection:
        verifiers = connection.execute(
            "SELECT rolname, rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname LIKE 'app%'"
        ).fetchall()
    assert sorted(verifiers) == [("app_a", True), ("app_b", None)]
    log = (database.folder / "log").read_bytes()
    assert b"SCRAM-SHA-256" in log  # statements are logged, and the password is in none
    manager.gusset("audit", "verify")


def test_a_replica_that_never_uses_the_new_password_holds_the_revocation_back(
    admin: httpx.Client, elsewhere: Cli, database: PostgresServer, tmp_path: Path
) -> None:
    """Exit status 12, the old password stays; a bound for the first use lets the same rotation end."""
    folder = write_model(tmp_path / "m", CONFIG, IDLE)
    with served(elsewhere, str(folder), errors=tmp_path / "err"):
        options = ("--current-handle", "app_a", "--timeout", "3")
        result, printed = rotate(elsewhere, database, *options, status=12)
        assert result["outcome"] == "waiting"
        assert is_accepted(url(database, "app_a", FIRST))
        assert not leaks_in(printed, FIRST.encode())

        eventually(
            lambda: [each["state"] for each in rotation(admin, "db_url")["replicas"]] == ["acknowledged"]
        )
        result, _ = rotate(elsewhere, database, "--timeout", "1", status=12)
        assert "has not used it" in result["message"]
        result, _ = rotate(elsewhere, database, "--first-use-timeout", "1s")
        assert (result["outcome"], result["version"]) == ("rotated", 2)
        assert not is_accepted(url(database, "app_a", FIRST))
    shown = elsewhere("audit", "show", "--output", "json").stdout
    advances = [each for each in json.loads(shown)["records"] if each["action"] == "rotation.advance"]
    assert any("has not used it" in json.dumps(each) for each in advances)


def test_a_rotation_waits_for_a_replica_that_was_killed(
    elsewhere: Cli, database: PostgresServer, tmp_path: Path
) -> None:
    """It may still use the old password: nothing is revoked, unless that is accepted."""
    folder = write_model(tmp_path / "m", CONFIG, MODEL)
    with served(elsewhere, str(folder), errors=tmp_path / "err") as (address, process):
        httpx.post(f"{address}/predict", json={}, trust_env=False, timeout=30)
        process.kill()
        process.wait()
        options = ("--current-handle", "app_a", "--timeout", "2")
        result, _ = rotate(elsewhere, database, *options, status=12)
        assert "has not acknowledged it" in result["message"] or "is lost" in result["message"]
        assert is_accepted(url(database, "app_a", FIRST))
        result, _ = rotate(elsewhere, database, "--accept-lost", "--timeout", "40")
        assert result["outcome"] == "rotated"


def test_a_replica_that_was_lost_before_is_printed_and_audited_though_nothing_waits_for_it(
    elsewhere: Cli,
    database: PostgresServer,
    admin: httpx.Client,
    deployment: Callable[..., httpx.Client],
) -> None:
    """It may still use the old password, which is revoked: that is never silent."""
    with deployment("d", "db_url") as client:
        lost = lease(client)
        assert lost.renew({"versions": {"db_url": 1}, "host": "gpu-3"}).status_code == 200

    def is_lost() -> bool:
        [replica] = admin.get("/v1/deployments/d").json()["replicas"]
        return not replica["live"] and has_lapsed(replica)

    eventually(is_lost)
    result, printed = rotate(elsewhere, database, "--current-handle", "app_a")
    assert result["outcome"] == "rotated"
    assert printed.count(b"not waiting, d on gpu-3 was lost before the version was set") == 1
    accepted = [each["details"]["accepted"] for each in records(admin, action="rotation.advance")]
    assert accepted == [["d on gpu-3 was lost before the version was set"]] * 2


def test_a_manager_that_is_restarted_during_a_rotation(
    elsewhere: Cli, manager: Manager, database: PostgresServer, tmp_path: Path
) -> None:
    """The command waits on, and the rotation ends once the model has used the new password."""
    folder = write_model(tmp_path / "m", CONFIG, IDLE)
    with served(elsewhere, str(folder), errors=tmp_path / "err") as (address, _):
        rotating = subprocess.Popen(
            [sys.executable, "-m", "gusset", *words_of(database, "--current-handle", "app_a")],
            env=elsewhere.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert rotating.stderr is not None
        while b"has not used it" not in rotating.stderr.readline():
            assert rotating.poll() is None
        manager.kill()
        manager.start()
        httpx.post(f"{address}/predict", json={}, trust_env=False, timeout=30)
        output, errors = rotating.communicate(timeout=90)
        assert rotating.returncode == 0, errors
        assert b'"outcome": "rotated"' in output
    assert not is_accepted(url(database, "app_a", FIRST))
