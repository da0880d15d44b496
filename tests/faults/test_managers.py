"""Managers on PostgreSQL: two beside each other, and what they do while it is away."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.conftest import Cli, seconds_since
from tests.faults.conftest import LIMIT, Starter, put, put_in_turn, recovers, timed
from tests.manager.test_integrity import sql, witnessed
from tests.postgres_server import PostgresServer
from tests.serving.conftest import eventually


def test_two_managers_share_a_vault(start: Starter) -> None:
    """What one writes the other has, also when both write at once; the log is whole."""
    with start("one").client() as one, start("two").client() as two:
        failures: list[str] = []

        def write(client: httpx.Client, name: str) -> None:
            for number in range(20):
                response = put_in_turn(client, f"{name}-{number}")
                if response.status_code != 200:
                    failures.append(response.text)

        threads = [threading.Thread(target=write, args=pair) for pair in ((one, "a"), (two, "b"), (one, "c"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        names = [
            {item["name"] for item in client.get("/v1/secrets").json()["secrets"]} for client in (one, two)
        ]
        assert names[0] == names[1]
        assert len(names[0]) == 60


def test_an_option_names_the_database(
    start: Starter, server: PostgresServer, database: str, tmp_path: Path
) -> None:
    """Even where the environment names another one."""
    other = tmp_path / "other.db"
    with (
        start("one").client() as one,
        start(
            "two", "--database", server.url(database), GUSSET_DATABASE=f"sqlite:///{other}"
        ).client() as two,
    ):
        assert put(two, "x").status_code == 200
        assert one.get("/v1/secrets/x").json()["version"] == 1
    assert not other.exists()


def test_what_a_killed_manager_recorded_the_other_signs_within_a_second(start: Starter) -> None:
    """In the database, and in its own witness file: without a request to it."""
    first, second = start("one"), start("two")

    def is_signed() -> bool:
        return sql(first, "SELECT max(seq) FROM checkpoints") == sql(first, "SELECT max(seq) FROM audit")

    with first.client() as one:
        while True:  # a record now and then has its checkpoint from the start
            began = time.monotonic()
            assert put(one, "x").status_code == 200
            if not is_signed():
                break
    first.kill()
    newest = sql(second, "SELECT max(seq) FROM audit")
    eventually(lambda: witnessed(second) >= newest)
    assert is_signed()
    assert seconds_since(began) < 1.0


def test_a_revoked_token_is_refused_by_the_other_manager_within_a_second(
    start: Starter,
) -> None:
    first, second = start("one"), start("two")
    with first.client() as one:
        put(one, "x")
        made = one.post("/v1/deployments", json={"name": "d", "secrets": ["x"]})
        token = made.json()["token"]
        with second.client(token) as other:
            assert other.post("/v1/deployment/secrets", json={}).status_code != 401
            began = time.monotonic()
            one.delete("/v1/deployments/d")
            eventually(lambda: other.post("/v1/deployment/secrets", json={}).status_code == 401)
            assert seconds_since(began) < 1.0


def test_a_revoked_token_ends_its_stream_on_the_other_manager(start: Starter) -> None:
    """Within ten seconds."""
    first, second = start("one"), start("two")
    with first.client() as one:
        put(one, "x")
        token = one.post("/v1/deployments", json={"name": "d", "secrets": ["x"]}).json()["token"]
        with second.client(token) as other, other.stream("GET", "/v1/deployment/changes") as stream:
            lines = stream.iter_lines()
            next(lines)
            began = time.monotonic()
            one.delete("/v1/deployments/d")
            assert "changed" not in "".join(lines)  # until it ends
            assert seconds_since(began) < 10.0


def test_requests_end_in_time_while_the_database_is_stopped(start: Starter, server: PostgresServer) -> None:
    """503, and all is well again by itself."""
    with start("one").client() as one:
        assert put(one, "x").status_code == 200
        server.stop()
        try:
            refused = timed(lambda: put(one, "x"))
            assert (refused.status_code, refused.json()["code"]) == (503, "unreachable")
            assert refused.headers["retry-after"] == "1"
            assert timed(lambda: one.get("/v1/secrets")).status_code == 503
            assert timed(lambda: one.get("/readyz")).status_code == 503
        finally:
            server.start()
        recovers(one)


@pytest.mark.slow
def test_requests_end_in_time_while_the_database_is_silent(start: Starter, server: PostgresServer) -> None:
    """Twenty at the same moment: none waits for the others."""
    with start("one").client() as one:
        assert put(one, "x").status_code == 200
        statuses: list[int] = []
        durations: list[float] = []

        def ask(number: int) -> None:
            began = time.monotonic()
            response = put(one, "x") if number % 2 else one.get("/v1/secrets")
            durations.append(seconds_since(began))
            statuses.append(response.status_code)

        with server.paused():
            threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert set(statuses) == {503}
        assert max(durations) < LIMIT
        recovers(one)


def test_a_manager_that_starts_before_its_database_waits(start: Starter, server: PostgresServer) -> None:
    server.stop()
    timer = threading.Timer(2.0, server.start)
    timer.start()
    try:
        with start("early").client() as client:
            assert put(client, "x").status_code == 200
    finally:
        timer.join()


def test_a_change_wakes_the_streams_of_the_other_manager(start: Starter) -> None:
    """Within a second, also without the notification."""
    first, second = start("one"), start("two")
    with first.client() as one:
        put(one, "x")
        token = one.post("/v1/deployments", json={"name": "d", "secrets": ["x"]}).json()["token"]
        with second.client(token) as other, other.stream("GET", "/v1/deployment/changes") as stream:
            lines = stream.iter_lines()
            assert json.loads(next(lines))["event"] == "hello"
            began = time.monotonic()
            put(one, "x", "next")
            event = next(json.loads(line) for line in lines if json.loads(line)["event"] == "changed")
            assert event["revision"]
            assert seconds_since(began) < 1.0


def test_a_password_in_an_argument_is_refused(gusset: Cli) -> None:
    """It is not repeated either."""
    done = gusset("manager", "--database", "postgresql://u:hidden@h/d", status=2)
    assert b"other accounts can read" in done.stderr
    assert b"hidden" not in done.stderr
