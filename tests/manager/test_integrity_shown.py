"""A vault that was tampered with: where a manager shows it to administrators, and to nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.manager.conftest import Manager
from tests.manager.test_pages import Visitor
from tests.serving.conftest import eventually
from tests.vault.conftest import run_sql

TAMPERED = "The vault was tampered with or is damaged"


@pytest.fixture
def tampered(manager: Manager) -> Iterator[Manager]:
    """A manager that has found a row that was altered, of the secret `bad`."""
    with manager.client() as admin:
        admin.post("/v1/secrets", json={"name": "bad", "value": "v"}).raise_for_status()
    assert manager.stop() == 0
    run_sql(manager.database, "UPDATE secrets SET note = 'forged' WHERE name = 'bad'")
    manager.start()  # all rows are verified at the start
    with manager.client() as admin:
        eventually(lambda: admin.get("/readyz").json()["integrity"]["problems"] == 1)
    yield manager


def test_an_administrator_sees_that_the_vault_was_tampered_with(tampered: Manager) -> None:
    """The page of the audit log says what is wrong, the others lead to it."""
    ada = Visitor(tampered)
    with ada.http:
        ada.sign_in()
        log, people = ada.http.get("/settings/audit"), ada.http.get("/settings/people")
    assert (log.status_code, people.status_code) == (200, 200)
    assert TAMPERED in log.text and "the secret bad was altered" in log.text
    assert f"{TAMPERED}: 1 problem" in people.text and 'href="/settings/audit"' in people.text


def test_a_member_sees_nothing_of_it(tampered: Manager) -> None:
    """What was found is for administrators: it names secrets of other teams."""
    tampered.member("mem@example.com")
    mem = Visitor(tampered)
    with mem.http:
        mem.sign_in("mem@example.com")
        page = mem.http.get("/settings/account")
    assert page.status_code == 200 and TAMPERED not in page.text


def test_verifying_a_tampered_vault_at_its_manager_ends_with_status_10(
    tampered: Manager, tmp_path: Path
) -> None:
    """So a script notices it; the error has the problem."""
    laptop = tampered.laptop(tmp_path / "laptop")
    done = laptop("audit", "verify", status=10)
    assert b"the audit log is not intact" in done.stderr and b"the secret bad was altered" in done.stderr
    assert done.stdout == b""


def test_a_forged_record_keeps_no_administrator_from_the_log(manager: Manager) -> None:
    """One whose details no JSON parser reads, with a time that is none: list, export and page have the others."""
    deep, ada = "[" * 100_000, Visitor(manager)
    with manager.client() as admin, ada.http:
        ada.sign_in()
        run_sql(
            manager.database,
            "INSERT INTO audit (seq, at, actor, action, target, outcome, details, hash, mac)"
            " SELECT max(seq) + 1, 'x', 'x', 'x', 'x', 'ok', ?, ?, ? FROM audit",
            deep,
            b"h" * 32,
            b"m" * 32,
        )
        [forged, newest, *_] = admin.get("/v1/audit").json()["records"]
        exported = admin.get("/v1/audit/export").text.splitlines()
        verified = admin.post("/v1/audit/verify").json()
        page = ada.http.get("/settings/audit")
    assert forged["details"] == {"unreadable": deep}
    assert (newest["seq"], len(exported)) == (forged["seq"] - 1, forged["seq"])
    assert verified["problems"] == [f"record {forged['seq']} was altered or moved"]
    assert page.status_code == 200 and "unreadable: [[[" in page.text
    assert manager.stop() == 10  # it signs no log that ends with such a record
