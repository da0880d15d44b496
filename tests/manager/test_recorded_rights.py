"""Each record of an act has the rows on which the rights of the one who acted rested, as they were then."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import httpx
import pytest

from tests.manager.conftest import PASSWORD, Manager
from tests.manager.issuer import Key, running_issuer
from tests.manager.test_identity import exchange, given
from tests.manager.test_pages import Visitor
from tests.vault.conftest import run_sql


@pytest.fixture
def visitor(manager: Manager) -> Iterator[Visitor]:
    """The administrator, signed in."""
    visitor = Visitor(manager)
    assert visitor.sign_in().status_code == 303
    yield visitor
    visitor.http.close()


def rights(manager: Manager, action: str) -> dict[str, tuple[int, str]]:
    """What the newest record of an action has.

    Each row, as TABLE/KEY, with the record that wrote it and the beginning of its HMAC.
    """
    [(details,)] = run_sql(
        manager.database, "SELECT details FROM audit WHERE action = ? ORDER BY seq DESC LIMIT 1", action
    )
    found = json.loads(details)["rights"]
    named = {f"{table}/{key}": (seq, mac) for table, key, seq, mac in found}
    assert len(named) == len(found)
    return named


def row(manager: Manager, table: str, key: str, where: str = "1 = 1") -> dict[str, tuple[int, str]]:
    """The one row of a table, as `rights` has it. `key` has the columns of its key."""
    [(*parts, seq, mac)] = run_sql(
        manager.database, f"SELECT {key}, changed_seq, mac FROM {table} WHERE {where}"
    )
    texts = [part.hex() if isinstance(part, bytes) else part for part in parts]
    return {"/".join([table, *texts]): (seq, mac.hex()[:16])}


def test_a_person_acts_by_a_key_an_account_and_memberships(manager: Manager, admin: httpx.Client) -> None:
    admin.post("/v1/secrets", json={"name": "x", "value": "value-of-x"}).raise_for_status()
    assert rights(manager, "secret.create") == (
        row(manager, "access_keys", "prefix")
        | row(manager, "users", "id")
        | row(manager, "members", "team_id, user_id")
    )


def test_on_a_page_a_person_acts_by_a_session(manager: Manager, visitor: Visitor) -> None:
    assert visitor.add("x", b"value-of-x").status_code == 303
    session = row(manager, "sessions", "hash")
    assert rights(manager, "secret.create") == (
        session | row(manager, "users", "id") | row(manager, "members", "team_id, user_id")
    )
    token = visitor.http.cookies["gusset_session"]
    assert list(session) == [f"sessions/{hashlib.sha256(f'session:{token}'.encode()).hexdigest()}"]


def test_after_a_new_password_a_key_acts_by_the_new_row_of_the_account(
    manager: Manager, admin: httpx.Client, visitor: Visitor
) -> None:
    """Keys are known for minutes; the account is looked up again when it changes."""
    admin.post("/v1/secrets", json={"name": "x", "value": "value-of-x"}).raise_for_status()
    before = row(manager, "users", "id")
    new = "another horse battery staple"
    visitor.send("/settings/account/password", current=PASSWORD.decode(), new=new, again=new)
    account = row(manager, "users", "id")
    assert account != before
    admin.post("/v1/secrets", json={"name": "x", "value": "value-2-of-x"}).raise_for_status()
    assert account.items() <= rights(manager, "secret.write").items()


def test_a_deployment_reads_by_its_token(manager: Manager, admin: httpx.Client) -> None:
    admin.post("/v1/secrets", json={"name": "x", "value": "value-of-x"}).raise_for_status()
    made = admin.post("/v1/deployments", json={"name": "d", "secrets": ["x"]}).json()
    with manager.client(made["token"]) as client:
        client.post("/v1/deployment/secrets").raise_for_status()
    key, account = row(manager, "access_keys", "prefix", "kind = 'key'"), row(manager, "users", "id")
    token = row(manager, "access_keys", "prefix", "kind = 'token'")
    assert rights(manager, "secret.deliver") == token | key | account | row(manager, "deployments", "id")


def test_a_workload_reads_by_its_identity_and_gets_its_token_by_the_issuer_too(
    manager: Manager, admin: httpx.Client
) -> None:
    with running_issuer(Key.make("EdDSA", "EdDSA")) as issuer:
        admin.post("/v1/secrets", json={"name": "x", "value": "value-of-x"}).raise_for_status()
        admin.post("/v1/deployments", json={"name": "d", "secrets": ["x"]}).raise_for_status()
        body = {"name": "i", "deployment": "d", "issuer": issuer.url, "subject": "s"}
        admin.post("/v1/identities", json=body).raise_for_status()
        with manager.client(given(exchange(manager, issuer.token()))) as client:
            client.post("/v1/deployment/secrets").raise_for_status()
    rests_on = (
        row(manager, "identities", "id") | row(manager, "deployments", "id") | row(manager, "users", "id")
    )
    assert rights(manager, "secret.deliver") == rests_on
    assert rights(manager, "identity.exchange") == rests_on | row(manager, "issuers", "url")


def test_the_api_and_the_page_leave_them_out(admin: httpx.Client, visitor: Visitor) -> None:
    """They are in what is exported."""
    admin.post("/v1/secrets", json={"name": "x", "value": "value-of-x"}).raise_for_status()
    [record] = admin.get("/v1/audit", params={"action": "secret.create"}).json()["records"]
    assert "rights" not in record["details"] and "from" in record["details"]
    assert "access_keys" not in visitor.http.get("/settings/audit").text
    assert '"rights":[["access_keys"' in admin.get("/v1/audit/export").text.replace(" ", "")


def test_a_person_signs_in_by_the_row_that_has_the_password(manager: Manager, visitor: Visitor) -> None:
    """A password that had been replaced may have been put back for a moment."""
    assert rights(manager, "session.create") == row(manager, "users", "id")
