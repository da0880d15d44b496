"""`open_vault` joins the vault's parts, and closes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, insert, select

from gusset.errors import IntegrityError, RootKeyError, VaultError
from gusset.secrets.info import DEFAULT_TEAM
from gusset.settings import Settings
from gusset.vault.audit.audit_log import AuditLog, Chain, Checkpoint, Clock, Entry, Witness, timestamp
from gusset.vault.commit.writer import Writer
from gusset.vault.crypto.keyring import Keyring
from gusset.vault.crypto.root_key import new_root_key, read_root_key, write_root_key
from gusset.vault.file_permissions import check_files
from gusset.vault.services.access_keys import ACCESS, AccessKeys
from gusset.vault.services.change_poller import ChangePoller
from gusset.vault.services.deployments import Deployments
from gusset.vault.services.key_rotation import KeyringStore, KeyRotation
from gusset.vault.services.people import People
from gusset.vault.services.secret_store import SecretStore, new_id
from gusset.vault.services.vault_source import VaultSource
from gusset.vault.storage.compiled_sql import Reader
from gusset.vault.storage.database import (
    alone,
    check_revision,
    connect,
    file_of,
    make_private,
    migrate,
    revision,
    translate_db_errors,
)
from gusset.vault.storage.revision import REVISION
from gusset.vault.storage.tables import keyring as keyring_table
from gusset.vault.storage.tables import meta, teams


@dataclass(frozen=True, slots=True)
class Vault:
    """An open vault. `secrets` are the default team's, `team(id, name)` gives another's."""

    secrets: SecretStore
    team: Callable[[str, str], SecretStore]
    people: People
    access: AccessKeys
    deployments: Deployments
    audit: AuditLog
    keys: KeyRotation
    source: Callable[..., VaultSource]
    looker: Callable[[], ChangePoller]
    now: Callable[[], str]
    commits: Callable[[], int]  # moves whenever this process has written


@contextmanager
def open_vault(
    settings: Settings,
    *,
    create: bool = True,
    clock: Clock = lambda: datetime.now(UTC),
    writer: Callable[[Engine, Chain, Witness], Writer] = Writer,
) -> Iterator[Vault]:
    """Open the vault that `settings` name, made on first use unless `create` is false.

    `writer` makes the writer that its parts share: a server has its own.

    Raises:
        VaultError: there is none, and none may be made.
        VaultTooNew: a newer gusset wrote it.
        RootKeyError: its root key is lost, unsafe or another's.
        IntegrityError: another account owns its files, or may write to them.
        HostError, Unreachable, IntegrityError: see `translate_db_errors`.
    """
    engine = connect(settings.database)
    try:
        with translate_db_errors(engine):
            check_files(settings, file_of(engine))
            _prepare(engine, settings, create, clock)
        yield from _joined(engine, settings, clock, writer)
    finally:
        engine.dispose()


def _prepare(engine: Engine, settings: Settings, create: bool, clock: Clock) -> None:
    """Bring the vault into being, or to the newest schema, where it is not."""
    file = file_of(engine)
    if file is None:
        raise VaultError("a vault in memory would be lost at once", hint="name a file in GUSSET_DATABASE")
    found = None
    if file.exists() and file.stat().st_size:
        with engine.connect() as connection:
            found = revision(connection)
    if found is not None:
        check_revision(found)
        if found == REVISION:
            return
    elif not create:
        raise VaultError(f"there is no vault at {file}", hint="`gusset secret set NAME` makes one")
    make_private(file)
    with alone(file), engine.connect() as connection:
        connection = connection.execution_options(writing=True)
        with connection.begin():
            checkpoint = _create_or_migrate(connection, settings, clock)
    if checkpoint:
        Witness(settings.witness_file).add(checkpoint)


def _create_or_migrate(connection: Connection, settings: Settings, clock: Clock) -> Checkpoint | None:
    """In one transaction, so that a vault is there as a whole or not at all. The root key's file comes first:
    one without a vault is used by the next attempt, a vault without one would be lost."""
    migrate(connection)
    if connection.execute(select(keyring_table.c.kind).limit(1)).one_or_none():
        return None
    vault, at = new_id(), timestamp(clock())
    if not settings.root_key_file.exists():
        write_root_key(settings.root_key_file, new_root_key())
    root = read_root_key(settings.root_key_file)
    connection.execute(insert(meta), {"key": "vault", "value": vault})
    connection.execute(insert(meta), {"key": ACCESS, "value": "0"})
    connection.execute(insert(teams), {"id": new_id(), "name": DEFAULT_TEAM, "created_at": at})
    keyring = Keyring.new()
    KeyringStore(settings.root_key_file, vault).write(connection, keyring.keys(), root, at)
    # A first record, so that a log without any is one that was emptied.
    return Chain(vault, lambda: keyring, clock).extend(connection, [Entry("gusset", "vault.create", vault)])


def _joined(
    engine: Engine,
    settings: Settings,
    clock: Clock,
    make_writer: Callable[[Engine, Chain, Witness], Writer],
) -> Iterator[Vault]:
    """The one place where the vault's parts meet."""
    with translate_db_errors(engine), engine.connect() as connection:
        vault = _only(connection.execute(select(meta.c.value).where(meta.c.key == "vault")).scalars().all())
        team_id = _only(
            connection.execute(select(teams.c.id).where(teams.c.name == DEFAULT_TEAM)).scalars().all()
        )
        keys = KeyringStore(settings.root_key_file, vault)
        _read_keyring(keys, connection)
    witness = Witness(settings.witness_file)
    chain = Chain(vault, lambda: keys.current, clock)
    writer = make_writer(engine, chain, witness)
    reader = Reader(engine)
    deployments = Deployments(engine, writer, clock)

    def team(team_id: str, name: str) -> SecretStore:
        return SecretStore(
            engine,
            reader,
            writer,
            keys,
            clock,
            team_id=team_id,
            team=name,
            overwrite_spellings=settings.name_collisions == "overwrite",
            in_use=deployments.using,
        )

    store, access = team(team_id, DEFAULT_TEAM), AccessKeys(engine, writer, clock)
    people = People(engine, writer, access, clock)
    audit = AuditLog(engine, vault, lambda: keys.current, witness)
    rotation = KeyRotation(engine, writer, keys, clock, root_key_file=settings.root_key_file)

    def source(*, actor: str, deployment: str) -> VaultSource:
        return VaultSource(engine, store, actor=actor, deployment=deployment)

    try:
        yield Vault(
            store,
            team,
            people,
            access,
            deployments,
            audit,
            rotation,
            source,
            lambda: ChangePoller(engine),
            lambda: timestamp(clock()),
            lambda: writer.commits,
        )
    finally:
        reader.close()
        writer.close()


def _read_keyring(keys: KeyringStore, connection: Connection) -> None:
    """Twice where needed: the root key may be replaced between the snapshot and the look at its file."""
    try:
        keys.reload(connection)
    except RootKeyError:
        connection.rollback()
        keys.reload(connection)


def _only(rows: object) -> str:
    if not isinstance(rows, list) or len(rows) != 1:
        raise IntegrityError("the vault is incomplete: its own name or its team is missing")
    return str(rows[0])
