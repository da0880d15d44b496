"""`open_vault` builds the vault's parts, joins and closes them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from gusset.errors import IntegrityError, RootKeyError, VaultError
from gusset.secrets.info import DEFAULT_TEAM
from gusset.settings import Settings
from gusset.vault.audit.actions import Action
from gusset.vault.audit.chain import Chain
from gusset.vault.audit.checkpoints import Checkpoint, WitnessFile
from gusset.vault.audit.events import AuditEvent
from gusset.vault.audit.log import AuditLog
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.batch import BatchRunner
from gusset.vault.commit.thread_writer import ThreadWriter
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.crypto.keyring import STATE, Keyring
from gusset.vault.crypto.root_key import new_root_key, read_root_key, write_root_key
from gusset.vault.file_permissions import check_files
from gusset.vault.ids import new_id
from gusset.vault.services.access_keys import ACCESS_GENERATION, READ_META, AccessKeys
from gusset.vault.services.change_poller import ChangePoller
from gusset.vault.services.deployments import Deployments
from gusset.vault.services.invitations import Invitations
from gusset.vault.services.key_rotation import KeyRotation
from gusset.vault.services.keyring_store import KeyringStore
from gusset.vault.services.masked_values import MaskedValues
from gusset.vault.services.people import People
from gusset.vault.services.secret_delivery import SecretDelivery
from gusset.vault.services.secret_reader import SecretReader
from gusset.vault.services.secret_rows import SecretRows, VersionStore
from gusset.vault.services.secret_writer import SecretWriter
from gusset.vault.services.sessions import Sessions
from gusset.vault.services.teams import Teams
from gusset.vault.services.vault_source import VaultSource
from gusset.vault.storage.connection import Connection, Store, Transaction
from gusset.vault.storage.database import Database, check_revision, check_schema, migrated, open_database
from gusset.vault.storage.revision import REVISION
from gusset.vault.storage.signed_rows import RowSigner, Select
from gusset.vault.storage.sql import Statement
from gusset.vault.storage.tables import TEAMS

log = logging.getLogger("gusset.vault")

_PROBE_BYTES = 65_536
_VAULT = "vault"  # the row of `meta` with the vault's id
_PROBE = "write_probe"  # the row that `Vault.check_writable` writes

_ANY_KEY = Statement("SELECT kind FROM keyring LIMIT 1")
_INSERT_META = Statement("INSERT INTO meta (key, value) VALUES (:key, :value)")
_UPDATE_META = Statement("UPDATE meta SET value = :value WHERE key = :key")
_DELETE_META = Statement("DELETE FROM meta WHERE key = :key")
_DEFAULT_TEAM = Select(TEAMS, "WHERE name = :name")


@dataclass(frozen=True, slots=True)
class TeamSecrets:
    """The secrets of one team: reads of metadata, changes, and delivery of values."""

    reader: SecretReader
    writer: SecretWriter
    delivery: SecretDelivery


class Vault:
    """An open vault; `open_vault` makes it."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        *,
        store: Store,
        writer: Writer,
        keys: KeyringStore,
        audit: AuditLog,
        default_team_id: str,
        clock: Clock,
    ) -> None:
        self._database = database
        self._settings = settings
        self._store = store
        self._writer = writer
        self._keys = keys
        self._clock = clock
        self._default_team_id = default_team_id
        self.audit = audit
        self.people = People(store, writer, clock)
        self.sessions = Sessions(store, writer, clock)
        self.teams = Teams(store, writer, clock)
        self.access_keys = AccessKeys(store, writer, clock)
        self.invitations = Invitations(writer, self.access_keys, clock)
        self.deployments = Deployments(store, writer, clock)
        self.masked_values = MaskedValues(store, writer, clock)
        self.key_rotation = KeyRotation(
            store,
            writer,
            keys,
            clock,
            root_key_file=settings.root_key_file,
            exclusive_lock=database.exclusive_lock,
            forget_overwritten=database.forget_overwritten,
        )
        self.secrets = self.secrets_of(default_team_id, DEFAULT_TEAM)

    def secrets_of(self, team_id: str, name: str) -> TeamSecrets:
        """The secrets of a team, by its id and name."""
        rows = SecretRows(team_id, name)
        versions = VersionStore(self._keys, self._clock, rows)
        return TeamSecrets(
            reader=SecretReader(self._store, rows),
            writer=SecretWriter(
                self._writer,
                self._clock,
                rows=rows,
                versions=versions,
                in_use=self.deployments.in_use_by,
                forget_overwritten=self._database.forget_overwritten,
                overwrite_spellings=self._settings.name_collisions == "overwrite",
            ),
            delivery=SecretDelivery(self._writer, self._clock, rows, versions),
        )

    def source(self, *, actor: str, deployment: str) -> VaultSource:
        """The default team's secrets as a source, for a deployment that is served with the embedded vault."""
        return VaultSource(
            self._store,
            self.secrets.delivery,
            partial(self.masked_values.record, self._default_team_id),
            open_signal=self._database.change_signal,
            actor=actor,
            deployment=deployment,
        )

    def change_poller(self) -> ChangePoller:
        """Follow changes of secrets and of access, of all teams."""
        return ChangePoller(self._store, self._database.change_signal())

    def now(self) -> str:
        """The time, as the vault stores times."""
        return timestamp(self._clock())

    def commits(self) -> int:
        """How many transactions this process has committed."""
        return self._writer.commits

    def record_refusal_sums(self) -> None:
        """Record the sums of repeated refusals that are due; call it every few seconds."""
        self._writer.record_refusal_sums()

    def sign_head(self) -> None:
        """Sign a checkpoint of the newest audit record if it has none; call it every second."""
        self._writer.sign_head()

    def derived_key(self, purpose: str) -> bytes:
        """A key for one purpose, the same as long as the vault exists."""
        return self._keys.current.derive(purpose)

    def check_writable(self) -> None:
        """Write something large. Raises HostError or Unreachable when that fails."""

        def write(transaction: Transaction) -> WriteResult[None]:
            # Large, so that pages are needed for it, and then another time each time: SQLite writes no page
            # that stays as it is.
            transaction.run(_DELETE_META, {"key": _PROBE})
            transaction.run(_INSERT_META, {"key": _PROBE, "value": "x" * _PROBE_BYTES})
            transaction.run(_UPDATE_META, {"key": _PROBE, "value": self.now()})
            return WriteResult(None, [])

        self._writer.run(AuditEvent("gusset", Action.VAULT_PROBE, "vault"), write)


@contextmanager
def open_vault(
    settings: Settings,
    *,
    create: bool = True,
    clock: Clock = lambda: datetime.now(UTC),
    make_writer: Callable[[BatchRunner, Database], Writer] = lambda runner, _: ThreadWriter(runner),
) -> Iterator[Vault]:
    """Open the vault that `settings` name. It is created on first use, unless `create` is false.

    `make_writer` makes the writer that all parts share; a server passes one with a `LoopWriter`.

    Raises:
        VaultError: there is no vault, and `create` is false.
        VaultTooNew: a newer gusset wrote it.
        RootKeyError: its root key is missing, unsafe or belongs to another vault.
        IntegrityError: another account owns its files, or can write to them; or the database
            has triggers or views.
        HostError, Unreachable, IntegrityError: as the database's errors are translated.
    """
    database = open_database(settings.database)
    try:
        check_files(settings, database.file)
        _prepare(database, settings, create, clock)
    except (database.errors, OSError) as error:
        raise database.translated(error) from None
    with closing(Store(database, None)) as unsigned, unsigned.snapshot() as connection:
        vault = _stored_id(connection)
        keys = KeyringStore(settings.root_key_file, vault)
        _read_keyring(keys, connection)
    signer = RowSigner(vault, lambda: keys.current, _epoch_of)
    witness = WitnessFile(settings.witness_file)
    chain = Chain(vault, lambda: keys.current, clock)
    with closing(Store(database, signer)) as store:
        with store.read() as connection:
            team = connection.one(_DEFAULT_TEAM, {"name": DEFAULT_TEAM})
        if team is None:
            raise _incomplete()
        with closing(make_writer(BatchRunner(database, signer, chain, witness), database)) as writer:
            yield Vault(
                database,
                settings,
                store=store,
                writer=writer,
                keys=keys,
                audit=AuditLog(
                    store,
                    vault,
                    keyring=lambda: keys.current,
                    reload_keyring=keys.reload,
                    signer=signer,
                    witness=witness,
                ),
                default_team_id=team.id,
                clock=clock,
            )


def _prepare(database: Database, settings: Settings, create: bool, clock: Clock) -> None:
    """Create the vault or migrate it to the newest schema, where needed."""
    found = None
    if database.exists():
        with closing(database.connect()) as driver:
            found = database.revision(driver)
            if found is not None:
                check_revision(found)
                check_schema(database, driver)
    if found == REVISION:
        return
    if found is None and not create:
        raise VaultError(f"there is no vault at {database.file}", hint="`gusset secret set NAME` creates one")
    database.make()
    with database.exclusive_lock(), closing(database.connect()) as driver, migrated(database, driver):
        checkpoint = _create_or_sign(database, driver, settings, clock)
    if checkpoint:
        WitnessFile(settings.witness_file).add(checkpoint)


def _create_or_sign(database: Database, driver: Any, settings: Settings, clock: Clock) -> Checkpoint | None:
    """Create what a new vault has, or sign the rows of one that an older gusset wrote.

    All in the transaction of the migration: a vault exists as a whole or not at all. The
    root key's file comes first: the next attempt uses a root key without a vault, but a
    vault without its root key would be lost.
    """
    connection, at = Connection(driver, database, None), timestamp(clock())
    new = connection.one(_ANY_KEY) is None
    if new:
        connection.run(_INSERT_META, {"key": _VAULT, "value": new_id()})
        connection.run(_INSERT_META, {"key": ACCESS_GENERATION, "value": "0"})
        if not settings.root_key_file.exists():
            write_root_key(settings.root_key_file, new_root_key())
    vault = _stored_id(connection)
    keys, root = KeyringStore(settings.root_key_file, vault), read_root_key(settings.root_key_file)
    if new:
        keys.write(connection, Keyring.new().keys(), root, at)
    elif keys.reload(connection).has(STATE):
        return None
    else:
        keys.write(connection, Keyring.new_keys(STATE), root, at)
    keyring = keys.reload(connection)
    chain = Chain(vault, lambda: keyring, clock)
    tail = chain.tail(connection)
    signer = RowSigner(vault, lambda: keyring, _epoch_of)
    transaction = Transaction(driver, database, signer, tail.next_seq)
    if new:
        transaction.insert(TEAMS, {"id": new_id(), "name": DEFAULT_TEAM, "created_at": at})
        # A log is never empty, so an empty one was emptied.
        event = AuditEvent("gusset", Action.VAULT_CREATE, vault)
    else:
        from gusset.vault.audit.first_signing import sign_existing_rows  # needed once in a vault's life

        event = sign_existing_rows(transaction, vault)
        for difference in event.details.get("differences", ()):
            log.warning("the audit log contradicts a secret, which cannot be read any more: %s", difference)
    tail.add([event], transaction.changes)
    return chain.extend(connection, tail)


def _epoch_of(_: int) -> int:
    """The epoch of an audit record. There is one until a lost part of the log can be accepted."""
    return 1


def _stored_id(connection: Connection) -> str:
    row = connection.one(READ_META, {"key": _VAULT})
    if row is None:
        raise _incomplete()
    return str(row.value)


def _read_keyring(keys: KeyringStore, connection: Connection) -> None:
    """Retries once: the root key may be replaced between the snapshot and the read of its file."""
    try:
        keys.reload(connection)
    except RootKeyError:
        with closing(Store(connection.dialect, None)) as store, store.read() as newer:
            keys.reload(newer)


def _incomplete() -> IntegrityError:
    return IntegrityError("the vault is incomplete: its id or its default team is missing")
