"""`open_vault` builds the vault's parts, joins and closes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gusset.errors import IntegrityError, NoVault, RootKeyError
from gusset.secrets.info import DEFAULT_TEAM
from gusset.settings import Settings
from gusset.vault.audit.actions import KEY_CHANGES, Action
from gusset.vault.audit.chain import Chain
from gusset.vault.audit.checkpoints import Checkpoint, WitnessFile
from gusset.vault.audit.epochs import Epochs
from gusset.vault.audit.events import AuditEvent
from gusset.vault.audit.known_head import KnownHead, KnownRecord
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.batch import BatchRunner
from gusset.vault.commit.thread_writer import ThreadWriter
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.crypto.keyring import IDEMPOTENCY, KINDS, STATE, Keyring
from gusset.vault.crypto.root_key_sources import AskPassphrase, RootKeySource, root_key_source
from gusset.vault.file_permissions import check_files
from gusset.vault.ids import new_id
from gusset.vault.services.secret_rows import SecretRows, VersionStore
from gusset.vault.services.secret_writer import InUse, SecretWriter
from gusset.vault.storage.connection import Connection, Store, Transaction
from gusset.vault.storage.database import Database, open_database
from gusset.vault.storage.keyring_store import KeyringStore
from gusset.vault.storage.meta import ACCESS_GENERATION, DELETE_META, INSERT_META, READ_META, WRITE_META
from gusset.vault.storage.revision import REVISION
from gusset.vault.storage.schema import (
    FIRST_SIGNED,
    check_revision,
    check_schema,
    migrated,
    oldest_compatible,
)
from gusset.vault.storage.signed_rows import RowSigner, Select
from gusset.vault.storage.sql import Statement
from gusset.vault.storage.tables import TEAMS

if TYPE_CHECKING:
    from gusset.vault.audit.continuous import ContinuousVerification
    from gusset.vault.audit.log import AuditLog
    from gusset.vault.services.access_keys import AccessKeys
    from gusset.vault.services.change_poller import ChangePoller
    from gusset.vault.services.deployments import Deployments
    from gusset.vault.services.idempotency import Idempotency
    from gusset.vault.services.identities import Identities
    from gusset.vault.services.identity_tokens import IdentityTokens
    from gusset.vault.services.invitations import Invitations
    from gusset.vault.services.issuers import Issuers
    from gusset.vault.services.key_rotation import KeyRotation
    from gusset.vault.services.leases import Leases
    from gusset.vault.services.lost_records import LostRecords
    from gusset.vault.services.managers import Managers
    from gusset.vault.services.masked_values import MaskedValues
    from gusset.vault.services.overlaps import Overlaps
    from gusset.vault.services.password_attempts import PasswordAttempts
    from gusset.vault.services.people import People
    from gusset.vault.services.provider_rotations import ProviderRotations
    from gusset.vault.services.root_key_rotation import RootKeyRotation
    from gusset.vault.services.rotation_schedules import RotationSchedules
    from gusset.vault.services.rotations import Rotations
    from gusset.vault.services.secret_delivery import SecretDelivery
    from gusset.vault.services.secret_reader import SecretReader
    from gusset.vault.services.sessions import Sessions
    from gusset.vault.services.teams import Teams
    from gusset.vault.services.vault_source import VaultSource

_PROBE_BYTES = 65_536
_VAULT = "vault"  # the row of `meta` with the vault's id
_PROBE = "write_probe"  # the row that `Vault.check_writable` writes

_ANY_KEY = Statement("SELECT kind FROM keyring LIMIT 1")
_ANY_KEY_CHANGE = Statement(
    "SELECT seq FROM audit WHERE details LIKE '%\"keyring\": %' AND action IN (:actions...) LIMIT 1"
)
_DEFAULT_TEAM = Select(TEAMS, "name = :name")


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultParts:
    """What the services of one vault share."""

    database: Database
    settings: Settings
    store: Store
    writer: Writer
    keys: KeyringStore
    signer: RowSigner
    witness: WitnessFile
    chain: Chain
    known: KnownHead
    epochs: Epochs
    vault_id: str
    default_team_id: str
    clock: Clock


class TeamSecrets:
    """The secrets of one team: reads of metadata, changes, and delivery of values."""

    def __init__(self, parts: VaultParts, rows: SecretRows, in_use: InUse) -> None:
        self.team = rows.team  # its name
        self._parts = parts
        self._rows = rows
        self._in_use = in_use

    @cached_property
    def reader(self) -> SecretReader:
        from gusset.vault.services.secret_reader import SecretReader

        return SecretReader(self._parts.store, self._rows)

    @cached_property
    def writer(self) -> SecretWriter:
        parts = self._parts
        return SecretWriter(
            parts.writer,
            parts.clock,
            rows=self._rows,
            versions=self._versions,
            in_use=self._in_use,
            erase_overwritten=parts.database.erase_overwritten,
            overwrite_spellings=parts.settings.name_collisions == "overwrite",
        )

    @cached_property
    def delivery(self) -> SecretDelivery:
        from gusset.vault.services.secret_delivery import SecretDelivery

        return SecretDelivery(self._parts.writer, self._parts.clock, self._rows, self._versions)

    @property
    def _versions(self) -> VersionStore:
        return VersionStore(self._parts.keys, self._rows)


class Vault:
    """An open vault; `open_vault` makes it.

    Its services are made, and their modules imported, when they are first used: a
    command that stores a secret needs few of them. Larger than other classes: it has
    an attribute for each service, and what they share.
    """

    def __init__(self, parts: VaultParts) -> None:
        self._parts = parts
        self._shared = (parts.store, parts.writer, parts.clock)
        self._secrets_of: dict[str, TeamSecrets] = {}  # by the team's id

    @cached_property
    def secrets(self) -> TeamSecrets:
        """The default team's secrets."""
        return self.secrets_of(self._parts.default_team_id, DEFAULT_TEAM)

    @property
    def default_team_id(self) -> str:
        return self._parts.default_team_id

    @cached_property
    def people(self) -> People:
        from gusset.vault.services.people import People

        return People(*self._shared)

    @cached_property
    def sessions(self) -> Sessions:
        from gusset.vault.services.sessions import Sessions

        return Sessions(*self._shared, keys=self._parts.keys)

    @cached_property
    def password_attempts(self) -> PasswordAttempts:
        from gusset.vault.services.password_attempts import PasswordAttempts

        return PasswordAttempts(self._parts.writer, self._parts.keys)

    @cached_property
    def teams(self) -> Teams:
        from gusset.vault.services.teams import Teams

        return Teams(*self._shared)

    @cached_property
    def access_keys(self) -> AccessKeys:
        from gusset.vault.services.access_keys import AccessKeys

        return AccessKeys(*self._shared)

    @cached_property
    def invitations(self) -> Invitations:
        from gusset.vault.services.invitations import Invitations

        return Invitations(self._parts.writer, self.access_keys, self._parts.clock)

    @cached_property
    def deployments(self) -> Deployments:
        from gusset.vault.services.deployments import Deployments

        return Deployments(*self._shared, self.leases)

    @cached_property
    def leases(self) -> Leases:
        from gusset.vault.services.leases import Leases

        return Leases(*self._shared, keys=self._parts.keys)

    @cached_property
    def overlaps(self) -> Overlaps:
        from gusset.vault.services.overlaps import Overlaps

        return Overlaps(*self._shared)

    def rotations_of(self, team_id: str, name: str) -> Rotations:
        """The rotations of a team's secrets, by the team's id and name."""
        from gusset.vault.services.rotations import Rotations

        rows, parts = SecretRows(team_id, name), self._parts
        return Rotations(parts.store, parts.clock, rows=rows, leases=self.leases)

    def provider_rotations_of(self, team_id: str, name: str) -> ProviderRotations:
        """The rotations of a team's secrets by a provider's program, by the team's id and name."""
        from gusset.vault.services.provider_rotations import ProviderRotations

        rows, parts = SecretRows(team_id, name), self._parts
        versions = VersionStore(parts.keys, rows)
        return ProviderRotations(*self._shared, rows=rows, versions=versions)

    def rotation_schedules_of(self, team_id: str, name: str) -> RotationSchedules:
        """When a team's secrets are to be rotated, by the team's id and name."""
        from gusset.vault.services.rotation_schedules import RotationSchedules

        return RotationSchedules(self._parts.store, SecretRows(team_id, name))

    @cached_property
    def issuers(self) -> Issuers:
        from gusset.vault.services.issuers import Issuers

        return Issuers(*self._shared)

    @cached_property
    def identities(self) -> Identities:
        from gusset.vault.services.identities import Identities

        return Identities(*self._shared)

    @cached_property
    def identity_tokens(self) -> IdentityTokens:
        from gusset.vault.services.identity_tokens import IdentityTokens

        return IdentityTokens(*self._shared, keys=self._parts.keys)

    @cached_property
    def masked_values(self) -> MaskedValues:
        from gusset.vault.services.masked_values import MaskedValues

        return MaskedValues(*self._shared)

    @cached_property
    def key_rotation(self) -> KeyRotation:
        from gusset.vault.services.key_rotation import KeyRotation

        return KeyRotation(
            self._parts.writer,
            self._parts.clock,
            keys=self._parts.keys,
            root=self.root_key_rotation,
            exclusive_lock=self._parts.database.exclusive_lock,
        )

    @cached_property
    def root_key_rotation(self) -> RootKeyRotation:
        from gusset.vault.services.root_key_rotation import RootKeyRotation

        database = self._parts.database
        return RootKeyRotation(
            *self._shared,
            keys=self._parts.keys,
            managers=self.managers,
            is_shared=database.file is None,
            exclusive_lock=database.exclusive_lock,
            erase_overwritten=database.erase_overwritten,
        )

    @cached_property
    def idempotency(self) -> Idempotency:
        from gusset.vault.services.idempotency import Idempotency

        return Idempotency(*self._shared, self._parts.keys)

    def with_writer(self, writer: Writer) -> Vault:
        """The same vault, whose services use another writer. Leases are in memory, so both share them."""
        other = Vault(replace(self._parts, writer=writer))
        other.leases = self.leases
        return other

    @cached_property
    def managers(self) -> Managers:
        from gusset.vault.services.managers import Managers

        parts = self._parts
        return Managers(parts.store, parts.writer, parts.keys, lambda: parts.witness.newest(parts.vault_id))

    @cached_property
    def lost_records(self) -> LostRecords:
        from gusset.vault.services.lost_records import LostRecords

        parts = self._parts
        return LostRecords(*self._shared, chain=parts.chain, known=parts.known, epochs=parts.epochs)

    @cached_property
    def audit(self) -> AuditLog:
        from gusset.vault.audit.log import AuditLog

        parts = self._parts

        def reload(connection: Connection) -> Keyring:
            parts.epochs.reload_if_other(connection)
            return parts.keys.reload(connection)

        return AuditLog(
            parts.store,
            parts.vault_id,
            reload_keyring=reload,
            signer=parts.signer,
            witness=parts.witness,
            check_schema=lambda connection: check_schema(parts.database, connection.driver),
        )

    def verification(self) -> ContinuousVerification:
        """Verification that runs while the vault is in use."""
        return self.audit.continuous(self._parts.clock)

    def secrets_of(self, team_id: str, name: str) -> TeamSecrets:
        """The secrets of a team, by its id and name."""
        found = self._secrets_of.get(team_id)
        if found is None or found.team != name:
            rows = SecretRows(team_id, name)
            found = TeamSecrets(self._parts, rows, lambda *secret: self.deployments.in_use_by(*secret))
            self._secrets_of[team_id] = found
        return found

    def source(self, *, actor: str, deployment: str) -> VaultSource:
        """The default team's secrets as a source, for a deployment that is served with the embedded vault."""
        from gusset.vault.services.vault_source import VaultSource

        return VaultSource(
            self._parts.store,
            self.secrets.delivery,
            lambda hits, **who: self.masked_values.record(self._parts.default_team_id, hits, **who),
            open_signal=self._parts.database.change_signal,
            sign_head=self.sign_head,
            actor=actor,
            deployment=deployment,
        )

    def change_poller(self) -> ChangePoller:
        """Follow changes of secrets and of access, of all teams."""
        from gusset.vault.services.change_poller import ChangePoller

        return ChangePoller(self._parts.store, self._parts.database.change_signal)

    @property
    def epoch(self) -> int:
        """The number of the vault's present epoch. A vault that lost a part of its log begins another."""
        return self._parts.epochs.newest

    @property
    def reads_wait(self) -> bool:
        """Whether a read waits for a server. It needs a thread or a greenlet then: a loop must not wait."""
        return self._parts.database.file is None

    @property
    def request_seconds(self) -> float | None:
        """How long all waits of a request together may take; None for any time."""
        return self._parts.database.write_timeout

    def now(self) -> str:
        """The time, as the vault stores times."""
        return timestamp(self._parts.clock())

    def commits(self) -> int:
        """How many transactions this process has committed."""
        return self._parts.writer.commits

    def access_changes(self) -> int:
        """How many transactions of this process have changed who may do what."""
        return self._parts.writer.access_changes

    def database_warning(self) -> str | None:
        """What an administrator should know about how the database keeps commits; None for nothing."""
        with self._parts.store.read() as connection:
            return self._parts.database.warning(connection.driver)

    def record_refusal_sums(self) -> None:
        """Record the sums of repeated refusals that are due; call it every few seconds."""
        self._parts.writer.record_refusal_sums()

    def sign_head(self) -> None:
        """Sign a checkpoint of the newest audit record if it has none."""
        self._parts.writer.sign_head()

    def seconds_since_signing(self) -> float:
        """How long ago this process knew the newest audit record to be signed. Cheap."""
        return self._parts.chain.seconds_since_signing()

    def derived_key(self, purpose: str) -> bytes:
        """A key for one purpose, until the audit key is replaced."""
        return self._parts.keys.current.derive(purpose)

    def schema(self) -> tuple[str, str]:
        """The database's schema revision, and the oldest revision whose gusset can use the database."""
        with self._parts.store.read() as connection:
            revision = self._parts.database.revision(connection.driver) or REVISION
            return revision, oldest_compatible(revision, connection)

    def check_writable(self) -> None:
        """Write something large. Raises HostError or Unreachable when that fails."""

        def write(transaction: Transaction) -> WriteResult[None]:
            # Large, so that it needs new pages. Then the current time, which always differs: SQLite does
            # not write pages that have not changed.
            transaction.run(DELETE_META, {"key": _PROBE})
            transaction.run(INSERT_META, {"key": _PROBE, "value": "x" * _PROBE_BYTES})
            transaction.run(WRITE_META, {"key": _PROBE, "value": self.now()})
            return WriteResult(None, [])

        self._parts.writer.run(AuditEvent("gusset", Action.VAULT_PROBE, "vault"), write)


@contextmanager
def open_vault(
    settings: Settings,
    *,
    create: bool = True,
    clock: Clock | None = None,
    make_writer: Callable[[BatchRunner, Database], Writer] = lambda runner, _: ThreadWriter(runner),
    ask_passphrase: AskPassphrase = lambda _: None,
) -> Iterator[Vault]:
    """Open the vault that `settings` name. It is created on first use, unless `create` is false.

    `make_writer` makes the writer that all parts share; a server passes one with a `LoopWriter`.
    `ask_passphrase` asks a person for the passphrase of the root key's file. The clock is the
    database's, unless one is given.

    Raises:
        NoVault: there is no vault, and `create` is false.
        VaultTooNew: a newer gusset wrote it.
        RootKeyError: its root key is missing, unsafe or belongs to another vault.
        IntegrityError: another account owns its files, or can write to them; or the database
            has triggers or views.
        HostError, Unreachable, IntegrityError: as the database's errors are translated.
    """
    database = open_database(settings.database)
    clock = clock or database.now
    source = root_key_source(settings, ask_passphrase)
    with closing(Store(database, None)) as unsigned:
        _prepare(database, unsigned, settings, source, create=create, clock=clock)
        with unsigned.read() as connection:
            vault = _stored_id(connection)
        keys = KeyringStore(source, vault)
        _read_keyring(keys, unsigned)
        epochs = Epochs()

        def reload_if_newer(connection: Connection) -> bool:
            return any([keys.reload_if_newer(connection), epochs.reload_if_other(connection)])

        signer = RowSigner(vault, lambda: keys.current, epochs.of, reload_if_newer)
        store = unsigned.signed_by(signer)
    witness = WitnessFile(settings.witness_file)
    known = KnownHead(epochs, lambda: witness.newest(vault))
    chain = Chain(vault, keys, clock, epochs=epochs, known=known)
    with closing(store):
        with store.read() as connection:
            epochs.load(connection)
            team = connection.one(_DEFAULT_TEAM, {"name": DEFAULT_TEAM})
        if team is None:
            raise _incomplete()
        with closing(make_writer(BatchRunner(database, signer, chain, witness), database)) as writer:
            yield Vault(
                VaultParts(
                    database=database,
                    settings=settings,
                    store=store,
                    writer=writer,
                    keys=keys,
                    signer=signer,
                    witness=witness,
                    chain=chain,
                    known=known,
                    epochs=epochs,
                    vault_id=vault,
                    default_team_id=team.id,
                    clock=clock,
                )
            )


def _prepare(
    database: Database,
    store: Store,
    settings: Settings,
    source: RootKeySource,
    *,
    create: bool,
    clock: Clock,
) -> None:
    """Create the vault or migrate it to the newest schema, where needed."""
    try:
        check_files(settings, database.file)
        exists = database.exists()
    except OSError as error:
        raise database.translated(error) from None
    found = None
    if exists:
        with store.read() as connection:
            found = database.revision(connection.driver)
            if found is not None:
                check_revision(found, connection)
                check_schema(database, connection.driver)
    if found is not None and found >= REVISION:
        return
    if found is None and not create:
        raise NoVault(f"there is no vault at {database.name}", hint="`gusset secret set NAME` creates one")
    try:
        database.make()
        with (
            database.exclusive_lock(),
            closing(database.connect(patient=True)) as driver,
            migrated(database, driver),
        ):
            checkpoint = _create_or_sign(database, driver, source, clock, found=found)
    except (database.errors, OSError) as error:
        raise database.translated(error) from None
    if checkpoint:
        WitnessFile(settings.witness_file).add(checkpoint)


def _create_or_sign(
    database: Database, driver: Any, source: RootKeySource, clock: Clock, *, found: str | None
) -> Checkpoint | None:
    """Create what a new vault has, or what one of an older version lacks: keys, and signatures of rows.

    All in the transaction of the migration: a vault exists as a whole or not at all. The
    root key's file comes first: the next attempt uses a root key without a vault, but a
    vault without its root key would be lost. `found` is the revision before the migration; None for
    a database without a vault.
    """
    connection, at = Connection(driver, database, None), timestamp(clock())
    new = connection.one(_ANY_KEY) is None
    if new:
        connection.run(INSERT_META, {"key": _VAULT, "value": new_id()})
        connection.run(INSERT_META, {"key": ACCESS_GENERATION, "value": "0"})
        source.create_if_missing()
    vault = _stored_id(connection)
    keys, root = KeyringStore(source, vault), source.read()
    if not new and keys.has_manifest(connection):
        return None
    keyring = Keyring.new(root.id) if new else _older_keyring(connection, keys)
    was_signed = keyring.has(STATE)
    if not new and not was_signed and (found or "") >= FIRST_SIGNED:
        raise _keyring_rolled_back()
    keyring = keyring.complete()
    keys.write(connection, keyring, at, root)
    keys.use(keyring, root)
    epochs = Epochs()
    known = KnownHead(epochs, lambda: None)
    chain = Chain(vault, keys, clock, epochs=epochs, known=known)
    if not new and not was_signed:  # `sign_existing_rows` verifies all records, and says what is wrong
        head = chain.head(connection)
        known.remember(KnownRecord(epochs.of(head.seq), head.seq, head.hash))
    tail = chain.tail(connection, chain.send_head(connection))
    signer = RowSigner(vault, lambda: keyring, epochs.of)
    transaction = Transaction(driver, database, signer, seq=tail.next_seq, at=tail.at)
    if new:
        transaction.insert(TEAMS, {"id": new_id(), "name": DEFAULT_TEAM, "created_at": at})
        # A log is never empty, so an empty one was emptied.
        event = AuditEvent("gusset", Action.VAULT_CREATE, vault)
    elif was_signed:
        event = AuditEvent("gusset", Action.KEY_ROTATE, KINDS[IDEMPOTENCY])
    else:
        from gusset.vault.audit.first_signing import sign_existing_rows  # needed once in a vault's life

        event = sign_existing_rows(transaction, vault, keyring)
    event = replace(event, details={**event.details, "keyring": keyring.generation})
    tail.add([event], transaction.changes)
    extension = chain.extend(connection, tail)
    return extension.checkpoint if extension else None


def _older_keyring(connection: Connection, keys: KeyringStore) -> Keyring:
    """The keyring of an older version of gusset.

    Raises:
        IntegrityError: it had a manifest, so it was rolled back.
    """
    if connection.one(_ANY_KEY_CHANGE, {"actions": sorted(map(str, KEY_CHANGES))}) is not None:
        raise _keyring_rolled_back()
    return keys.read_without_manifest(connection)


def _keyring_rolled_back() -> IntegrityError:
    return IntegrityError(
        "the keyring was rolled back to that of an older version of gusset",
        hint="restore the database from a backup",
    )


def _stored_id(connection: Connection) -> str:
    row = connection.one(READ_META, {"key": _VAULT})
    if row is None:
        raise _incomplete()
    return str(row.value)


def _read_keyring(keys: KeyringStore, store: Store) -> None:
    """Read the keyring. Retries once: the root key may be replaced between the reads of database and file."""
    try:
        with store.snapshot() as connection:
            keys.load(connection)
    except RootKeyError:
        with store.snapshot() as connection:
            keys.load(connection)


def _incomplete() -> IntegrityError:
    return IntegrityError("the vault is incomplete: its id or its default team is missing")
