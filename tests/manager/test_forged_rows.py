"""What somebody who can write the database, but has no root key, gets from a manager by forging rows: nothing.

A forged row is refused where it is used, and named by the verification with which a manager begins.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from gusset.secrets.value import SecretValue
from gusset.vault.crypto.passwords import hash_password
from gusset.vault.storage.tables import ACCESS_KEYS
from tests.manager.conftest import ADMIN, PASSWORD, Manager
from tests.manager.test_integrity import eventually
from tests.manager.test_pages import Visitor
from tests.vault.conftest import run_sql

MEMBER = "mem@example.com"
BEFORE, VALUE = "the value before", "the value of now"
OWN_PASSWORD = b"a password of the attacker"
OWN_SESSION = "a session of the attacker"
OWN_KEY = f"gusset_key_aaaaaaaa_{'A' * 43}"


class Attacked:
    """A manager, and somebody who can write its database; some things are theirs."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.member = manager.member(MEMBER)  # their key; it has all scopes but `admin`
        self.visitor = Visitor(manager)
        with manager.client() as admin:
            self.other_team = admin.post("/v1/teams", json={"name": "other"}).json()["id"]
            for path in ("/v1/secrets", f"/v1/teams/{self.other_team}/secrets"):
                for value in (BEFORE, VALUE):
                    admin.post(path, json={"name": "x", "value": value}).raise_for_status()
            made = admin.post("/v1/deployments", json={"name": "model", "secrets": ["y"]})
            self.token = made.json()["token"]  # theirs, too
            assert self.visitor.sign_in(ADMIN, PASSWORD).status_code == 303
        assert self.visitor.http.get("/settings/people").status_code == 200

    def sql(self, statement: str, *values: Any) -> list[Any]:
        return run_sql(self.manager.database, statement, *values)

    def id_of(self, email: str) -> str:
        return str(self.sql("SELECT id FROM users WHERE email = ?", email)[0][0])

    def get(self, path: str, key: str) -> httpx.Response:
        with self.manager.client(key) as client:
            return client.get(path)

    def page(self, path: str, session: str | None = None) -> httpx.Response:
        """A page in the administrator's browser, or with a session of one's own."""
        if session is None:
            return self.visitor.http.get(path)
        cookies = {"gusset_session": session}
        return httpx.get(self.manager.address + path, cookies=cookies, trust_env=False, timeout=20)

    def deliver(self) -> httpx.Response:
        with self.manager.client(self.token) as client:
            return client.post("/v1/deployment/secrets")

    # --- forging

    def insert_session(self) -> None:
        hashed = hashlib.sha256(b"session:" + OWN_SESSION.encode()).digest()
        self.sql(
            "INSERT INTO sessions SELECT ?, user_id, created_at, seen_at, expires_at, changed_seq, mac FROM sessions",
            hashed,
        )

    def exchange_person_of_session(self) -> None:
        """Make the administrator's of the member's."""
        self.visitor.http.cookies.clear()
        assert self.visitor.sign_in(MEMBER, PASSWORD).status_code == 303
        self.sql("UPDATE sessions SET user_id = ?", self.id_of(ADMIN))

    def prolong_session(self) -> None:
        self.sql("UPDATE sessions SET expires_at = '2999-01-01T00:00:00.000Z'")

    def set_password(self) -> None:
        self.visitor.http.cookies.clear()
        hashed = hash_password(SecretValue(OWN_PASSWORD))
        self.sql("UPDATE users SET password = ? WHERE email = ?", hashed, ADMIN)

    def insert_key(self) -> None:
        columns = [name for name in ACCESS_KEYS.all_columns if name not in ("prefix", "hash")]
        self.sql(
            f"INSERT INTO access_keys (prefix, hash, {', '.join(columns)}) SELECT 'aaaaaaaa', ?, {', '.join(columns)}"
            " FROM access_keys WHERE user_id = ? AND kind = 'key'",
            hashlib.sha256(OWN_KEY.encode()).digest(),
            self.id_of(ADMIN),
        )

    def widen_scopes(self) -> None:
        self.sql(
            "UPDATE access_keys SET allows = ? WHERE prefix = ?",
            json.dumps(["secrets:read", "admin"]),
            self.member.split("_")[2],
        )

    def raise_role(self) -> None:
        self.visitor.http.cookies.clear()
        assert self.visitor.sign_in(MEMBER, PASSWORD).status_code == 303
        self.sql("UPDATE users SET role = 'admin' WHERE email = ?", MEMBER)

    def insert_membership(self) -> None:
        self.sql(
            "INSERT INTO members (team_id, user_id, changed_seq, mac) SELECT ?, user_id, changed_seq, mac FROM members"
            " WHERE user_id = ?",
            self.other_team,
            self.id_of(MEMBER),
        )

    def widen_token(self) -> None:
        self.sql("UPDATE access_keys SET allows = ? WHERE kind = 'token'", json.dumps(["y", "x"]))

    def revoke(self) -> None:
        with self.manager.client() as admin:
            admin.delete(f"/v1/api_keys/{self.member.split('_')[2]}").raise_for_status()

    def take_back_revocation(self) -> None:
        self.revoke()
        self.sql("UPDATE access_keys SET revoked_at = NULL")

    def insert_overlap(self) -> None:
        """Have the previous version delivered with the current one."""
        with self.manager.client() as admin:
            made = admin.post("/v1/deployments", json={"name": "model", "secrets": ["x"]})
            self.token = made.json()["token"]
        self.sql(
            "INSERT INTO secret_overlaps (secret_id, version, successor, ends_at, changed_seq, mac)"
            " SELECT id, 1, 2, '2999-01-01T00:00:00.000Z', changed_seq, mac FROM secrets"
        )


@pytest.fixture
def attacked(manager: Manager) -> Iterator[Attacked]:
    attacked = Attacked(manager)
    yield attacked
    attacked.visitor.http.close()


@pytest.mark.parametrize(
    ("forge", "use", "named"),
    [
        (Attacked.insert_session, lambda a: a.page("/settings/people", OWN_SESSION), "a session of"),
        (Attacked.exchange_person_of_session, lambda a: a.page("/settings/people"), "a session of"),
        (Attacked.prolong_session, lambda a: a.page("/settings/people"), "a session of"),
        (Attacked.set_password, lambda a: a.visitor.sign_in(ADMIN, OWN_PASSWORD), f"the account {ADMIN}"),
        (Attacked.insert_key, lambda a: a.get("/v1/people", OWN_KEY), "the key aaaaaaaa"),
        (Attacked.widen_scopes, lambda a: a.get("/v1/people", a.member), "the key "),
        (Attacked.raise_role, lambda a: a.page("/settings/people"), f"the account {MEMBER}"),
        (Attacked.widen_token, Attacked.deliver, "the key "),
        (Attacked.take_back_revocation, lambda a: a.get("/v1/secrets", a.member), "the key "),
        (Attacked.insert_overlap, Attacked.deliver, "the overlap of version 1 "),
    ],
    ids=lambda each: each.__name__ if getattr(each, "__name__", "<lambda>") != "<lambda>" else "",
)
def test_a_forged_row_is_refused_and_named(
    attacked: Attacked,
    forge: Callable[[Attacked], None],
    use: Callable[[Attacked], httpx.Response],
    named: str,
) -> None:
    """By the request that uses it, and by the verification of a manager that starts."""
    manager = attacked.manager
    forge(attacked)
    assert manager.stop() == 0
    manager.start()  # it knows no key, session or person yet

    response = use(attacked)

    assert response.status_code == 500
    assert "was altered in the database: it is not used" in response.text
    assert BEFORE not in response.text and VALUE not in response.text
    eventually(lambda: f": {named}" in manager.log.read_text())


def test_a_forged_membership_gives_nothing_and_is_named(attacked: Attacked) -> None:
    """It keeps the person from nothing else, either."""
    manager = attacked.manager
    attacked.insert_membership()
    assert manager.stop() == 0
    manager.start()

    assert attacked.get(f"/v1/teams/{attacked.other_team}/secrets", attacked.member).status_code == 404
    assert attacked.get("/v1/secrets", attacked.member).status_code == 200
    eventually(lambda: ": the membership of " in manager.log.read_text())


def test_no_value_is_stored_in_another_team_than_the_one_that_is_meant(attacked: Attacked) -> None:
    """Requests that name no team are for the default one, which somebody is in no more if the row was altered."""
    manager, body = attacked.manager, {"name": "new", "value": VALUE}
    declaration = {"name": "twice", "secrets": ["x"]}
    with manager.client() as admin:
        added = f"/v1/teams/{attacked.other_team}/members/{attacked.id_of(MEMBER)}"
        admin.put(added).raise_for_status()
        for team in ({}, {"team_id": attacked.other_team}):
            admin.post("/v1/deployments", json=declaration | team).raise_for_status()
    attacked.sql(
        "UPDATE members SET mac = x'00' WHERE user_id = ? AND team_id <> ?",
        attacked.id_of(MEMBER),
        attacked.other_team,
    )
    assert manager.stop() == 0
    manager.start()

    with manager.client(attacked.member) as member:
        refused = member.post("/v1/secrets", json=body)
        assert (refused.status_code, refused.json()["code"]) == (500, "integrity")
        assert VALUE not in refused.text
        refused = member.delete("/v1/deployments/twice")
        assert (refused.status_code, refused.json()["code"]) == (500, "integrity")
        named = member.post(f"/v1/teams/{attacked.other_team}/secrets", json=body)
        assert named.status_code == 200, named.text
    attacked.visitor.http.cookies.clear()
    assert attacked.visitor.sign_in(MEMBER, PASSWORD).status_code == 303
    assert (
        attacked.visitor.http.get("/settings/secrets").status_code == 500
    )  # its form would be of another team


def test_a_revoked_key_that_is_rolled_back_with_its_hmac_is_named(attacked: Attacked) -> None:
    """It is a row that the manager has signed, so it is the log that knows better."""
    manager, prefix = attacked.manager, attacked.member.split("_")[2]
    [(changed_seq, mac)] = attacked.sql("SELECT changed_seq, mac FROM access_keys WHERE prefix = ?", prefix)
    attacked.revoke()
    assert attacked.get("/v1/secrets", attacked.member).status_code == 401
    attacked.sql(
        "UPDATE access_keys SET revoked_at = NULL, changed_seq = ?, mac = ? WHERE prefix = ?",
        changed_seq,
        mac,
        prefix,
    )
    assert manager.stop() == 0
    manager.start()

    eventually(lambda: f"the key {prefix} was rolled back to its state of record" in manager.log.read_text())
    assert httpx.get(manager.address + "/readyz", trust_env=False).json()["integrity"]["problems"] == 1


def test_a_token_that_was_hidden_while_its_makers_key_was_revoked_reads_nothing(attacked: Attacked) -> None:
    """Its row is put back as it was, and agrees with the log."""
    manager, columns = attacked.manager, ", ".join(ACCESS_KEYS.all_columns)
    with manager.client(attacked.member) as member:
        made = member.post("/v1/deployments", json={"name": "model", "secrets": ["y"]})
    attacked.token = made.json()["token"]
    assert attacked.deliver().status_code == 200
    prefix = attacked.token.split("_")[2]
    [row] = attacked.sql(f"SELECT {columns} FROM access_keys WHERE prefix = ?", prefix)
    attacked.sql("DELETE FROM access_keys WHERE prefix = ?", prefix)
    attacked.revoke()
    places = ", ".join("?" * len(row))
    attacked.sql(f"INSERT INTO access_keys ({columns}) VALUES ({places})", *row)

    response = attacked.deliver()

    assert (response.status_code, response.json()["code"]) == (401, "not_signed_in")


def test_an_altered_team_hides_no_token_and_no_deployment_from_being_ended(attacked: Attacked) -> None:
    """Not found would be taken for ended already."""
    manager, prefix = attacked.manager, attacked.token.split("_")[2]
    assert manager.stop() == 0
    manager.start()  # which forgets the teams that it has read
    [(team,)] = attacked.sql("SELECT id FROM teams WHERE name = 'default'")
    attacked.sql("UPDATE teams SET mac = ? WHERE id = ?", bytes(32), team)
    with manager.client() as admin:
        unnamed = admin.delete("/v1/deployments/model")
        assert (unnamed.status_code, unnamed.json()["code"]) == (500, "integrity")
        page = attacked.page(f"/settings/deployments/{attacked.sql('SELECT id FROM deployments')[0][0]}")
        assert page.status_code == 500 and "altered" in page.text
        assert admin.delete(f"/v1/tokens/{prefix}").status_code == 200
        removed = admin.delete("/v1/deployments/model", params={"team_id": team})
        assert removed.status_code == 200, removed.text
        again = admin.delete("/v1/deployments/model", params={"team_id": team})
        assert again.status_code == 404
    assert attacked.deliver().status_code == 401


def test_an_altered_membership_makes_no_token_look_as_if_there_were_none(attacked: Attacked) -> None:
    prefix = attacked.token.split("_")[2]
    attacked.sql("UPDATE members SET mac = ? WHERE user_id = ?", bytes(32), attacked.id_of(MEMBER))
    assert attacked.manager.stop() == 0
    attacked.manager.start()
    with attacked.manager.client(attacked.member) as member:
        refused = member.delete(f"/v1/tokens/{prefix}")
        assert (refused.status_code, refused.json()["code"]) == (500, "integrity")
        assert member.delete("/v1/tokens/aaaaaaaa").status_code == 404


def test_a_team_that_was_altered_is_in_the_way_of_no_member_of_another(attacked: Attacked) -> None:
    attacked.sql("UPDATE teams SET mac = ? WHERE id = ?", bytes(32), attacked.other_team)
    for path in ("/v1/deployments/model", "/v1/deployments/model/tokens"):
        assert attacked.get(path, attacked.member).status_code == 200
    with attacked.manager.client(attacked.member) as member:
        assert member.delete("/v1/deployments/model").status_code == 200
