"""Secrets: ask, act and audit in one transaction. No value leaves before its record is on disk.

Every act names its `actor`, and looks at the name before anything is recorded:
what stands there may be a value. Values come and go as `SecretValue`; what is
stored is what `Keyring.seal` made of them, bound to team, id and version.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any, Literal

from sqlalchemy import Connection, Engine, Row, func, select, update

from gusset.errors import Conflict, IntegrityError, InvalidValue, SecretNotFound, VersionConflict
from gusset.secrets.info import SecretInfo, State, VersionInfo
from gusset.secrets.name import check_name, fold_name
from gusset.secrets.sources.source import Delivered
from gusset.secrets.value import SecretValue, check_length
from gusset.vault.audit.audit_log import Clock, Entry, timestamp
from gusset.vault.audit.consistency import outcome_of
from gusset.vault.commit.writer import Done, Writer
from gusset.vault.crypto.envelope import CannotOpen, place_of
from gusset.vault.services.key_rotation import KeyringStore
from gusset.vault.storage.compiled_sql import Reader
from gusset.vault.storage.database import forget_old_pages, translate_db_errors
from gusset.vault.storage.secret_statements import (
    ADD_VERSION,
    CREATE,
    CURRENT,
    FIND,
    FIND_DELETED,
    LIST,
    NEW_CURRENT,
    READ,
    REVISIONS,
    SEALED,
    VERSIONS,
)
from gusset.vault.storage.tables import secret_versions, secrets

LONGEST_NOTE = 1000

# The deployments of a team that use the secret of a folded name just now.
InUse = Callable[[Connection, str, str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class DeliveredValues:
    """What a deployment was given: values keyed as asked, and the id and revision of each live secret."""

    values: Mapping[str, Delivered]
    revisions: Mapping[str, tuple[str, int]]


class SecretStore:
    """The secrets of one team."""

    def __init__(
        self,
        engine: Engine,
        reader: Reader,
        writer: Writer,
        keys: KeyringStore,
        clock: Clock,
        *,
        team_id: str,
        team: str,
        overwrite_spellings: bool = False,
        in_use: InUse = lambda *_: (),
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._writer = writer
        self._keys = keys
        self._clock = clock
        self._team_id = team_id
        self._team = team
        self._overwrite_spellings = overwrite_spellings
        self._in_use = in_use

    # --- writing

    def set(
        self,
        name: str,
        value: SecretValue,
        *,
        actor: str,
        note: str | None = None,
        expires_at: datetime | None = None,
        expect_version: int | None = None,
    ) -> SecretInfo:
        """Create the secret `name`, or give it a new version.

        `expect_version` is the current version that the caller has seen, 0 for
        a secret that must not exist yet. `note` and `expires_at` (aware; a
        reminder, nothing expires by itself) stay as they are when None.

        Raises:
            InvalidName, InvalidValue: see `check_name`, `check_length`.
            Conflict: the name exists in another spelling, or the version has moved on.
        """
        check_name(name)
        check_length(value.reveal())
        told = _told(note, expires_at)

        def act(connection: Connection) -> Done[SecretInfo]:
            info = self._put(connection, name, value, actor, expect_version)
            if told:
                connection.execute(update(secrets).where(secrets.c.id == info.id).values(**told))
                info = self._info(self._need(connection, name))
            return Done(info, [_written(actor, info)])

        return self._writer.run(Entry(actor, "secret.write", name), act)

    def set_many(self, values: Sequence[tuple[str, SecretValue]], *, actor: str) -> list[SecretInfo]:
        """`set` for each, all or none."""
        for name, value in values:
            check_name(name)
            check_length(value.reveal())

        def act(connection: Connection) -> Done[list[SecretInfo]]:
            infos = [self._put(connection, name, value, actor) for name, value in values]
            return Done(infos, [_written(actor, info) for info in infos])

        return self._writer.run(Entry(actor, "secret.write", _names(name for name, _ in values)), act)

    def _put(
        self,
        connection: Connection,
        name: str,
        value: SecretValue,
        actor: str,
        expect_version: int | None = None,
    ) -> SecretInfo:
        row = self._row(connection, name)
        _check_expected(name, row, expect_version)
        if row is None:
            return self._create(connection, name, value, actor)
        if row.name != name and not self._overwrite_spellings:
            raise Conflict(
                f"{name} is the secret {row.name} in another spelling",
                hint=f'write {row.name}, or set name_collisions = "overwrite" if they are meant to be one',
            )
        return self._add_version(connection, row, value, actor)

    def _create(self, connection: Connection, name: str, value: SecretValue, actor: str) -> SecretInfo:
        at, secret_id = self._now(), new_id()
        CREATE.run(
            connection,
            {
                "id": secret_id,
                "team_id": self._team_id,
                "name": name,
                "folded": fold_name(name),
                "created_at": at,
                "updated_at": at,
                "last_version": 1,
                "current_version": 1,
                "revision": 1,
            },
        )
        self._seal(connection, secret_id, name, 1, value, actor, at)
        return SecretInfo(secret_id, name, self._team, self._team_id, 1, at, at)

    def _add_version(
        self, connection: Connection, row: Row[Any], value: SecretValue, actor: str
    ) -> SecretInfo:
        at, version = self._now(), row.last_version + 1
        NEW_CURRENT.run(connection, {"b_id": row.id, "b_version": version, "b_at": at})
        self._seal(connection, row.id, row.name, version, value, actor, at)
        return replace(self._info(row), version=version, updated_at=at)

    def _seal(
        self,
        connection: Connection,
        secret_id: str,
        name: str,
        version: int,
        value: SecretValue,
        actor: str,
        at: str,
    ) -> None:
        place = place_of(self._team_id, secret_id, fold_name(name), version)
        sealed = self._keys.current.seal(value.reveal(), place)
        values = {
            "secret_id": secret_id,
            "version": version,
            "sealed": sealed,
            "created_at": at,
            "created_by": str(actor),
        }
        ADD_VERSION.run(connection, values)

    def rollback(self, name: str, version: int, *, actor: str) -> SecretInfo:
        """Make the value of an older version current again, as a new version.

        Raises:
            SecretNotFound: no such secret or version, or the version is destroyed.
        """
        check_name(name)

        def act(connection: Connection) -> Done[SecretInfo]:
            row = self._need(connection, name)
            value = self._opened(connection, row.id, row.name, version)
            info = self._add_version(connection, row, value, actor)
            return Done(info, [_changed(actor, "secret.rollback", info, {"from": version})])

        return self._writer.run(Entry(actor, "secret.rollback", name), act)

    def annotate(
        self,
        name: str,
        *,
        actor: str,
        note: str | None = None,
        expires_at: datetime | Literal["never"] | None = None,
    ) -> SecretInfo:
        """Change what is said beside a secret; None leaves it, an empty note and "never" clear it.

        Raises:
            SecretNotFound: no such secret.
            InvalidValue: a note that is too long.
        """
        check_name(name)
        told = _told(note, expires_at)

        def act(connection: Connection) -> Done[SecretInfo]:
            row = self._need(connection, name)
            if told:
                connection.execute(update(secrets).where(secrets.c.id == row.id).values(**told))
            info = self._info(self._need(connection, name))
            return Done(info, [_changed(actor, "secret.annotate", info, {"changed": sorted(told)})])

        return self._writer.run(Entry(actor, "secret.annotate", name), act)

    def delete(self, name: str, *, actor: str, force: bool = False) -> SecretInfo:
        """Take the secret away from everybody; `restore` brings it back.

        Raises:
            SecretNotFound: no such secret.
            Conflict: a running deployment uses it, and `force` is false.
        """
        check_name(name)

        def act(connection: Connection) -> Done[SecretInfo]:
            row, at = self._need(connection, name), self._now()
            users = self._in_use(connection, self._team_id, row.folded)
            if users and not force:
                raise Conflict(
                    f"{row.name} is in use by {', '.join(users)}",
                    hint="stop them first, or delete it by force: they lose it at once",
                )
            self._update(connection, row.id, deleted_at=at)
            info = replace(self._info(row), deleted_at=at)
            return Done(info, [_changed(actor, "secret.delete", info)])

        return self._writer.run(Entry(actor, "secret.delete", name), act)

    def restore(self, name_or_id: str, *, actor: str) -> SecretInfo:
        """Bring back the last deleted secret of that name, or the one of that id.

        Raises:
            SecretNotFound: nothing like it was deleted.
            Conflict: the name has been taken since.
        """
        check_name(name_or_id)

        def act(connection: Connection) -> Done[SecretInfo]:
            wanted = {"team": self._team_id, "wanted": name_or_id, "folded": fold_name(name_or_id)}
            row = connection.execute(FIND_DELETED, wanted).one_or_none()
            if row is None:
                raise SecretNotFound(
                    f"no deleted secret {name_or_id}", hint="see `gusset secret list --deleted`"
                )
            if taken := self._row(connection, row.name):
                raise Conflict(
                    f"{taken.name} exists again, so the deleted one cannot come back under that name"
                )
            self._update(connection, row.id, deleted_at=None)
            info = replace(self._info(row), deleted_at=None)
            return Done(info, [_changed(actor, "secret.restore", info)])

        return self._writer.run(Entry(actor, "secret.restore", name_or_id), act)

    def destroy(self, name: str, versions: Collection[int] | None = None, *, actor: str) -> SecretInfo:
        """Destroy the sealed bytes of `versions` (None: of all) for good; their rows stay.

        The newest version that is left becomes current.

        Raises:
            SecretNotFound: no such secret, or not all of these versions.
        """
        check_name(name)

        def act(connection: Connection) -> Done[SecretInfo]:
            row, at = self._need(connection, name), self._now()
            rows = connection.execute(VERSIONS, {"id": row.id}).all()
            wanted = set(versions) if versions is not None else {found.version for found in rows}
            if unknown := sorted(wanted - {found.version for found in rows}):
                raise SecretNotFound(f"{row.name} has no version {', '.join(map(str, unknown))}")
            left = [v.version for v in rows if v.sealed is not None and v.version not in wanted]
            gone = sorted(v.version for v in rows if v.sealed is not None and v.version in wanted)
            connection.execute(
                update(secret_versions)
                .where(secret_versions.c.secret_id == row.id, secret_versions.c.version.in_(gone))
                .values(sealed=None, destroyed_at=at)
            )
            current = max(left, default=None)
            self._update(connection, row.id, current_version=current)
            info = replace(self._info(row), version=current, updated_at=at)
            return Done(info, [_changed(actor, "secret.destroy", info, {"destroyed": gone})])

        info = self._writer.run(Entry(actor, "secret.destroy", name), act)
        forget_old_pages(self._engine)
        return info

    # --- reading

    def list(self, *, include_deleted: bool = False) -> list[SecretInfo]:
        """Every secret, by name; metadata only, so not audited."""
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            rows = connection.execute(LIST, {"team": self._team_id}).all()
        return [self._info(row) for row in rows if include_deleted or row.deleted_at is None]

    def page(
        self, *, containing: str = "", limit: int, offset: int = 0, deleted: bool = False
    ) -> tuple[Sequence[SecretInfo], int]:
        """Some of the secrets by name, those whose name has `containing` in it, and how many there are.

        Deleted ones, newest first, when `deleted`; else the live ones.
        """
        fits = [secrets.c.team_id == self._team_id, secrets.c.deleted_at.is_not(None) == deleted]
        if containing:
            fits.append(secrets.c.name.icontains(containing, autoescape=True))
        order = [secrets.c.deleted_at.desc()] if deleted else []
        query = select(secrets).where(*fits).order_by(*order, secrets.c.name).limit(limit).offset(offset)
        count = select(func.count()).select_from(secrets).where(*fits)
        with translate_db_errors(self._engine), self._engine.connect() as connection, connection.begin():
            rows = connection.execute(query).all()
            return [self._info(row) for row in rows], connection.execute(count).scalar_one()

    def get(self, name: str) -> SecretInfo:
        """Metadata of one secret. Raises SecretNotFound."""
        with translate_db_errors(self._engine):
            row = self._row(self._reader.connection, check_name(name))
            if row is not None:
                return self._info(row)
            with self._engine.connect() as connection:  # which says what is there instead
                return self._info(self._need(connection, name))

    def by_id(self, secret_id: str) -> SecretInfo | None:
        """Metadata of the secret of that id, live or deleted, where this team has it."""
        return next(iter(self._some(secrets.c.id == secret_id)), None)

    def known(self, names: Collection[str]) -> dict[str, SecretInfo]:
        """Metadata of those of `names` that there are, keyed as asked."""
        folded = {fold_name(name) for name in names}
        found = self._some(secrets.c.folded.in_(sorted(folded)), secrets.c.deleted_at.is_(None))
        by_folded = {fold_name(info.name): info for info in found}
        return {name: by_folded[fold_name(name)] for name in names if fold_name(name) in by_folded}

    def _some(self, *conditions: Any) -> Sequence[SecretInfo]:
        query = select(secrets).where(secrets.c.team_id == self._team_id, *conditions)
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            return [self._info(row) for row in connection.execute(query)]

    def history(self, name: str) -> Sequence[VersionInfo]:
        """The versions of a secret, oldest first. Raises SecretNotFound."""
        with translate_db_errors(self._engine), self._engine.connect() as connection, connection.begin():
            row = self._need(connection, name)
            rows = connection.execute(VERSIONS, {"id": row.id}).all()
        return [
            VersionInfo(found.version, found.created_at, found.created_by, _state(found, row.current_version))
            for found in rows
        ]

    def reveal(self, name: str, *, actor: str, version: int | None = None) -> SecretValue:
        """A value, for a person at a terminal. The record is on disk before it is returned.

        Raises:
            SecretNotFound: no such secret or version, or it is destroyed.
            IntegrityError: the stored bytes do not open.
        """
        check_name(name)

        def act(connection: Connection) -> Done[SecretValue]:
            row = self._need(connection, name)
            wanted = version if version is not None else row.current_version
            value = self._opened(connection, row.id, row.name, wanted)
            return Done(value, [Entry(actor, "secret.reveal", row.name, details={"version": wanted})])

        return self._writer.run(Entry(actor, "secret.reveal", name), act)

    def deliver(self, names: Collection[str], *, actor: str, deployment: str) -> DeliveredValues:
        """The current values of those of `names` that there are, for a deployment.

        One record for all of them, with their versions and with what was
        missing, is on disk before a value is returned.

        Raises:
            IntegrityError: the stored bytes of one of them do not open.
        """
        wanted = {name: fold_name(check_name(name)) for name in names}
        if not wanted:
            return DeliveredValues({}, {})

        def act(connection: Connection) -> Done[DeliveredValues]:
            asked = {name: self._current(connection, folded) for name, folded in wanted.items()}
            found = {name: row for name, row in asked.items() if row is not None}
            held = {name: row for name, row in found.items() if row.version is not None}
            values = {name: self._delivered(connection, name, row) for name, row in held.items()}
            self._note_read(connection, held.values())
            details: dict[str, Any] = {
                "team": self._team_id,
                "versions": {name: row.version for name, row in held.items()},
            }
            if missing := sorted(wanted.keys() - held.keys()):
                details["missing"] = missing
            entry = Entry(
                actor, "secret.deliver", deployment, "ok" if values else "secret_not_found", details
            )
            revisions = {row.folded: (row.id, row.revision) for row in found.values()}
            return Done(DeliveredValues(values, revisions), [entry])

        return self._writer.run(Entry(actor, "secret.deliver", deployment), act)

    def _current(self, connection: Connection, folded: str) -> Any | None:
        return CURRENT.one(connection, {"team": self._team_id, "folded": folded})

    def revisions(self, connection: Connection, names: Collection[str]) -> frozenset[tuple[str, int]]:
        """Ids and revisions of the live ones among `names`: differs when one may read differently."""
        return frozenset((row.id, row.revision) for row in connection.execute(REVISIONS, self._folded(names)))

    # --- inside

    def _note_read(self, connection: Connection, rows: Collection[Any]) -> None:
        """When it was last read, to the second: many replicas that read at once make one note."""
        now = self._clock()
        due = timestamp(now - timedelta(seconds=1))
        for row in rows:
            if row.last_read_at is None or row.last_read_at < due:
                READ.run(connection, {"b_id": row.id, "b_at": timestamp(now)})

    def _delivered(self, connection: Connection, name: str, row: Any) -> Delivered:
        value = self._open(connection, row.sealed, row.id, name, row.version)
        return Delivered(value, row.version, "the vault")

    def _opened(self, connection: Connection, secret_id: str, name: str, version: int | None) -> SecretValue:
        found = connection.execute(SEALED, {"id": secret_id, "version": version}).one_or_none()
        if found is None:
            raise SecretNotFound(_no_version(name, version), hint=f"see `gusset secret history {name}`")
        if found.sealed is None:
            raise SecretNotFound(f"version {version} of {name} has been destroyed")
        return self._open(connection, found.sealed, secret_id, name, version)

    def _open(
        self, connection: Connection, sealed: bytes, secret_id: str, name: str, version: int | None
    ) -> SecretValue:
        place = place_of(self._team_id, secret_id, fold_name(name), version)
        try:
            return SecretValue(self._keys.open(connection, sealed, place))
        except (CannotOpen, KeyError):
            raise IntegrityError(
                f"the stored bytes of {name} (version {version}) were altered or damaged: they do not open",
                hint=f"set it anew, or roll back: `gusset secret history {name}`",
            ) from None

    def _row(self, connection: Connection, name: str) -> Row[Any] | None:
        return FIND.one(connection, {"team": self._team_id, "folded": fold_name(name)})

    def _need(self, connection: Connection, name: str) -> Row[Any]:
        row = self._row(connection, check_name(name))
        if row is None:
            known = [
                r.name for r in connection.execute(LIST, {"team": self._team_id}) if r.deleted_at is None
            ]
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"add it with `gusset secret set {name}`"
            raise SecretNotFound(f"there is no secret {name}", hint=hint)
        return row

    def _update(self, connection: Connection, secret_id: str, **values: Any) -> None:
        statement = update(secrets).where(secrets.c.id == secret_id)
        connection.execute(
            statement.values(**values, updated_at=self._now(), revision=secrets.c.revision + 1)
        )

    def _folded(self, names: Collection[str]) -> dict[str, Any]:
        return {"team": self._team_id, "folded": sorted({fold_name(check_name(name)) for name in names})}

    def _info(self, row: Row[Any]) -> SecretInfo:
        return SecretInfo(
            row.id,
            row.name,
            self._team,
            self._team_id,
            row.current_version,
            row.created_at,
            row.updated_at,
            row.deleted_at,
            row.note,
            row.expires_at,
            row.last_read_at,
        )

    def _now(self) -> str:
        return timestamp(self._clock())


def new_id() -> str:
    """A short opaque id: 80 random bits."""
    return base64.b32encode(os.urandom(10)).decode().lower()


def _written(actor: str, info: SecretInfo) -> Entry:
    return _changed(actor, "secret.create" if info.version == 1 else "secret.write", info)


def _changed(actor: str, action: str, info: SecretInfo, more: Mapping[str, Any] = {}) -> Entry:
    """The audit event of a change and the state it led to, which `consistency` compares with the rows."""
    return Entry(actor, action, info.name, details={**outcome_of(info), **more})


def _told(note: str | None, expires_at: datetime | Literal["never"] | None) -> dict[str, str | None]:
    """The columns that a note and an expiry change."""
    told: dict[str, str | None] = {}
    if note is not None:
        if len(note) > LONGEST_NOTE or "\0" in note:
            raise InvalidValue(f"a note has at most {LONGEST_NOTE} characters, and no NUL")
        told["note"] = note or None
    if expires_at is not None:
        told["expires_at"] = None if expires_at == "never" else timestamp(expires_at)
    return told


def _names(names: Any) -> str:
    return ", ".join(names)


def _check_expected(name: str, row: Row[Any] | None, expected: int | None) -> None:
    if expected is None:
        return
    current = (row.current_version if row else 0) or 0
    if current != expected:
        raise VersionConflict(
            f"{name} is at version {current}, not {expected}", hint="look at what changed, then try again"
        )


def _state(found: Row[Any], current: int | None) -> State:
    if found.sealed is None:
        return "destroyed"
    return "current" if found.version == current else "older"


def _no_version(name: str, version: int | None) -> str:
    return (
        f"{name} has no version {version}"
        if version is not None
        else f"every version of {name} has been destroyed"
    )
