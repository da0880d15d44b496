"""The manager verifies the vault while it runs, and signs the audit log's newest record each second."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gusset.manager.executors import Executors
from gusset.manager.housekeeping import CheckpointTimer
from gusset.secrets.value import SecretValue
from gusset.vault import open_vault
from gusset.vault.commit.loop_writer import make_server_writer
from tests.conftest import seconds_since
from tests.faults.clocks import has_faketime, steppable_clock
from tests.manager.conftest import ON_POSTGRES, Manager
from tests.manager.test_watch import streaming
from tests.vault.conftest import OlderCopy, run_sql, settings_in
from tests.vault.test_checkpoints import newest_witnessed


def sql(manager: Manager, statement: str) -> int:
    """Execute a statement as somebody who can write the database; returns the number that it selects."""
    rows = run_sql(manager.database, statement)
    return int(rows[0][0]) if rows else 0


def witnessed(manager: Manager) -> int:
    return int(json.loads((manager.gusset.home / "audit.witness").read_bytes().splitlines()[-1])["seq"])


def eventually(check: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def head_is_witnessed(manager: Manager) -> bool:
    return witnessed(manager) == sql(manager, "SELECT max(seq) FROM audit")


@contextmanager
def witnessed_within_a_second(manager: Manager) -> Iterator[None]:
    """What is recorded in this block is, a second after it, in a checkpoint of the witness file."""
    began, before = time.monotonic(), sql(manager, "SELECT max(seq) FROM audit")
    yield
    newest = sql(manager, "SELECT max(seq) FROM audit")
    assert newest > before
    eventually(lambda: witnessed(manager) >= newest)
    assert seconds_since(began) < 1.0


def write_twice(client: httpx.Client) -> None:
    """The second record comes too soon after the first to be signed with it."""
    for value in ("1", "2"):
        client.post("/v1/secrets", json={"name": "x", "value": value}).raise_for_status()


def test_every_record_is_in_a_checkpoint_within_a_second(manager: Manager, admin: httpx.Client) -> None:
    """After writes, after idleness and after a refusal, without any further request."""
    write_twice(admin)
    for _ in range(3):
        with witnessed_within_a_second(manager):
            write_twice(admin)
    stale = {"if-match": '"1"'}
    with witnessed_within_a_second(manager):
        refused = admin.post("/v1/secrets", json={"name": "x", "value": "3"}, headers=stale)
        assert refused.status_code == 412
    time.sleep(3)  # idleness
    with witnessed_within_a_second(manager):
        write_twice(admin)


@has_faketime
def test_a_clock_that_is_set_back_or_forward_delays_no_checkpoint(manager: Manager, tmp_path: Path) -> None:
    """Nor does one that is set forward: each record is signed within a second as time goes by."""
    assert manager.stop() == 0
    environ, step = steppable_clock(tmp_path / "clock")
    manager.gusset.environ.update(environ)
    manager.start()
    with manager.client() as admin:
        write_twice(admin)
        for offset in (-60, -3600, 0):
            step(offset)
            with witnessed_within_a_second(manager):
                write_twice(admin)


def test_slow_requests_delay_no_checkpoint(home: Path) -> None:
    """Also when each thread for them is busy, and many wait for one."""
    settings, release = settings_in(home), threading.Event()

    async def run() -> None:
        with open_vault(settings, make_writer=make_server_writer) as vault:
            executors = Executors(longest_queue=20)
            busy = [executors.run_slow(release.wait) for _ in range(40)]
            timer = CheckpointTimer(vault, executors)
            timer.start()
            for value in (b"1", b"2"):
                await executors.run(vault.secrets.writer.set, "x", SecretValue(value), actor="alice")
            [record] = vault.audit.show(limit=1)
            deadline = time.monotonic() + 15
            while newest_witnessed(settings) < record.seq:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
            timer.stop()
            release.set()
            await asyncio.gather(*busy)
            executors.close()

    try:
        asyncio.run(run())
    finally:
        release.set()


def test_a_restarted_manager_signs_first(manager: Manager, admin: httpx.Client) -> None:
    """Before it serves anything: what was recorded before it was killed."""
    for value in ("5", "6"):
        admin.post("/v1/secrets", json={"name": "x", "value": value}).raise_for_status()
    manager.kill()
    before = sql(manager, "SELECT max(seq) FROM audit")
    manager.start()
    assert sql(manager, f"SELECT count(*) FROM checkpoints WHERE seq = {before}") == 1
    assert witnessed(manager) >= before


def test_an_altered_row_is_reported_and_the_rest_is_served(manager: Manager, admin: httpx.Client) -> None:
    """In the readiness response, the metrics, the log and on the page; the manager stays ready."""
    for name in ("good", "bad"):
        admin.post("/v1/secrets", json={"name": name, "value": "v"}).raise_for_status()
    eventually(lambda: admin.get("/readyz").json()["integrity"]["rows_verified_at"] is not None)
    assert admin.get("/readyz").json()["integrity"]["problems"] == 0
    sql(manager, "UPDATE secrets SET note = 'forged' WHERE name = 'bad'")
    assert manager.stop() == 0
    manager.start()  # all rows are verified at the start
    with manager.client() as client:
        eventually(lambda: client.get("/readyz").json()["integrity"]["problems"] == 1)
        assert client.get("/readyz").status_code == 200
        assert "gusset_integrity_problems 1.0" in client.get("/metrics").text
        assert client.post("/v1/secrets", json={"name": "good", "value": "w"}).status_code == 200
    eventually(lambda: "the secret bad was altered" in manager.log.read_text())


def test_a_body_with_an_altered_key_gets_a_response(manager: Manager, admin: httpx.Client) -> None:
    """The manager looks the key up before it reads a body of more than 4 KiB."""
    made = admin.post("/v1/api_keys", json={"name": "laptop", "scopes": ["secrets:write"]})
    made.raise_for_status()
    sql(manager, "UPDATE access_keys SET name = 'forged' WHERE name = 'laptop'")
    with manager.client(made.json()["api_key"]) as client:
        answers = [
            client.post("/v1/secrets", json={"name": "x", "value": "v" * length}).json()["code"]
            for length in (1, 10_000)
        ]
    assert answers == ["integrity"] * 2


def test_a_database_that_was_replaced_by_an_older_copy_stops_writes_until_that_is_accepted(
    manager: Manager, admin: httpx.Client
) -> None:
    """503 with a code of its own for writes; reads go on, and so does everything after `accept-loss`."""
    admin.post("/v1/secrets", json={"name": "x", "value": "1"}).raise_for_status()
    last = sql(manager, "SELECT max(seq) FROM audit")
    admin.post("/v1/secrets", json={"name": "y", "value": "lost"}).raise_for_status()
    for table in ("secret_versions", "secrets"):
        sql(manager, f"DELETE FROM {table} WHERE changed_seq > {last}")
    sql(manager, f"DELETE FROM checkpoints WHERE seq > {last}")
    sql(manager, f"DELETE FROM audit WHERE seq > {last}")

    refused = admin.post("/v1/secrets", json={"name": "x", "value": "2"})
    assert (refused.status_code, refused.json()["code"]) == (503, "records_lost")
    assert admin.get("/readyz").status_code == 503
    assert admin.get("/v1/secrets").status_code == 200
    manager.gusset("audit", "accept-loss", "--yes")
    written = admin.post("/v1/secrets", json={"name": "x", "value": "2"})
    assert (written.status_code, written.json()["version"]) == (200, 1002)
    eventually(lambda: admin.get("/readyz").status_code == 200)
    manager.gusset("audit", "verify")


@pytest.fixture
def older_copy(request: pytest.FixtureRequest, manager: Manager) -> OlderCopy:
    """Of the manager's database. The manager must not run when it is saved, nor when it is restored."""
    server = request.getfixturevalue("postgres_server") if ON_POSTGRES else None
    return OlderCopy(manager.database, manager.gusset.home, server)


def value_of(fetched: dict[str, Any]) -> bytes:
    """The value of "x" in a response to a deployment."""
    return base64.b64decode(fetched["secrets"]["x"]["value"])


@pytest.mark.parametrize("lost", ["x", "y"])
def test_a_replica_fetches_anew_after_an_older_copy_was_restored(
    manager: Manager, deployment: Callable[..., httpx.Client], older_copy: OlderCopy, lost: str
) -> None:
    """It says what it has: that is of an epoch that is over, also where the value in the copy is the same."""

    def write(name: str, value: str) -> None:
        with manager.client() as admin:
            admin.post("/v1/secrets", json={"name": name, "value": value}).raise_for_status()

    write("x", "kept")
    token = deployment("d", "x").headers["authorization"].split()[1]
    assert manager.stop() == 0
    older_copy.save()
    manager.start()
    write(lost, "lost")
    with manager.client(token) as client:
        fetched = client.post("/v1/deployment/secrets").json()
        assert value_of(fetched) == (b"lost" if lost == "x" else b"kept")
        with streaming(client, f"?since={fetched['revision']}") as stream:
            assert stream.next() == {"event": "hello", "revision": fetched["revision"]}
    assert manager.stop() == 0
    older_copy.restore()
    manager.gusset("audit", "accept-loss", "--yes")
    manager.start()
    with manager.client(token) as client, streaming(client, f"?since={fetched['revision']}") as stream:
        event = stream.next()
        assert event["event"] == "changed"
        again = client.post("/v1/deployment/secrets").json()
        assert (value_of(again), again["revision"]) == (b"kept", event["revision"])
        assert again["revision"] != fetched["revision"]


def test_a_running_manager_tells_its_streams_of_an_accepted_loss(
    manager: Manager, admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """Though it was another process that accepted it, and no request tells the manager so."""
    admin.post("/v1/secrets", json={"name": "x", "value": "kept"}).raise_for_status()
    with deployment("d", "x") as client, streaming(client) as stream:
        before = stream.next()["revision"]
        manager.gusset("audit", "accept-loss", "--yes")
        event = stream.next()
        assert event["event"] == "changed"
        fetched = client.post("/v1/deployment/secrets").json()
        assert value_of(fetched) == b"kept"
        while event["revision"] != fetched["revision"]:  # the first one may not name the new epoch yet
            event = stream.next()
        assert event["revision"] != before
