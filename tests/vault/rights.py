"""What bob may do, and rows of it that somebody hides who can write the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from gusset.errors import NotSignedIn
from gusset.secrets.value import SecretValue
from gusset.vault import Vault
from gusset.vault.services.identity_rules import IdentityRule
from gusset.vault.services.issuers import new_issuer
from gusset.vault.services.people import TokenChoice
from gusset.vault.services.person import Person
from gusset.vault.storage.signed_rows import SignedTable

if TYPE_CHECKING:
    from tests.vault.conftest import Sql

ADA, BOB = "ada@example.com", "bob@example.com"
ISSUER = "https://issuer.example"
PASSWORD = SecretValue(b"correct horse battery staple")
NEW_PASSWORD = SecretValue(b"another horse battery staple")


@dataclass
class Rights:
    """What bob may do, an administrator whose key has made the token of a deployment and its identity."""

    vault: Vault
    sql: Sql
    bob: Person
    session: str
    key: SecretValue
    token: SecretValue
    team: str

    @property
    def key_prefix(self) -> str:
        return prefix(self.key)

    @property
    def with_key(self) -> str:
        """What bob is called in records when he uses his key."""
        return f"{BOB} (key {self.key_prefix})"

    def token_is_valid(self) -> bool:
        return self.is_valid(self.token, "token")

    def key_is_valid(self) -> bool:
        return self.is_valid(self.key, "key")

    def is_valid(self, key: SecretValue, kind: Any) -> bool:
        try:
            self.vault.access_keys.authenticate(key, kinds=[kind])
        except NotSignedIn:
            return False
        return True

    def add_like(self, table: SignedTable, values: Mapping[str, Any]) -> None:
        """Insert a row with these values, and the others of a row of the table."""
        names = [name for name in table.all_columns if name not in values]
        self.sql(
            f"INSERT INTO {table.name} ({', '.join([*values, *names])})"
            f" SELECT {', '.join([*('?' for _ in values), *names])} FROM {table.name} LIMIT 1",
            *values.values(),
        )

    def revoke_key(self) -> None:
        self.vault.access_keys.revoke(self.key_prefix, actor=ADA, allowed=lambda _: True)


def prefix(key: SecretValue) -> str:
    return key.reveal().decode().split("_")[2]


@pytest.fixture
def rights(vault: Vault, sql: Sql) -> Rights:
    vault.people.create_first(ADA, PASSWORD, actor="setup")
    [team] = vault.teams.all()
    bob, link = vault.invitations.invite(BOB, role="admin", team_ids=[team.id], actor=ADA)
    vault.invitations.accept(link, PASSWORD)
    _, session = vault.sessions.sign_in(BOB, PASSWORD)
    info, key = vault.access_keys.create(bob.id, "key", scopes=["deployments"], gives=["*"], actor=BOB)
    by_key = f"{BOB} (key {info.prefix})"
    deployment, _, token = vault.deployments.register(team.id, "model", ["x"], actor=by_key)
    vault.identities.add(
        "workload",
        IdentityRule(issuer=ISSUER, audience="gusset", subject="workload", claims={}),
        deployment=deployment.id,
        new_issuer=new_issuer(ISSUER, f"{ISSUER}/keys"),
        may_add_issuer=True,
        actor=by_key,
    )
    return Rights(vault, sql, bob, session.reveal().decode(), key, token, team.id)


def disable(rights: Rights, tokens: TokenChoice) -> None:
    rights.vault.people.update(rights.bob.id, disabled=True, tokens=tokens, actor=ADA)


class Hidden:
    """Rows that are removed while something ends, and put back later: they verify, and the log agrees."""

    def __init__(self, rights: Rights, table: SignedTable, column: str, value: Any) -> None:
        names = ", ".join(table.all_columns)
        self._rights, self._table = rights, table
        self.rows = rights.sql(f"SELECT {names} FROM {table.name} WHERE {column} = ?", value)
        assert self.rows
        rights.sql(f"DELETE FROM {table.name} WHERE {column} = ?", value)

    def put_back(self) -> None:
        names = self._table.all_columns
        for row in self.rows:
            places = ", ".join("?" * len(names))
            self._rights.sql(f"INSERT INTO {self._table.name} ({', '.join(names)}) VALUES ({places})", *row)
