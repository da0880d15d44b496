"""Signs the rows of a vault that an older version of gusset wrote, once, while it is migrated.

Only rows that agree with the audit log are signed. Those that contradict it stay unsigned,
so they are refused wherever they are used. One audit record has the HMACs of all that were
signed, and names the columns that the log could not vouch for.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from gusset.errors import IntegrityError
from gusset.secrets.info import DEFAULT_TEAM
from gusset.vault.audit.actions import Action
from gusset.vault.audit.chain_walk import ALL_RECORDS, ChainWalk, record_of
from gusset.vault.audit.events import AuditEvent
from gusset.vault.audit.older_log import NOT_COMPARED, Known, OlderLog, presence
from gusset.vault.crypto.keyring import Keyring
from gusset.vault.storage.connection import Transaction, iterate, unverified_rows
from gusset.vault.storage.signed_rows import SignedTable
from gusset.vault.storage.tables import (
    ACCESS_KEYS,
    DEPLOYMENTS,
    MEMBERS,
    SECRET_VERSIONS,
    SECRETS,
    TEAMS,
    USERS,
)

log = logging.getLogger("gusset.vault")


def sign_existing_rows(transaction: Transaction, vault: str, keyring: Keyring) -> AuditEvent:
    """Sign every row that agrees with the audit log. The event and warnings name those that differ, and how.

    Raises:
        IntegrityError: the log itself is not intact.
    """
    older = _followed(transaction, vault, keyring)
    rows = _OlderRows(transaction, older)
    differences = [difference for table in rows.tables for difference in _sign(transaction, rows, table)]
    for difference in sorted(differences):
        log.warning("the audit log contradicts the database: %s", difference)
    details: dict[str, Any] = {
        "not_compared": {table: list(names) for table, names in NOT_COMPARED.items() if names}
    }
    if differences:
        details["differences"] = sorted(differences)
    return AuditEvent("gusset", Action.VAULT_SIGN, vault, details=details)


def _followed(transaction: Transaction, vault: str, keyring: Keyring) -> OlderLog:
    walk, older = ChainWalk(vault), OlderLog()
    for record in map(record_of, iterate(transaction, ALL_RECORDS)):
        if (problem := walk.follow(record, keyring)) is not None:
            raise _not_intact(problem)
        older.follow(record)
    if walk.head.seq == 0:
        raise _not_intact("every record was removed")
    return older


def _not_intact(problem: str) -> IntegrityError:
    return IntegrityError(
        f"the audit log is not intact, so the vault was not upgraded: {problem}",
        hint="restore the database from a backup. Nothing was changed",
    )


def _sign(transaction: Transaction, rows: _OlderRows, table: SignedTable) -> Iterator[str]:
    """Sign the rows of a table that agree with the log. Yields the differences of the others."""
    known, found = rows.tables[table], [(rows.name(table, row), row) for row in rows.of[table]]
    times = Counter(name for name, _ in found)
    for name, row in found:
        problem = _problem(known.get(name), rows.facts(table, row), times[name])
        if problem is None:
            try:
                transaction.update(table, row)
            except TypeError:  # SQLite's columns hold any type
                problem = "a column holds another type"
        if problem is not None:
            yield f"{table.name}: {table.describe(row)}: {problem}"
    for name in sorted(known.keys() - times.keys()):
        text = name if isinstance(name, str) else "/".join(map(str, name))
        yield f"{table.name}: {text} of record {known[name].seq} is missing"


def _problem(known: Known | None, facts: Mapping[str, Any], times: int) -> str | None:
    if known is None:
        return "no record tells of its creation"
    if times > 1:
        return f"record {known.seq} knows one, but there are {times}"
    wrong = [
        f"its {column} is {_text(expected)} and not {_text(facts[column])}"
        for column, expected in known.facts.items()
        if type(facts[column]) is not type(expected) or facts[column] != expected
    ]
    return f"by record {known.seq} {', '.join(wrong)}" if wrong else None


def _text(value: object) -> str:
    return "empty" if value is None else str(value)


class _OlderRows:
    """The rows of each table, with the names and facts that the log knows them by."""

    def __init__(self, transaction: Transaction, older: OlderLog) -> None:
        self.tables: dict[SignedTable, Mapping[Any, Known]] = {
            TEAMS: older.teams,
            USERS: older.people,
            MEMBERS: older.members,
            DEPLOYMENTS: older.deployments,
            ACCESS_KEYS: older.keys,
            SECRETS: older.secrets,
            SECRET_VERSIONS: older.versions,
        }
        # The log does not have the prefixes of links to choose a password: they are removed, like sessions.
        for row in [row for row in unverified_rows(transaction, ACCESS_KEYS) if row.kind == "link"]:
            transaction.delete(ACCESS_KEYS, row)
        self.of = {table: list(unverified_rows(transaction, table)) for table in self.tables}
        self._emails = {row.id: row.email for row in self.of[USERS]}
        self._first_tokens = dict(self._deployments_known(older))
        older.end(next((row.id for row in self.of[TEAMS] if row.name == DEFAULT_TEAM), None))

    def _deployments_known(self, older: OlderLog) -> Iterator[tuple[str, str]]:
        """The ids of deployments that the log knows, each with the prefix of its first token.

        The log has no ids: a deployment is what its first token is for, if team and name agree.
        """
        deployments = {row.id: row for row in self.of[DEPLOYMENTS]}
        for token in self.of[ACCESS_KEYS]:
            known, row = older.deployments.get(token.prefix), deployments.get(token.deployment_id)
            if known and row and (row.team_id, row.name) == (known.facts["team_id"], known.facts["name"]):
                yield row.id, token.prefix

    def name(self, table: SignedTable, row: Any) -> Any:
        """By what the log knows the row: a key of its mapping in `tables`."""
        if table is USERS:
            return row.email
        if table is MEMBERS:
            return row.team_id, self._emails.get(row.user_id)
        if table is DEPLOYMENTS:
            return self._first_tokens.get(row.id)
        key = row[: len(table.key)]
        return key if len(key) > 1 else key[0]

    def facts(self, table: SignedTable, row: Any) -> dict[str, Any]:
        """The columns of the row as the log knows them."""
        facts: dict[str, Any] = {column: getattr(row, column) for column in table.columns}
        for column in ("password", "sealed", "disabled_at", "deleted_at", "revoked_at", "destroyed_at"):
            if column in facts:
                facts[column] = presence(facts[column])
        if table is ACCESS_KEYS:
            facts["user_id"] = _named(row.user_id, self._emails)
            facts["deployment_id"] = _named(row.deployment_id, self._first_tokens)
        return facts


def _named(row_id: Any, names: Mapping[Any, str]) -> str | None:
    """How the log refers to the row with that id."""
    return None if row_id is None else names.get(row_id, "unknown")
