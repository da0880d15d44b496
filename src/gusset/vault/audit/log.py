"""The audit log: read, exported, and verified against edits, cuts and older copies of the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gusset.errors import GussetError
from gusset.vault.audit.chain_walk import ALL_RECORDS, RECORD, ChainWalk, record_of
from gusset.vault.audit.checkpoints import (
    Checkpoint,
    CheckpointComparison,
    WitnessFile,
    given_checkpoints,
)
from gusset.vault.audit.consistency import RowComparison, contradiction, unopened, unreadable
from gusset.vault.audit.continuous import ContinuousVerification, schema_problem
from gusset.vault.audit.events import AuditRecord
from gusset.vault.audit.log_state import LogState
from gusset.vault.clock import Clock
from gusset.vault.crypto.envelope import CannotOpen, version_context
from gusset.vault.crypto.keyring import Keyring
from gusset.vault.crypto.public_keys import PublicKeys
from gusset.vault.storage.connection import Connection, Store, iterate, unverified_rows
from gusset.vault.storage.signed_rows import RowSigner
from gusset.vault.storage.sql import Statement, containing_pattern
from gusset.vault.storage.tables import SECRET_VERSIONS, SECRETS, SIGNED_TABLES

_ALL_CHECKPOINTS = Statement(
    "SELECT seq, at, hash, signature, signing_key, keyring, epoch FROM checkpoints ORDER BY seq"
)


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """What `AuditLog.verify` found. `problems` is empty when the log is intact."""

    records: int
    checkpoints: int
    head: str
    problems: tuple[str, ...]


class AuditLog:
    """Reads and verifies the log."""

    def __init__(
        self,
        store: Store,
        vault: str,
        *,
        reload_keyring: Callable[[Connection], Keyring],
        signer: RowSigner,
        witness: WitnessFile,
        check_schema: Callable[[Connection], None],
    ) -> None:
        """`reload_keyring` reads keyring and epochs anew: another process may have changed them.

        `check_schema` raises IntegrityError if the database has what could change what is read.
        """
        self._store = store
        self._vault = vault
        self._reload_keyring = reload_keyring
        self._signer = signer
        self._witness = witness
        self._check_schema = check_schema

    def show(
        self,
        *,
        target: str | None = None,
        action: str | None = None,
        actor: str | None = None,
        outcome: str | None = None,
        before: int | None = None,
        limit: int = 50,
        substring: bool = False,
    ) -> list[AuditRecord]:
        """The newest `limit` matching records with numbers below `before`, oldest first.

        A field matches when it equals what is given; with `substring`, when it
        contains it, ignoring the case of ASCII letters, or contains it in lower
        case, as e-mail addresses are stored.
        """
        filters = {"target": target, "action": action, "actor": actor, "outcome": outcome}
        wanted: dict[str, Any] = {name: text for name, text in filters.items() if text is not None}
        conditions = [f"{name} = :{name}" for name in wanted]
        if substring:
            like = "(lower({0}) LIKE :{0} ESCAPE '/' OR lower({0}) LIKE :{0}_lower ESCAPE '/')"
            conditions = [like.format(name) for name in wanted]
            lower = {f"{name}_lower": containing_pattern(text.lower()) for name, text in wanted.items()}
            wanted = {name: containing_pattern(text) for name, text in wanted.items()} | lower
        if before is not None:
            conditions, wanted = [*conditions, "seq < :before"], wanted | {"before": before}
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        query = Statement(f"{RECORD}{where} ORDER BY seq DESC LIMIT :limit")
        with self._store.read() as connection:
            return [record_of(row) for row in connection.all(query, wanted | {"limit": limit})][::-1]

    def export(self) -> Iterator[AuditRecord]:
        """Every record, oldest first."""
        with self._store.snapshot() as connection:
            for row in iterate(connection, ALL_RECORDS):
                yield record_of(row)

    def public_keys(self) -> PublicKeys:
        """The public keys that verify checkpoints."""
        with self._store.snapshot() as connection:
            return PublicKeys(self._vault, self._reload_keyring(connection).public_keys)

    def verify(self, *checkpoint_files: Path) -> VerificationReport:
        """Check the whole log, offline.

        Finds records that were edited, removed or reordered; a log that was cut
        short and a database that was replaced by an older copy, up to the newest
        checkpoint in the database, in the witness file or in `checkpoint_files`;
        rows of any signed table that differ from what the log says; a keyring
        that was rolled back to an older state; and triggers and views.

        Raises:
            UsageError: one of `checkpoint_files` holds no checkpoint.
        """
        # Files before the database: what others write meanwhile is then in the snapshot too,
        # never in the witness file alone.
        sources = {str(path): given_checkpoints(path) for path in checkpoint_files}
        sources[str(self._witness.path)] = self._witness.checkpoints()
        with self._store.snapshot() as connection:
            problems: list[str] = []
            keyring = self._reload_keyring(connection)
            with _surviving(connection, "the checkpoints", problems):
                sources["the database"] = self._stored_checkpoints(connection)
            wanted = {point.seq for points in sources.values() for point in points}
            walk, hashes, is_read = ChainWalk(self._vault), dict[int, bytes](), False
            with _surviving(connection, "the records", problems):
                problems += self._follow(walk, connection, keyring, hashes, wanted)
                is_read = True
            if is_read:
                problems += walk.state.problems
                problems += self._row_problems(connection, keyring, walk.state)
            problems += schema_problem(self._check_schema, connection)
        if is_read:
            problems += _log_problems(walk, keyring)
            comparison = CheckpointComparison(
                public_keys=PublicKeys(self._vault, keyring.public_keys),
                is_lost=walk.state.epochs.has_lost,
                records=walk.head.seq,
                hashes=hashes,
            )
            for source, points in sources.items():
                problems += comparison.problems(source, points)
        count, head = sum(map(len, sources.values())), walk.head
        hashed = head.hash.hex() if type(head.hash) is bytes else "altered"
        return VerificationReport(head.seq, count, f"{head.seq}:{hashed}", tuple(problems))

    def continuous(self, clock: Clock) -> ContinuousVerification:
        """Verification that runs while the vault is in use."""
        return ContinuousVerification(
            self._store,
            self._vault,
            reload_keyring=self._reload_keyring,
            signer=self._signer,
            clock=clock,
            check_schema=self._check_schema,
        )

    def _stored_checkpoints(self, connection: Connection) -> list[Checkpoint]:
        return [
            Checkpoint(
                vault=self._vault,
                seq=row.seq,
                at=row.at,
                hash=row.hash,
                key=row.signing_key,
                keyring=row.keyring,
                epoch=row.epoch,
                signature=row.signature,
            )
            for row in iterate(connection, _ALL_CHECKPOINTS)  # none is ever removed
        ]

    def _row_problems(self, connection: Connection, keyring: Keyring, state: LogState) -> Iterator[str]:
        comparison = RowComparison(state, self._signer)
        failures: list[str] = []
        for table in SIGNED_TABLES:
            is_read = False
            with _surviving(connection, table.name, failures):
                yield from contradiction(connection, table)
                with closing(unverified_rows(connection, table)) as rows:
                    yield from comparison.table_problems(table, rows)
                is_read = True
            if not is_read:
                comparison.unreadable(table)
        yield from failures
        yield from comparison.missing()
        if comparison.has_read(SECRETS, SECRET_VERSIONS):
            secrets = {row.id: row for row in unverified_rows(connection, SECRETS)}
            versions = unverified_rows(connection, SECRET_VERSIONS)
            yield from unopened(versions, secrets, partial(_opens, keyring))

    def _follow(
        self,
        walk: ChainWalk,
        connection: Connection,
        keyring: Keyring,
        hashes: dict[int, bytes],
        wanted: set[int],
    ) -> Iterator[str]:
        """Follow the chain from its start. Yields the problems; adds the `hashes` of the records `wanted`."""
        for record in map(record_of, iterate(connection, ALL_RECORDS)):
            if (problem := walk.follow(record, keyring)) is not None:
                yield problem
            if record.seq in wanted:
                hashes[record.seq] = record.hash


@contextmanager
def _surviving(connection: Connection, what: str, problems: list[str]) -> Iterator[None]:
    """Go on, with one of the `problems` more, where gusset fails by what the database holds.

    Whoever can cause that must not be able to hide what is wrong elsewhere.
    """
    dialect, driver = connection.dialect, connection.driver
    dialect.savepoint(driver, "SAVEPOINT")
    try:
        yield
    except (GussetError, OSError, dialect.errors):
        raise
    except Exception as error:
        dialect.savepoint(driver, "ROLLBACK TO SAVEPOINT")  # ends what was not read to its end
        problems.append(unreadable(what, error))
    dialect.savepoint(driver, "RELEASE SAVEPOINT")


def _log_problems(walk: ChainWalk, keyring: Keyring) -> Iterator[str]:
    """What is wrong with a log that was followed to its end, and with the keyring by what it says."""
    if walk.head.seq == 0:  # creating the vault is its first record
        yield "the log is empty: every record was removed"
    if keyring.generation < walk.state.keyring:
        yield (
            f"the keyring was rolled back: it is of generation {keyring.generation}, "
            f"but the log has generation {walk.state.keyring}"
        )


def _opens(keyring: Keyring, secret: Any, version: Any) -> bool:
    try:
        context = version_context(secret.team_id, secret.id, secret.folded, version.version, version.write_id)
        keyring.keks.open(version.sealed, context)
    except (CannotOpen, KeyError, TypeError, AttributeError):  # SQLite's columns hold any type
        return False
    return True
