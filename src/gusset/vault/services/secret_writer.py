"""Changes of secrets, each in one transaction with its audit record.

Every change names its `actor` and checks the name before anything is recorded:
a text that is no valid name may be a value in the wrong place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from gusset.errors import Conflict, InvalidValue, SecretNotFound, VersionConflict
from gusset.secrets.info import SecretInfo
from gusset.secrets.name import check_name, fold_name
from gusset.secrets.value import SecretValue, check_length
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent, state_details
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.services.overlaps import Overlap, begin_overlap, check_overlap, end_overlap
from gusset.vault.services.secret_rows import LIST_VERSIONS, SecretRows, VersionStore
from gusset.vault.storage.connection import Connection, Transaction
from gusset.vault.storage.signed_rows import Select
from gusset.vault.storage.tables import SECRET_VERSIONS, SECRETS

MAX_NOTE = 1000  # characters
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # what Python makes of a byte of an argument that is not UTF-8

_FIND_DELETED = Select(
    SECRETS,
    "team_id = :team",
    "folded = :folded",
    "deleted_at IS NOT NULL",
    then="ORDER BY deleted_at DESC, updated_at DESC LIMIT 1",
)
_FIND_DELETED_BY_ID = Select(SECRETS, "team_id = :team", "id = :id", "deleted_at IS NOT NULL")

# (connection, team id, folded name) -> the deployments that use the secret now.
InUse = Callable[[Connection, str, str], Sequence[str]]


class SecretWriter:
    """Changes one team's secrets."""

    def __init__(
        self,
        writer: Writer,
        clock: Clock,
        *,
        rows: SecretRows,
        versions: VersionStore,
        in_use: InUse,
        erase_overwritten: Callable[[], None],
        overwrite_spellings: bool = False,
    ) -> None:
        """`erase_overwritten` removes from disk what a transaction has overwritten, as far as possible."""
        self._erase_overwritten = erase_overwritten
        self._writer = writer
        self._clock = clock
        self._rows = rows
        self._versions = versions
        self._in_use = in_use
        self._overwrite_spellings = overwrite_spellings

    def set(
        self,
        name: str,
        value: SecretValue,
        *,
        actor: str,
        note: str | None = None,
        expires_at: datetime | None = None,
        expect_version: int | None = None,
        overlap: timedelta | None = None,
    ) -> SecretInfo:
        """Create the secret `name`, or give it a new version.

        `expect_version` is the version that the caller believes to be current,
        0 for a secret that must not exist yet. `note` and `expires_at` (aware;
        a reminder, nothing expires by itself) are left unchanged when None.
        With `overlap` the previous version stays readable for so long.

        Raises:
            InvalidName, InvalidValue: see `check_name`, `check_length`.
            Conflict: the name exists in another spelling, or another version is current.
        """
        check_name(name)
        check_length(value.reveal())
        columns = _annotation(note, expires_at)
        if overlap is not None:
            check_overlap(overlap)

        def write(transaction: Transaction) -> WriteResult[SecretInfo]:
            before = self._rows.find(transaction, name) if overlap is not None else None
            row = self._put(transaction, name, value, actor=actor, expect_version=expect_version)
            if columns:
                row = transaction.update(SECRETS, row, **columns)
            info, details = self._rows.info(row), {}
            if overlap is not None and before is not None and before.current_version is not None:
                kept = Overlap(before.current_version, timestamp(self._clock() + overlap))
                begin_overlap(transaction, row, kept)
                details = {"overlap": {"version": kept.version, "ends_at": kept.ends_at}}
            return WriteResult(info, [_set_event(actor, info, details)])

        lookups = (self._rows.lookup(name),)
        return self._writer.run(AuditEvent(actor, Action.SECRET_WRITE, name), write, lookups)

    def set_many(self, values: Sequence[tuple[str, SecretValue]], *, actor: str) -> list[SecretInfo]:
        """`set` for each, all or none."""
        for name, value in values:
            check_name(name)
            check_length(value.reveal())

        def write(transaction: Transaction) -> WriteResult[list[SecretInfo]]:
            rows = [self._put(transaction, name, value, actor=actor) for name, value in values]
            infos = [self._rows.info(row) for row in rows]
            return WriteResult(infos, [_set_event(actor, info) for info in infos])

        names = ", ".join(name for name, _ in values)
        lookups = [self._rows.lookup(name) for name, _ in values]
        return self._writer.run(AuditEvent(actor, Action.SECRET_WRITE, names), write, lookups)

    def _put(
        self,
        transaction: Transaction,
        name: str,
        value: SecretValue,
        *,
        actor: str,
        expect_version: int | None = None,
    ) -> Any:
        row = self._rows.find(transaction, name)
        _check_expected(name, row, expect_version)
        if row is None:
            return self._versions.create(transaction, name, value, actor=actor)
        if row.name != name and not self._overwrite_spellings:
            raise Conflict(
                f"{name} is another spelling of the secret {row.name}",
                hint=f'write {row.name}, or set name_collisions = "overwrite" if both are meant to be one',
            )
        return self._versions.add(transaction, row, value, actor=actor)

    def rollback(self, name: str, version: int, *, actor: str) -> SecretInfo:
        """Make the value of an older version current again, as a new version.

        Raises:
            SecretNotFound: there is no such secret or version, or the version is destroyed.
        """
        check_name(name)

        def write(transaction: Transaction) -> WriteResult[SecretInfo]:
            row = self._rows.get_or_raise(transaction, name)
            value = self._versions.read(transaction, row, version)
            row = self._versions.add(transaction, row, value, actor=actor)
            from gusset.vault.services.provider_rotations import copy_credential  # slow to import

            copy_credential(transaction, row, version)
            info = self._rows.info(row)
            return WriteResult(info, [_change_event(actor, Action.SECRET_ROLLBACK, info, {"from": version})])

        return self._writer.run(AuditEvent(actor, Action.SECRET_ROLLBACK, name), write)

    def annotate(
        self,
        name: str,
        *,
        actor: str,
        note: str | None = None,
        expires_at: datetime | Literal["never"] | None = None,
        rotate_every: timedelta | Literal["never"] | None = None,
    ) -> SecretInfo:
        """Change note, expiry date and the interval of rotations.

        None leaves them unchanged; an empty note and "never" clear them.

        Raises:
            SecretNotFound: there is no such secret.
            InvalidValue: the note is too long, or the interval is.
        """
        check_name(name)
        columns = _annotation(note, expires_at)
        changed = sorted([*columns, *(["rotate_every"] if rotate_every is not None else [])])

        def write(transaction: Transaction) -> WriteResult[SecretInfo]:
            row = self._rows.get_or_raise(transaction, name)
            if columns:
                row = transaction.update(SECRETS, row, **columns)
            if rotate_every is not None:
                from gusset.vault.services.rotation_schedules import set_interval  # slow to import

                set_interval(transaction, row.id, rotate_every)
            info = self._rows.info(row)
            event = _change_event(actor, Action.SECRET_ANNOTATE, info, {"changed": changed})
            return WriteResult(info, [event])

        return self._writer.run(AuditEvent(actor, Action.SECRET_ANNOTATE, name), write)

    def delete(self, name: str, *, actor: str, force: bool = False) -> SecretInfo:
        """Delete a secret and its previous version for every reader; `restore` brings back the current one.

        Raises:
            SecretNotFound: there is no such secret.
            Conflict: a running deployment uses it, and `force` is false.
        """
        check_name(name)

        def write(transaction: Transaction) -> WriteResult[SecretInfo]:
            row = self._rows.get_or_raise(transaction, name)
            users = self._in_use(transaction, self._rows.team_id, row.folded)
            if users and not force:
                raise Conflict(
                    f"{row.name} is in use by {', '.join(users)}",
                    hint="stop them first, or force the deletion: they lose the secret at once",
                )
            info = self._rows.info(self._change(transaction, row, deleted_at=transaction.at))
            end_overlap(transaction, row.id)
            return WriteResult(info, [_change_event(actor, Action.SECRET_DELETE, info)])

        return self._writer.run(AuditEvent(actor, Action.SECRET_DELETE, name), write)

    def restore(self, name_or_id: str, *, actor: str) -> SecretInfo:
        """Bring back the most recently deleted secret of that name, or the deleted secret with that id.

        Raises:
            SecretNotFound: there is no such deleted secret.
            Conflict: a new secret has the name now.
        """
        check_name(name_or_id)

        def write(transaction: Transaction) -> WriteResult[SecretInfo]:
            row = self._find_deleted(transaction, name_or_id)
            if existing := self._rows.find(transaction, row.name):
                raise Conflict(
                    f"there is a new secret {existing.name}, so the deleted one cannot be restored"
                )
            info = self._rows.info(self._change(transaction, row, deleted_at=None))
            return WriteResult(info, [_change_event(actor, Action.SECRET_RESTORE, info)])

        return self._writer.run(AuditEvent(actor, Action.SECRET_RESTORE, name_or_id), write)

    def _find_deleted(self, connection: Connection, name_or_id: str) -> Any:
        team = self._rows.team_id
        row = connection.one(_FIND_DELETED_BY_ID, {"team": team, "id": name_or_id}) or connection.one(
            _FIND_DELETED, {"team": team, "folded": fold_name(name_or_id)}
        )
        if row is None:
            raise SecretNotFound(
                f"there is no deleted secret {name_or_id}", hint="see `gusset secret list --deleted`"
            )
        return row

    def destroy(self, name: str, versions: Collection[int] | None = None, *, actor: str) -> SecretInfo:
        """Destroy the sealed bytes of `versions` (None: all) for good; their rows stay.

        The newest remaining version becomes current. An overlap of a destroyed version ends at once.

        Raises:
            SecretNotFound: there is no such secret, or not all of these versions.
        """
        check_name(name)

        def write(transaction: Transaction) -> WriteResult[SecretInfo]:
            row = self._rows.get_or_raise(transaction, name)
            rows = transaction.all(LIST_VERSIONS, {"id": row.id})
            existing = {found.version for found in rows}
            wanted = existing if versions is None else set(versions)
            if unknown := sorted(wanted - existing):
                raise SecretNotFound(f"{row.name} has no version {', '.join(map(str, unknown))}")
            sealed = {found.version: found for found in rows if found.sealed is not None}
            destroyed, current = sorted(sealed.keys() & wanted), max(sealed.keys() - wanted, default=None)
            for version in destroyed:
                transaction.update(SECRET_VERSIONS, sealed[version], sealed=None, destroyed_at=transaction.at)
            end_overlap(transaction, row.id, of_versions=destroyed)
            info = self._rows.info(self._change(transaction, row, current_version=current))
            event = _change_event(actor, Action.SECRET_DESTROY, info, {"destroyed": destroyed})
            return WriteResult(info, [event])

        info = self._writer.run(AuditEvent(actor, Action.SECRET_DESTROY, name), write)
        self._erase_overwritten()
        return info

    def _change(self, transaction: Transaction, row: Any, **values: Any) -> Any:
        return transaction.update(
            SECRETS, row, **values, updated_at=transaction.at, revision=row.revision + 1
        )


def _set_event(actor: str, info: SecretInfo, more: Mapping[str, Any] = {}) -> AuditEvent:
    action = Action.SECRET_CREATE if info.version == 1 else Action.SECRET_WRITE
    return _change_event(actor, action, info, more)


def _change_event(actor: str, action: Action, info: SecretInfo, more: Mapping[str, Any] = {}) -> AuditEvent:
    """The event of a change, with the state that it led to: `log_state` compares deliveries with it."""
    return AuditEvent(actor, action, info.name, details={**state_details(info), **more})


def _annotation(note: str | None, expires_at: datetime | Literal["never"] | None) -> dict[str, str | None]:
    """The columns to change for a note and an expiry date."""
    columns: dict[str, str | None] = {}
    if note is not None:
        if len(note) > MAX_NOTE or "\0" in note:
            raise InvalidValue(f"a note can have at most {MAX_NOTE} characters, and no NUL")
        if _SURROGATE.search(note):
            raise InvalidValue("the note is not UTF-8")
        columns["note"] = note or None
    if expires_at is not None:
        columns["expires_at"] = None if expires_at == "never" else timestamp(expires_at)
    return columns


def _check_expected(name: str, row: Any | None, expected: int | None) -> None:
    if expected is None:
        return
    current = (row.current_version if row else 0) or 0
    if current != expected:
        raise VersionConflict(
            f"{name} is at version {current}, not {expected}", hint="check what has changed, then try again"
        )
