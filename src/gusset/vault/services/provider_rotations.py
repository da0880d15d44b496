"""Rotations of one team's secrets by a provider's program: where each is, and which process runs it.

The provider is run by a command elsewhere; here each of its steps is stored, in one transaction with its
audit record. A handle names a credential at the provider. It is stored with the version that has the
credential, so that the credential can be revoked in any later rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timedelta
from typing import Any

from gusset.errors import Conflict, InvalidValue, NotFound
from gusset.rotation.state import LEASE_SECONDS, MAX_HANDLE, ProviderRotation, Step
from gusset.secrets.name import check_name
from gusset.secrets.value import SecretValue, check_length
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent, state_details
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.ids import new_id
from gusset.vault.services.overlaps import Overlap, begin_overlap, check_overlap, end_overlap
from gusset.vault.services.secret_rows import SecretRows, VersionStore
from gusset.vault.storage.connection import Connection, Store, Transaction
from gusset.vault.storage.signed_rows import Select
from gusset.vault.storage.sql import Statement
from gusset.vault.storage.tables import CREDENTIALS, ROTATIONS, SECRETS

_FIND = Select(ROTATIONS, "secret_id = :id")
_CREDENTIALS = Select(CREDENTIALS, "secret_id = :id", then="ORDER BY version")
_HOLD = Statement("UPDATE secret_rotations SET holder = :holder, held_until = :until WHERE secret_id = :id")


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of a rotation: the new rows, the details of its audit event, and the events `before` it.

    `holds`: whether its process still holds the rotation afterwards.
    """

    secret: Any
    row: Any
    details: Mapping[str, Any]
    _: KW_ONLY
    before: Sequence[AuditEvent] = ()
    holds: bool = True


class ProviderRotations:
    """Stores the steps of rotations. `holder` is the random id of the process that runs one.

    Every method raises SecretNotFound for a secret that does not exist, and InvalidName for a text that is
    no name, which is not recorded. Those that change a rotation raise NotFound when there is none, and
    Conflict when another process has it.
    """

    def __init__(
        self, store: Store, writer: Writer, clock: Clock, *, rows: SecretRows, versions: VersionStore
    ) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock
        self._rows = rows
        self._versions = versions

    def get(self, name: str) -> ProviderRotation:
        """The unfinished rotation of a secret. Raises NotFound when there is none."""
        with self._store.snapshot() as connection:
            secret = self._rows.get_or_raise(connection, name)
            return _state(connection, self._rows.team, secret, _get_rotation_or_raise(connection, secret))

    def begin(
        self, name: str, *, holder: str, actor: str, current_handle: str | None = None
    ) -> ProviderRotation:
        """Begin a rotation of a secret, or continue the unfinished one.

        `current_handle` names the credential of the current version, where no rotation has made it.

        Raises:
            Conflict: another process runs it now, or the current version has another handle.
        """
        check_name(name)
        if current_handle is not None:
            check_handle(current_handle)

        def write(transaction: Transaction) -> WriteResult[ProviderRotation]:
            secret = self._rows.get_or_raise(transaction, name)
            row = transaction.one(_FIND, {"id": secret.id})
            self._check_free(secret, row, holder)
            if current_handle is not None:
                _set_current_handle(transaction, secret, current_handle)
            action = Action.ROTATION_BEGIN if row is None else Action.ROTATION_RESUME
            row = row or _insert_rotation(transaction, secret, actor, timestamp(self._clock()))
            self._hold(transaction, secret, holder)
            rotation = _state(transaction, self._rows.team, secret, row)
            details = {"step": rotation.step, "current": rotation.current}
            return WriteResult(rotation, [self._event(actor, action, secret, rotation, details)])

        return self._writer.run(AuditEvent(actor, Action.ROTATION_BEGIN, name), write)

    def renew(self, name: str, *, holder: str) -> ProviderRotation:
        """Hold a rotation for longer.

        Raises:
            Conflict: the secret got another value since the rotation has set its own.
        """
        check_name(name)

        def write(transaction: Transaction) -> WriteResult[ProviderRotation]:
            secret, row = self._held(transaction, name, holder)
            _check_current(secret, row)
            self._hold(transaction, secret, holder)
            return WriteResult(_state(transaction, self._rows.team, secret, row), [])

        return self._writer.run(AuditEvent("gusset", Action.ROTATION_RESUME, name), write)

    def set(
        self,
        name: str,
        value: SecretValue,
        *,
        holder: str,
        actor: str,
        handle: str,
        overlap: timedelta,
        expires_at: datetime | None = None,
    ) -> ProviderRotation:
        """Store a new credential as the next version, and its handle with it.

        The previous version stays readable during `overlap`. The secret's expiry date becomes `expires_at`.

        Raises:
            Conflict: the rotation has set a version before.
        """
        check_length(value.reveal())
        check_handle(handle)
        check_overlap(overlap)
        expires = None if expires_at is None else timestamp(expires_at)

        def change(transaction: Transaction, secret: Any, row: Any) -> _Change:
            _check_step(secret, row, Step.CREATE)
            before = secret.current_version
            secret = self._versions.add(transaction, secret, value, actor=actor)
            secret = transaction.update(SECRETS, secret, expires_at=expires)
            if before is not None:
                begin_overlap(transaction, secret, Overlap(before, timestamp(self._clock() + overlap)))
            _insert_credential(transaction, secret, handle)
            version = secret.current_version
            row = transaction.update(ROTATIONS, row, step=str(Step.ACKNOWLEDGE), version=version)
            details = state_details(self._rows.info(secret)) | {"rotation": row.id}
            written = AuditEvent(actor, Action.SECRET_WRITE, secret.name, details=details)
            return _Change(secret, row, {"version": version, "handle": handle}, before=[written])

        return self._change(name, Action.ROTATION_SET, change, holder=holder, actor=actor)

    def advance(
        self, name: str, step: Step, *, holder: str, actor: str, accepted: Sequence[str] = ()
    ) -> ProviderRotation:
        """Advance to `step`. `accepted` is what was not waited for, for the audit record.

        Raises:
            Conflict: it is not the next step, or the secret got another value meanwhile.
        """
        before = {Step.USE: Step.ACKNOWLEDGE, Step.REVOKE: Step.USE}.get(step)
        if before is None:
            raise InvalidValue(f"a rotation cannot be advanced to the step {step}")

        def change(transaction: Transaction, secret: Any, row: Any) -> _Change:
            _check_step(secret, row, before)
            _check_current(secret, row)
            row = transaction.update(ROTATIONS, row, step=str(step))
            return _Change(secret, row, {"step": step, "accepted": list(accepted)})

        return self._change(name, Action.ROTATION_ADVANCE, change, holder=holder, actor=actor)

    def revoked(self, name: str, handle: str, *, holder: str, actor: str) -> ProviderRotation:
        """Store that the provider has revoked the credential with that handle.

        Raises:
            Conflict: the rotation is not in the step `revoke`.
        """

        def change(transaction: Transaction, secret: Any, row: Any) -> _Change:
            _check_step(secret, row, Step.REVOKE)
            for credential in _live_credentials(transaction, secret):
                if credential.handle == handle and credential.version != row.version:
                    transaction.update(CREDENTIALS, credential, revoked_at=timestamp(self._clock()))
            return _Change(secret, row, {"handle": handle})

        return self._change(name, Action.ROTATION_REVOKE, change, holder=holder, actor=actor)

    def finish(self, name: str, *, holder: str, actor: str) -> ProviderRotation:
        """End a rotation whose old credentials are revoked, and the overlap with them.

        Raises:
            Conflict: there are credentials that are not revoked.
        """

        def change(transaction: Transaction, secret: Any, row: Any) -> _Change:
            _check_step(secret, row, Step.REVOKE)
            if _state(transaction, self._rows.team, secret, row).revoke:
                raise Conflict(f"{secret.name} has credentials that are not revoked yet")
            end_overlap(transaction, secret.id)
            # Replicas then notice a change, and drop the old value.
            secret = transaction.update(SECRETS, secret, revision=secret.revision + 1)
            transaction.delete(ROTATIONS, row)
            return _Change(secret, row, {"version": row.version})

        return self._change(name, Action.ROTATION_FINISH, change, holder=holder, actor=actor)

    def stop(self, name: str, *, holder: str, actor: str, code: str) -> ProviderRotation:
        """Record that the rotation has stopped, with an error's code; others may continue it."""

        def change(transaction: Transaction, secret: Any, row: Any) -> _Change:
            return _Change(secret, row, {"step": row.step, "code": code}, holds=False)

        return self._change(name, Action.ROTATION_STOP, change, holder=holder, actor=actor)

    def cancel(self, name: str, *, holder: str, actor: str) -> ProviderRotation:
        """End a rotation without revoking anything. Values, handles and the overlap stay.

        `holder` need not have it, but no other process may.
        """
        check_name(name)

        def write(transaction: Transaction) -> WriteResult[ProviderRotation]:
            secret = self._rows.get_or_raise(transaction, name)
            row = _get_rotation_or_raise(transaction, secret)
            self._check_free(secret, row, holder)
            rotation = _state(transaction, self._rows.team, secret, row)
            transaction.delete(ROTATIONS, row)
            details = {"step": row.step, "version": row.version}
            event = self._event(actor, Action.ROTATION_CANCEL, secret, rotation, details)
            return WriteResult(rotation, [event])

        return self._writer.run(AuditEvent(actor, Action.ROTATION_CANCEL, name), write)

    # --- what they share

    def _change(
        self,
        name: str,
        action: Action,
        change: Callable[[Transaction, Any, Any], _Change],
        *,
        holder: str,
        actor: str,
    ) -> ProviderRotation:
        """Change a rotation that `holder` has; `change` gets the rows of the secret and of the rotation."""
        check_name(name)

        def write(transaction: Transaction) -> WriteResult[ProviderRotation]:
            made = change(transaction, *self._held(transaction, name, holder))
            self._hold(transaction, made.secret, holder if made.holds else None)
            rotation = _state(transaction, self._rows.team, made.secret, made.row)
            event = self._event(actor, action, made.secret, rotation, made.details)
            return WriteResult(rotation, [*made.before, event])

        return self._writer.run(AuditEvent(actor, action, name), write)

    def _held(self, transaction: Transaction, name: str, holder: str) -> tuple[Any, Any]:
        """The rows of the secret and of its rotation, if `holder` has it."""
        secret = self._rows.get_or_raise(transaction, name)
        row = _get_rotation_or_raise(transaction, secret)
        if row.holder != holder:
            raise Conflict(f"another process has continued the rotation of {secret.name}")
        return secret, row

    def _check_free(self, secret: Any, row: Any | None, holder: str) -> None:
        if row is None or row.holder is None or row.holder == holder:
            return
        if row.held_until is not None and row.held_until > timestamp(self._clock()):
            raise Conflict(
                f"another process rotates {secret.name}; {row.started_by} began at {row.started_at}",
                hint=f"if that process was killed, others can continue {LEASE_SECONDS:g} seconds later",
            )

    def _hold(self, transaction: Transaction, secret: Any, holder: str | None) -> None:
        until = timestamp(self._clock() + timedelta(seconds=LEASE_SECONDS)) if holder else None
        transaction.run(_HOLD, {"id": secret.id, "holder": holder, "until": until})

    def _event(
        self, actor: str, action: Action, secret: Any, rotation: ProviderRotation, details: Mapping[str, Any]
    ) -> AuditEvent:
        own = {"id": secret.id, "team": self._rows.team_id, "rotation": rotation.id}
        return AuditEvent(actor, action, secret.name, details={**own, **details})


def _get_rotation_or_raise(connection: Connection, secret: Any) -> Any:
    row = connection.one(_FIND, {"id": secret.id})
    if row is None:
        raise NotFound(f"{secret.name} has no unfinished rotation", hint="`gusset secret rotate` begins one")
    return row


def _insert_rotation(transaction: Transaction, secret: Any, actor: str, at: str) -> Any:
    return transaction.insert(
        ROTATIONS,
        {
            "secret_id": secret.id,
            "id": new_id(),
            "step": str(Step.CREATE),
            "started_at": at,
            "started_by": str(actor),
        },
    )


def _state(connection: Connection, team: str, secret: Any, row: Any) -> ProviderRotation:
    live = _live_credentials(connection, secret)
    handles = {credential.version: credential.handle for credential in live}
    new = None if row.version is None else handles.get(row.version)
    before = [handles[version] for version in handles if row.version is None or version < row.version]
    return ProviderRotation(
        id=row.id,
        secret_id=secret.id,
        name=secret.name,
        team=team,
        step=Step(row.step),
        version=row.version,
        handle=new,
        current=handles.get(secret.current_version),
        revoke=[handle for handle in dict.fromkeys(before) if handle != new],
        started_at=row.started_at,
        started_by=row.started_by,
    )


def check_handle(handle: str) -> None:
    """Raises InvalidValue for a text that cannot be a handle."""
    if not 0 < len(handle) <= MAX_HANDLE or not handle.isprintable():
        raise InvalidValue(f"a handle is a printable text of 1 to {MAX_HANDLE} characters")


def _live_credentials(connection: Connection, secret: Any) -> list[Any]:
    rows = connection.all(_CREDENTIALS, {"id": secret.id})
    return [row for row in rows if row.revoked_at is None]


def _insert_credential(transaction: Transaction, secret: Any, handle: str) -> None:
    values = {"secret_id": secret.id, "version": secret.current_version, "handle": handle}
    transaction.insert(CREDENTIALS, values)


def copy_credential(transaction: Transaction, secret: Any, version: int) -> None:
    """Note that the current version of a secret has the same credential as `version`."""
    for credential in _live_credentials(transaction, secret):
        if credential.version == version:
            _insert_credential(transaction, secret, credential.handle)


def _set_current_handle(transaction: Transaction, secret: Any, handle: str) -> None:
    if secret.current_version is None:
        raise Conflict(f"every version of {secret.name} is destroyed, so none has a credential")
    for credential in transaction.all(_CREDENTIALS, {"id": secret.id}):
        if credential.version == secret.current_version:
            if credential.handle != handle:
                raise Conflict(f"version {credential.version} of {secret.name} has another handle")
            return
    _insert_credential(transaction, secret, handle)


def _check_step(secret: Any, row: Any, step: Step) -> None:
    if row.step != step:
        raise Conflict(f"the rotation of {secret.name} is in the step {row.step}, not {step}")


def _check_current(secret: Any, row: Any) -> None:
    """Check that the secret still has the value of the rotation: else what is in use is not known."""
    if row.version is not None and secret.current_version != row.version:
        raise Conflict(
            f"{secret.name} got another value (version {secret.current_version}) during its rotation to "
            f"version {row.version}, so nothing is revoked",
            hint=f"end this rotation with `gusset secret rotate {secret.name} --cancel`, then rotate again: "
            "that revokes all earlier credentials",
        )
