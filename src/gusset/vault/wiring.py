"""`open_vault` builds the vault's parts, joins and closes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from sqlalchemy import Connection, Engine, delete, insert, select, update

from gusset.errors import IntegrityError, RootKeyError, VaultError
from gusset.secrets.info import DEFAULT_TEAM
from gusset.settings import Settings
from gusset.vault.audit.actions import Action
from gusset.vault.audit.chain import Chain
from gusset.vault.audit.checkpoints import Checkpoint, WitnessFile
from gusset.vault.audit.events import AuditEvent
from gusset.vault.audit.log import AuditLog
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.crypto.keyring import Keyring
from gusset.vault.crypto.root_key import new_root_key, read_root_key, write_root_key
from gusset.vault.file_permissions import check_files
from gusset.vault.ids import new_id
from gusset.vault.services.access_keys import ACCESS_GENERATION, AccessKeys
from gusset.vault.services.change_poller import ChangePoller
from gusset.vault.services.deployments import Deployments
from gusset.vault.services.invitations import Invitations
from gusset.vault.services.key_rotation import KeyringStore, KeyRotation
from gusset.vault.services.masked_values import MaskedValues
from gusset.vault.services.people import People
from gusset.vault.services.secret_delivery import SecretDelivery
from gusset.vault.services.secret_reader import SecretReader
from gusset.vault.services.secret_rows import SecretRows, VersionStore
from gusset.vault.services.secret_writer import SecretWriter
from gusset.vault.services.sessions import Sessions
from gusset.vault.services.teams import Teams
from gusset.vault.services.vault_source import VaultSource
from gusset.vault.storage.compiled_sql import ReadConnections
from gusset.vault.storage.database import (
    check_revision,
    connect,
    exclusive_lock,
    file_of,
    make_private,
    migrate,
    revision,
    translate_db_errors,
)
from gusset.vault.storage.revision import REVISION
from gusset.vault.storage.tables import keyring_table, meta, teams

_PROBE_BYTES = 65_536
_PROBE = "write_probe"  # the row that `Vault.check_writable` writes


@dataclass(frozen=True, slots=True)
class TeamSecrets:
    """The secrets of one team: reads of metadata, changes, and delivery of values."""

    reader: SecretReader
    writer: SecretWriter
    delivery: SecretDelivery


@dataclass(frozen=True, slots=True, kw_only=True)
class Vault:
    """An open vault."""

    secrets: TeamSecrets  # the default team's
    secrets_of: Callable[[str, str], TeamSecrets]  # another team's, by its id and name
    people: People
    invitations: Invitations
    sessions: Sessions
    teams: Teams
    access_keys: AccessKeys
    deployments: Deployments
    masked_values: MaskedValues
    audit: AuditLog
    key_rotation: KeyRotation
    source: Callable[..., VaultSource]
    change_poller: Callable[[], ChangePoller]
    now: Callable[[], str]
    commits: Callable[[], int]  # how many transactions this process has committed
    record_refusal_sums: Callable[[], None]  # see `Writer`; call it every few seconds
    check_writable: Callable[[], None]  # writes; raises HostError or Unreachable when that fails
    derived_key: Callable[[str], bytes]  # for one purpose, the same as long as the vault exists


@contextmanager
def open_vault(
    settings: Settings,
    *,
    create: bool = True,
    clock: Clock = lambda: datetime.now(UTC),
    writer: Callable[[Engine, Chain, WitnessFile], Writer] = Writer,
) -> Iterator[Vault]:
    """Open the vault that `settings` name. It is created on first use, unless `create` is false.

    `writer` makes the writer that all parts share; a server passes `LoopWriter`.

    Raises:
        VaultError: there is no vault, and `create` is false.
        VaultTooNew: a newer gusset wrote it.
        RootKeyError: its root key is missing, unsafe or belongs to another vault.
        IntegrityError: another account owns its files, or can write to them.
        HostError, Unreachable, IntegrityError: see `translate_db_errors`.
    """
    engine = connect(settings.database)
    try:
        with translate_db_errors(engine):
            check_files(settings, file_of(engine))
            _prepare(engine, settings, create, clock)
        yield from _wired(engine, settings, clock, writer)
    finally:
        engine.dispose()


def _prepare(engine: Engine, settings: Settings, create: bool, clock: Clock) -> None:
    """Create the vault or migrate it to the newest schema, where needed."""
    file = file_of(engine)
    if file is None:
        raise VaultError("a vault in memory would be lost at exit", hint="set GUSSET_DATABASE to a file")
    found = None
    if file.exists() and file.stat().st_size:
        with engine.connect() as connection:
            found = revision(connection)
    if found is not None:
        check_revision(found)
        if found == REVISION:
            return
    elif not create:
        raise VaultError(f"there is no vault at {file}", hint="`gusset secret set NAME` creates one")
    make_private(file)
    with exclusive_lock(file), engine.connect() as connection:
        connection = connection.execution_options(writing=True)
        with connection.begin():
            checkpoint = _create_or_migrate(connection, settings, clock)
    if checkpoint:
        WitnessFile(settings.witness_file).add(checkpoint)


def _create_or_migrate(connection: Connection, settings: Settings, clock: Clock) -> Checkpoint | None:
    """Create or migrate in one transaction, so that a vault exists as a whole or not at all.

    The root key's file comes first: the next attempt uses a root key without a
    vault, but a vault without its root key would be lost.
    """
    migrate(connection)
    if connection.execute(select(keyring_table.c.kind).limit(1)).one_or_none():
        return None
    vault, at = new_id(), timestamp(clock())
    if not settings.root_key_file.exists():
        write_root_key(settings.root_key_file, new_root_key())
    root = read_root_key(settings.root_key_file)
    connection.execute(insert(meta), {"key": "vault", "value": vault})
    connection.execute(insert(meta), {"key": ACCESS_GENERATION, "value": "0"})
    connection.execute(insert(teams), {"id": new_id(), "name": DEFAULT_TEAM, "created_at": at})
    keyring = Keyring.new()
    KeyringStore(settings.root_key_file, vault).write(connection, keyring.keys(), root, at)
    # A log is never empty, so an empty one was emptied.
    created = AuditEvent("gusset", Action.VAULT_CREATE, vault)
    return Chain(vault, lambda: keyring, clock).extend(connection, [created])


def _wired(
    engine: Engine,
    settings: Settings,
    clock: Clock,
    make_writer: Callable[[Engine, Chain, WitnessFile], Writer],
) -> Iterator[Vault]:
    """The only place where the vault's parts are joined."""
    with translate_db_errors(engine), engine.connect() as connection:
        vault = _only(connection.execute(select(meta.c.value).where(meta.c.key == "vault")).scalars().all())
        default_team_id = _only(
            connection.execute(select(teams.c.id).where(teams.c.name == DEFAULT_TEAM)).scalars().all()
        )
        keys = KeyringStore(settings.root_key_file, vault)
        _read_keyring(keys, connection)
    witness = WitnessFile(settings.witness_file)
    chain = Chain(vault, lambda: keys.current, clock)
    writer = make_writer(engine, chain, witness)
    connections = ReadConnections(engine)
    deployments, access_keys = Deployments(engine, writer, clock), AccessKeys(engine, writer, clock)
    masked_values = MaskedValues(engine, writer, clock)

    def secrets_of(team_id: str, name: str) -> TeamSecrets:
        rows = SecretRows(team_id, name)
        versions = VersionStore(keys, clock, rows)
        return TeamSecrets(
            reader=SecretReader(engine, connections, rows),
            writer=SecretWriter(
                engine,
                writer,
                clock,
                rows=rows,
                versions=versions,
                in_use=deployments.in_use_by,
                overwrite_spellings=settings.name_collisions == "overwrite",
            ),
            delivery=SecretDelivery(writer, clock, rows, versions),
        )

    secrets = secrets_of(default_team_id, DEFAULT_TEAM)

    def source(*, actor: str, deployment: str) -> VaultSource:
        record_hits = partial(masked_values.record, default_team_id)
        return VaultSource(engine, secrets.delivery, record_hits, actor=actor, deployment=deployment)

    try:
        yield Vault(
            secrets=secrets,
            secrets_of=secrets_of,
            people=People(engine, writer, clock),
            invitations=Invitations(writer, access_keys, clock),
            sessions=Sessions(engine, writer, clock),
            teams=Teams(engine, writer, clock),
            access_keys=access_keys,
            deployments=deployments,
            masked_values=masked_values,
            audit=AuditLog(engine, vault, lambda: keys.current, witness),
            key_rotation=KeyRotation(engine, writer, keys, clock, root_key_file=settings.root_key_file),
            source=source,
            change_poller=lambda: ChangePoller(engine.connect()),
            now=lambda: timestamp(clock()),
            commits=lambda: writer.commits,
            record_refusal_sums=writer.record_refusal_sums,
            check_writable=lambda: _check_writable(writer, clock),
            derived_key=lambda purpose: keys.current.derive(purpose),
        )
    finally:
        connections.close()
        writer.close()


def _check_writable(writer: Writer, clock: Clock) -> None:
    def write(connection: Connection) -> WriteResult[None]:
        # Large, so that pages are needed for it, and then another time each time: SQLite writes no page
        # that stays as it is.
        connection.execute(delete(meta).where(meta.c.key == _PROBE))
        connection.execute(insert(meta), {"key": _PROBE, "value": "x" * _PROBE_BYTES})
        connection.execute(update(meta).where(meta.c.key == _PROBE).values(value=timestamp(clock())))
        return WriteResult(None, [])

    writer.run(AuditEvent("gusset", Action.VAULT_PROBE, "vault"), write)


def _read_keyring(keys: KeyringStore, connection: Connection) -> None:
    """Retries once: the root key may be replaced between the snapshot and the read of its file."""
    try:
        keys.reload(connection)
    except RootKeyError:
        connection.rollback()
        keys.reload(connection)


def _only(rows: object) -> str:
    if not isinstance(rows, list) or len(rows) != 1:
        raise IntegrityError("the vault is incomplete: its id or its default team is missing")
    return str(rows[0])
