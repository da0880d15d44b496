"""Where values leave the vault. No value is returned before its audit record is on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from gusset.errors import IntegrityError
from gusset.secrets.name import check_name, fold_name
from gusset.secrets.sources.source import Delivered, Previous
from gusset.secrets.value import SecretValue
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.services.change_poller import LIST_REVISIONS, Revision
from gusset.vault.services.overlaps import Overlap, find_overlaps
from gusset.vault.services.secret_rows import FIND_MANY, FIND_VERSION, SecretRows, VersionStore, damaged
from gusset.vault.storage.connection import Connection, Transaction
from gusset.vault.storage.sql import Statement

_SET_LAST_READ = Statement("UPDATE secrets SET last_read_at = :at WHERE id IN (:ids...)")


@dataclass(frozen=True, slots=True)
class DeliveredValues:
    """The values by the spelling that was requested; the revisions by folded name."""

    values: Mapping[str, Delivered]
    revisions: Mapping[str, Revision]


class SecretDelivery:
    """Delivers values of one team's secrets, to deployments and to a person at a terminal."""

    def __init__(self, writer: Writer, clock: Clock, rows: SecretRows, versions: VersionStore) -> None:
        self._writer = writer
        self._clock = clock
        self._rows = rows
        self._versions = versions

    def deliver(
        self,
        names: Collection[str],
        *,
        actor: str,
        deployment: str,
        on_read: Callable[[Transaction, Mapping[str, int]], object] | None = None,
        with_previous: bool = True,
    ) -> DeliveredValues:
        """The current values of those of `names` that exist, for a deployment.

        During an overlap the previous version comes with them, unless `with_previous` is false. One audit
        record covers all of them: their versions, and the names that are missing. It is on disk
        before this returns. `on_read` is called in its transaction with the version of each of `names`, 0
        for one that is missing.

        Raises:
            IntegrityError: the stored bytes of one of them do not open, or its row was altered.
        """
        wanted = {name: fold_name(check_name(name)) for name in names}
        if not wanted and on_read is None:
            return DeliveredValues({}, {})

        def write(transaction: Transaction) -> WriteResult[DeliveredValues]:
            secrets = self._find(transaction, wanted)
            current = self._current_versions(transaction, secrets.values())
            previous = self._previous(transaction, secrets.values()) if with_previous else {}
            values = {
                name: Delivered(
                    self._versions.open(transaction, row, current[row.id]),
                    row.current_version,
                    "the vault",
                    previous.get(row.id),
                )
                for name, row in secrets.items()
                if row.current_version is not None
            }
            versions = {name: value.version or 0 for name, value in values.items()}
            if on_read is not None:
                on_read(transaction, dict.fromkeys(wanted, 0) | versions)
            if not wanted:
                return WriteResult(DeliveredValues({}, {}), [])
            self._record_read(transaction, [secrets[name] for name in values])
            ids = {name: secrets[name].id for name in values}
            details: dict[str, Any] = {"team": self._rows.team_id, "versions": versions, "ids": ids}
            if kept := {name: each.previous.version for name, each in values.items() if each.previous}:
                details["previous"] = kept
            if missing := sorted(wanted.keys() - values.keys()):
                details["missing"] = missing
            outcome = "ok" if values else "secret_not_found"
            event = AuditEvent(actor, Action.SECRET_DELIVER, deployment, outcome=outcome, details=details)
            revisions = {row.folded: _revision(row, current.get(row.id)) for row in secrets.values()}
            return WriteResult(DeliveredValues(values, revisions), [event])

        return self._writer.run(AuditEvent(actor, Action.SECRET_DELIVER, deployment), write)

    def _find(self, connection: Connection, wanted: Mapping[str, str]) -> dict[str, Any]:
        """The rows of those secrets that exist, by the spelling in `wanted`.

        Raises:
            IntegrityError: one was altered, or there are two with one name.
        """
        parameters = {"team": self._rows.team_id, "folded": list(wanted.values())}
        rows = connection.all(FIND_MANY, parameters)
        by_folded = {row.folded: row for row in rows}
        if len(by_folded) < len(rows):
            raise IntegrityError(
                "the database has two secrets with one name: their index was removed",
                hint="`gusset audit verify` lists what differs from the audit log",
            )
        return {name: by_folded[folded] for name, folded in wanted.items() if folded in by_folded}

    def _current_versions(self, connection: Connection, secrets: Collection[Any]) -> dict[str, Any]:
        """The rows of the current versions of `secrets`, by the secret's id.

        Raises:
            IntegrityError: one is missing or was altered.
        """
        wanted = [row for row in secrets if row.current_version is not None]
        keys = [{"id": row.id, "version": row.current_version} for row in wanted]
        found = {}
        for row, version in zip(wanted, connection.one_valid_each(FIND_VERSION, keys), strict=True):
            if version is None or version.sealed is None:
                raise damaged(row, row.current_version)
            found[row.id] = version
        return found

    def _previous(self, connection: Connection, secrets: Collection[Any]) -> dict[str, Previous]:
        """The versions before the current ones of `secrets` that are still readable, by the secret's id."""
        now = self._clock()
        overlaps = find_overlaps(connection, secrets, timestamp(now))
        found = {}
        for row in secrets:
            overlap = overlaps.get(row.id)
            if overlap is None:
                continue
            version = connection.one(FIND_VERSION, {"id": row.id, "version": overlap.version})
            if (
                version is not None and version.sealed is not None
            ):  # an older version of gusset may have destroyed it
                value = self._versions.open(connection, row, version)
                found[row.id] = Previous(value, overlap.version, _monotonic_end(overlap, now))
        return found

    def _record_read(self, connection: Connection, rows: Collection[Any]) -> None:
        """Store when they were last read, to the second: replicas that read together share an update."""
        now = self._clock()
        due = timestamp(now - timedelta(seconds=1))
        ids = [row.id for row in rows if row.last_read_at is None or row.last_read_at < due]
        if ids:
            connection.run(_SET_LAST_READ, {"ids": ids, "at": timestamp(now)})

    def reveal(self, name: str, *, actor: str, version: int | None = None) -> SecretValue:
        """A value, for a person at a terminal: of `version`, or the current one.

        Raises:
            SecretNotFound: there is no such secret or version, or it is destroyed.
            IntegrityError: the stored bytes do not open.
        """
        check_name(name)

        def write(transaction: Transaction) -> WriteResult[SecretValue]:
            row = self._rows.get_or_raise(transaction, name)
            wanted = version if version is not None else row.current_version
            value = self._versions.read(transaction, row, wanted)
            event = AuditEvent(actor, Action.SECRET_REVEAL, row.name, details={"version": wanted})
            return WriteResult(value, [event])

        return self._writer.run(AuditEvent(actor, Action.SECRET_REVEAL, name), write)

    def reveal_all(
        self, names: Sequence[str], *, actor: str, to_text: Callable[[str, SecretValue], bytes]
    ) -> list[bytes]:
        """The current values as `to_text` writes each, all or none, with an audit record for each.

        Raises:
            SecretNotFound: one of them does not exist or has no value.
            GussetError: as raised by `to_text`. The audit log then has that the request was refused.
            IntegrityError: the stored bytes do not open.
        """
        for name in names:
            check_name(name)

        def write(transaction: Transaction) -> WriteResult[list[bytes]]:
            texts, events = [], []
            for name in names:
                row = self._rows.get_or_raise(transaction, name)
                value = self._versions.read(transaction, row, row.current_version)
                texts.append(to_text(row.name, value))
                details = {"version": row.current_version}
                events.append(AuditEvent(actor, Action.SECRET_REVEAL, row.name, details=details))
            return WriteResult(texts, events)

        intent = AuditEvent(actor, Action.SECRET_REVEAL, names[0] if len(names) == 1 else "several")
        return self._writer.run(intent, write)

    def revisions(self, connection: Connection, names: Collection[str]) -> frozenset[Revision]:
        """The revisions of those of `names` that exist. Cheap, and not audited.

        They differ from before when `deliver` may return something else.
        """
        folded = sorted({fold_name(check_name(name)) for name in names})
        rows = connection.all(LIST_REVISIONS, {"team": self._rows.team_id, "folded": folded})
        return frozenset(Revision(row.id, row.revision, row.write_id) for row in rows)


def _monotonic_end(overlap: Overlap, now: datetime) -> float:
    return time.monotonic() + (datetime.fromisoformat(overlap.ends_at) - now).total_seconds()


def _revision(secret: Any, version: Any) -> Revision:
    return Revision(secret.id, secret.revision, version and (version.write_id or version.created_at))
