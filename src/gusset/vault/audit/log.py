"""The audit log: read, exported, and verified against edits, cuts and older copies of the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, select

from gusset.errors import UsageError
from gusset.vault.audit.chain import Head
from gusset.vault.audit.checkpoints import Checkpoint, WitnessFile, read_checkpoints
from gusset.vault.audit.consistency import SECRET_ROWS, VERSION_ROWS, ConsistencyCheck
from gusset.vault.audit.events import AuditRecord, genesis_hash
from gusset.vault.crypto.envelope import CannotOpen, aad_for
from gusset.vault.crypto.keyring import Keyring
from gusset.vault.storage.database import translate_db_errors
from gusset.vault.storage.tables import audit_table, checkpoints_table

_all_records = select(audit_table).order_by(audit_table.c.seq)
_all_checkpoints = select(
    checkpoints_table.c.seq, checkpoints_table.c.at, checkpoints_table.c.hash, checkpoints_table.c.signature
).order_by(checkpoints_table.c.seq)


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
        self, engine: Engine, vault: str, keyring: Callable[[], Keyring], witness: WitnessFile
    ) -> None:
        self._engine = engine
        self._vault = vault
        self._keyring = keyring
        self._witness = witness

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
        contains it, ignoring case.
        """
        query = select(audit_table).order_by(audit_table.c.seq.desc()).limit(limit)
        filters = {"target": target, "action": action, "actor": actor, "outcome": outcome}
        for name, wanted in filters.items():
            if wanted is not None:
                column = audit_table.c[name]
                query = query.where(
                    column.icontains(wanted, autoescape=True) if substring else column == wanted
                )
        if before is not None:
            query = query.where(audit_table.c.seq < before)
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            return [_record(row) for row in connection.execute(query)][::-1]

    def export(self) -> Iterator[AuditRecord]:
        """Every record, oldest first."""
        with self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=1000).execute(_all_records):
                yield _record(row)

    def verify(self, checkpoint_file: Path | None = None) -> VerificationReport:
        """Check the whole log, offline.

        Finds records that were edited, removed or reordered; a log that was cut
        short and a database that was replaced by an older copy, up to the newest
        checkpoint in the database, in the witness file or in `checkpoint_file`;
        and secrets whose rows differ from what the log says.

        Raises:
            UsageError: `checkpoint_file` holds no checkpoint.
        """
        # Files before the database: what others write meanwhile is then in the snapshot too,
        # never in the witness file alone.
        sources = {} if checkpoint_file is None else {str(checkpoint_file): _given(checkpoint_file)}
        sources[str(self._witness.path)] = self._witness.checkpoints()
        with translate_db_errors(self._engine), self._engine.connect() as connection, connection.begin():
            sources["the database"] = self._stored_checkpoints(connection)
            wanted = {point.seq for points in sources.values() for point in points}
            consistency = ConsistencyCheck(self._opens)
            head, hashes, problems = self._walk(connection, wanted, consistency)
            problems += consistency.problems(
                connection.execute(SECRET_ROWS), connection.execute(VERSION_ROWS)
            )
        if head.seq == 0:  # creating the vault is its first record
            problems.append("the log is empty: every record was removed")
        for source, points in sources.items():
            problems += self._checkpoint_problems(source, points, head, hashes)
        count = sum(map(len, sources.values()))
        return VerificationReport(head.seq, count, f"{head.seq}:{head.hash.hex()}", tuple(problems))

    def _stored_checkpoints(self, connection: Connection) -> list[Checkpoint]:
        rows = connection.execute(_all_checkpoints)
        return [
            Checkpoint(vault=self._vault, seq=row.seq, at=row.at, hash=row.hash, signature=row.signature)
            for row in rows
        ]

    def _opens(self, row: Any) -> bool:
        """Whether the sealed bytes of a row of `VERSION_ROWS` open."""
        try:
            self._keyring().open(row.sealed, aad_for(row.team_id, row.secret_id, row.folded, row.version))
        except (CannotOpen, KeyError):
            return False
        return True

    def _walk(
        self, connection: Connection, wanted: set[int], consistency: ConsistencyCheck
    ) -> tuple[Head, dict[int, bytes], list[str]]:
        """Follow the chain from its start: its head, the hashes of the records `wanted`, the problems."""
        keyring, previous = self._keyring(), Head(0, genesis_hash(self._vault))
        hashes, problems = {}, []
        for row in connection.execution_options(yield_per=1000).execute(_all_records):
            record = _record(row)
            if record.seq != previous.seq + 1:
                problems.append(f"records {previous.seq + 1} to {record.seq - 1} are missing")
            elif record.hash_after(previous.hash) != record.hash:
                problems.append(f"record {record.seq} was altered or moved")
            elif keyring.mac(record.hash) != record.mac:
                problems.append(f"record {record.seq} was not written with this vault's keyring")
            consistency.follow(record)
            if record.seq in wanted:
                hashes[record.seq] = record.hash
            previous = Head(record.seq, record.hash)
        return previous, hashes, problems

    def _checkpoint_problems(
        self, source: str, points: Sequence[Checkpoint], head: Head, hashes: Mapping[int, bytes]
    ) -> list[str]:
        problems = []
        for point in points:
            if point.vault != self._vault:
                problems.append(f"{source}: the checkpoint of record {point.seq} is from another vault")
            elif not self._keyring().signed(point.signed_bytes(), point.signature):
                problems.append(f"{source}: the checkpoint of record {point.seq} is not signed by this vault")
            elif point.seq > head.seq:
                problems.append(
                    f"{source}: the log had {point.seq} records at {point.at} and has {head.seq} now: "
                    "it was cut short, or this is an older copy of the database"
                )
            elif hashes.get(point.seq) != point.hash:
                problems.append(f"{source}: record {point.seq} is not the same as at {point.at}")
        return problems


def _given(path: Path) -> list[Checkpoint]:
    found = read_checkpoints(path)
    if not found:
        raise UsageError(f"{path} contains no checkpoint", hint="use a copy of a witness file")
    return found


def _record(row: Row[Any]) -> AuditRecord:
    return AuditRecord(**row._mapping)
