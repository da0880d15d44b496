"""The manager verifies the vault while it runs, and signs the audit log's newest record each second."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import httpx

from tests.manager.conftest import Manager
from tests.vault.conftest import run_sql


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
        time.sleep(0.05)


def head_is_witnessed(manager: Manager) -> bool:
    return witnessed(manager) == sql(manager, "SELECT max(seq) FROM audit")


def test_every_record_is_soon_in_a_checkpoint(manager: Manager, admin: httpx.Client) -> None:
    """After writes and after a refusal, without any further request; a restarted manager signs first."""
    for value in ("1", "2", "3"):
        admin.post("/v1/secrets", json={"name": "x", "value": value}).raise_for_status()
    eventually(lambda: head_is_witnessed(manager))
    stale = {"if-match": '"1"'}
    assert admin.post("/v1/secrets", json={"name": "x", "value": "4"}, headers=stale).status_code == 412
    eventually(lambda: head_is_witnessed(manager))
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


def test_a_database_that_was_put_back_stops_writes_until_that_is_accepted(
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
