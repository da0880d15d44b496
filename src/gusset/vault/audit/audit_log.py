"""The audit log: a chain of records that cannot be edited, cut or reordered unnoticed.

Each record's hash covers the hash before it; its HMAC vouches that a holder of
the keyring made it. Signed checkpoints name a record and its hash; they lie in
the database and in a witness file outside it, so that an older copy of the
database is noticed.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, func, insert, select

from gusset.errors import UsageError
from gusset.vault.audit.consistency import ROWS, VERSION_ROWS, ConsistencyCheck
from gusset.vault.crypto.envelope import CannotOpen, place_of
from gusset.vault.crypto.keyring import Keyring
from gusset.vault.storage.compiled_sql import Prepared
from gusset.vault.storage.database import translate_db_errors
from gusset.vault.storage.tables import audit as audit_table
from gusset.vault.storage.tables import checkpoints as checkpoint_table

log = logging.getLogger("gusset.vault")

Clock = Callable[[], datetime]
CHECKPOINT_EVERY = 1.0  # seconds of activity
_WITNESS_BYTES = 262_144  # more than that and all but the newest lines are let go
_WITNESS_LINES = 200


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds, as every time in the vault is written."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Actor(str):
    """Who acts, and the `address` that they act from, where they come over a network."""

    address: str | None

    def __new__(cls, name: str, address: str | None = None) -> Actor:
        actor = super().__new__(cls, name)
        actor.address = address
        return actor


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that was done or refused, before it has a place in the chain."""

    actor: str
    action: str
    target: str
    outcome: str = "ok"
    details: Mapping[str, Any] = field(default_factory=dict)

    def stored_details(self) -> Mapping[str, Any]:
        """The details, with the address that the actor acted from."""
        address = getattr(self.actor, "address", None)
        return {**self.details, "from": address} if address else self.details


@dataclass(frozen=True, slots=True)
class Record:
    """An entry in its place."""

    seq: int
    at: str
    actor: str
    action: str
    target: str
    outcome: str
    details: str
    hash: bytes
    mac: bytes

    def data(self) -> dict[str, Any]:
        """The record as JSON has it."""
        return {
            "seq": self.seq,
            "at": self.at,
            "actor": self.actor,
            "action": self.action,
            "target": self.target,
            "outcome": self.outcome,
            "details": json.loads(self.details),
            "hash": self.hash.hex(),
            "mac": self.mac.hex(),
        }

    def hash_after(self, previous: bytes) -> bytes:
        return _hash(
            previous, self.seq, self.at, self.actor, self.action, self.target, self.outcome, self.details
        )


def _hash(previous: bytes, *parts: str | int) -> bytes:
    return hashlib.sha256(previous + json.dumps(parts, separators=(",", ":")).encode()).digest()


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the chain: the newest record's number and hash."""

    seq: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A signed statement that record `seq` had `hash`."""

    vault: str
    seq: int
    at: str
    hash: bytes
    signature: bytes

    def signed_bytes(self) -> bytes:
        return json.dumps(["gusset checkpoint 1", self.vault, self.seq, self.at, self.hash.hex()]).encode()

    def line(self) -> bytes:
        """The checkpoint as one line of the witness file."""
        signature = base64.b64encode(self.signature).decode()
        data = {
            "vault": self.vault,
            "seq": self.seq,
            "at": self.at,
            "hash": self.hash.hex(),
            "signature": signature,
        }
        return json.dumps(data).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Checkpoint:
        """Raises ValueError for what is not a checkpoint."""
        try:
            data = json.loads(line)
            hash_, signature = bytes.fromhex(data["hash"]), base64.b64decode(data["signature"], validate=True)
            return cls(str(data["vault"]), int(data["seq"]), str(data["at"]), hash_, signature)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("not a checkpoint") from error


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found. `problems` is empty when the log holds."""

    records: int
    checkpoints: int
    head: str
    problems: tuple[str, ...]


_last = select(func.max(audit_table.c.seq)).scalar_subquery()
_newest = Prepared(select(audit_table.c.seq, audit_table.c.hash).where(audit_table.c.seq == _last))
_all = select(audit_table).order_by(audit_table.c.seq)
_add = Prepared(insert(audit_table), audit_table.c.keys())
_add_checkpoint = insert(checkpoint_table)


class Chain:
    """Extends the chain, for the writer: within its transaction, once per batch."""

    def __init__(self, vault: str, keyring: Callable[[], Keyring], clock: Clock) -> None:
        self._vault = vault
        self._keyring = keyring
        self._clock = clock
        self._genesis = _hash(b"", "gusset audit 1", vault)
        self._signed_at: datetime | None = None

    def head(self, connection: Connection) -> Head:
        row = _newest.one(connection, {})
        return Head(row.seq, row.hash) if row else Head(0, self._genesis)

    def extend(self, connection: Connection, entries: Sequence[Entry]) -> Checkpoint | None:
        """Append `entries`; returns the checkpoint that was due, stored already."""
        head, keyring, now = self.head(connection), self._keyring(), self._clock()
        at, rows = timestamp(now), []
        for entry in entries:
            details = json.dumps(entry.stored_details(), sort_keys=True)
            parts = (head.seq + 1, at, str(entry.actor), entry.action, entry.target, entry.outcome, details)
            head = Head(head.seq + 1, _hash(head.hash, *parts))
            mac = keyring.mac(head.hash)
            rows.append(dict(zip(audit_table.c.keys(), (*parts, head.hash, mac), strict=True)))
        _add.run_many(connection, rows)
        return self._checkpoint(connection, head, now) if self._due(now) else None

    def _due(self, now: datetime) -> bool:
        return self._signed_at is None or (now - self._signed_at).total_seconds() >= CHECKPOINT_EVERY

    def _checkpoint(self, connection: Connection, head: Head, now: datetime) -> Checkpoint:
        unsigned = Checkpoint(self._vault, head.seq, timestamp(now), head.hash, b"")
        signature = self._keyring().sign(unsigned.signed_bytes())
        values = {"seq": head.seq, "at": unsigned.at, "hash": head.hash, "signature": signature}
        connection.execute(_add_checkpoint, values)
        self._signed_at = now
        return Checkpoint(self._vault, head.seq, unsigned.at, head.hash, signature)

    def final(self, connection: Connection) -> Checkpoint | None:
        """The checkpoint on close: for the newest record, unless it has one."""
        head = self.head(connection)
        known = select(checkpoint_table.c.seq).where(checkpoint_table.c.seq == head.seq)
        if head.seq == 0 or connection.execute(known).one_or_none():
            return None
        return self._checkpoint(connection, head, self._clock())


class Witness:
    """The file that remembers checkpoints apart from the database."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, checkpoint: Checkpoint) -> None:
        """Append and flush to disk. A failure is logged: the act it belongs to is committed already."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = self._locked()
            try:
                size = os.fstat(fd).st_size
                torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"  # a crash cut the last line short
                os.write(fd, b"\n" * torn + checkpoint.line())
                os.fsync(fd)
                if size > _WITNESS_BYTES:
                    self._shorten()
            finally:
                os.close(fd)
        except OSError as error:
            log.warning("the witness file %s could not be written: %s", self.path, error.strerror)

    def _locked(self) -> int:
        """The file, locked; opened anew when another process has replaced it meanwhile."""
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self.path, flags, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), self.path.stat()):
                    return fd
            os.close(fd)

    def _shorten(self) -> None:
        """Keep the newest lines, in a new file: a crash leaves the old one or the new one, whole."""
        lines = self.path.read_bytes().splitlines(keepends=True)[-_WITNESS_LINES:]
        scratch = self.path.with_name(self.path.name + ".new")
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(b"".join(lines))
            file.flush()
            os.fsync(fd)
        scratch.replace(self.path)

    def checkpoints(self) -> list[Checkpoint]:
        """Those in the file; a line that was cut short by a crash is passed over."""
        try:
            return read_checkpoints(self.path)
        except FileNotFoundError:
            return []


def read_checkpoints(path: Path) -> list[Checkpoint]:
    found = []
    for line in path.read_bytes().splitlines():
        try:
            found.append(Checkpoint.parse(line))
        except ValueError:
            log.warning("%s has a line that is not a checkpoint", path)
    return found


class AuditLog:
    """Reads and verifies the log."""

    def __init__(self, engine: Engine, vault: str, keyring: Callable[[], Keyring], witness: Witness) -> None:
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
        parts: bool = False,
    ) -> list[Record]:
        """The newest `limit` records that fit, of those before number `before`; oldest first.

        With `parts`, what is given need only stand in the field, in upper or lower case.
        """
        query = select(audit_table).order_by(audit_table.c.seq.desc()).limit(limit)
        for column, wanted in (
            ("target", target),
            ("action", action),
            ("actor", actor),
            ("outcome", outcome),
        ):
            if wanted is not None:
                field_of = audit_table.c[column]
                query = query.where(
                    field_of.icontains(wanted, autoescape=True) if parts else field_of == wanted
                )
        if before is not None:
            query = query.where(audit_table.c.seq < before)
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            return [Record(*row) for row in connection.execute(query)][::-1]

    def export(self) -> Iterator[Record]:
        """Every record, oldest first."""
        with self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=1000).execute(_all):
                yield Record(*row)

    def verify(self, checkpoint: Path | None = None) -> Report:
        """Check the whole log, offline.

        Finds records that were edited, removed or reordered; and, up to the
        newest checkpoint in the witness file or in `checkpoint`, a log that
        was cut short and a database that is older than it was; and secrets
        whose state is not what the log left them in.

        Raises:
            UsageError: `checkpoint` holds no checkpoint.
        """
        # The files first: what others write meanwhile is then in the snapshot, never only in the witness.
        places = self._given(checkpoint) | {str(self._witness.path): self._witness.checkpoints()}
        with translate_db_errors(self._engine), self._engine.connect() as connection, connection.begin():
            places["the database"] = [Checkpoint(self._vault, *row) for row in connection.execute(_stored)]
            wanted = {point.seq for points in places.values() for point in points}
            agreement = ConsistencyCheck(self._opens)
            head, hashes, problems = self._walk(connection, wanted, agreement)
            problems += agreement.problems(connection.execute(ROWS), connection.execute(VERSION_ROWS))
        if head.seq == 0:  # the making of the vault is its first record
            problems.append("the log is empty: every record was removed")
        for place, points in places.items():
            problems += self._hold(place, points, head, hashes)
        count = sum(map(len, places.values()))
        return Report(head.seq, count, f"{head.seq}:{head.hash.hex()}", tuple(problems))

    def _opens(self, row: Any) -> bool:
        """Whether the sealed bytes of a version (see `VERSION_ROWS`) open in their place."""
        try:
            self._keyring().open(row.sealed, place_of(row.team_id, row.secret_id, row.folded, row.version))
        except (CannotOpen, KeyError):
            return False
        return True

    def _given(self, path: Path | None) -> dict[str, list[Checkpoint]]:
        if path is None:
            return {}
        found = read_checkpoints(path)
        if not found:
            raise UsageError(f"{path} holds no checkpoint", hint="it should be a copy of a witness file")
        return {str(path): found}

    def _walk(
        self, connection: Connection, wanted: set[int], agreement: ConsistencyCheck
    ) -> tuple[Head, dict[int, bytes], list[str]]:
        """The chain from its start: its head, the hashes at the numbers `wanted`, and what does not fit."""
        keyring, previous = self._keyring(), Head(0, _hash(b"", "gusset audit 1", self._vault))
        hashes, problems = {}, []
        for row in connection.execution_options(yield_per=1000).execute(_all):
            record = Record(*row)
            if record.seq != previous.seq + 1:
                problems.append(f"records {previous.seq + 1} to {record.seq - 1} are missing")
            elif record.hash_after(previous.hash) != record.hash:
                problems.append(f"record {record.seq} was altered, or is not where it was written")
            elif keyring.mac(record.hash) != record.mac:
                problems.append(f"record {record.seq} was not written with this vault's keyring")
            agreement.follow(record)
            if record.seq in wanted:
                hashes[record.seq] = record.hash
            previous = Head(record.seq, record.hash)
        return previous, hashes, problems

    def _hold(
        self, place: str, points: Sequence[Checkpoint], head: Head, hashes: Mapping[int, bytes]
    ) -> list[str]:
        problems = []
        for point in points:
            if point.vault != self._vault:
                problems.append(f"{place}: the checkpoint of record {point.seq} is another vault's")
            elif not self._keyring().signed(point.signed_bytes(), point.signature):
                problems.append(f"{place}: the checkpoint of record {point.seq} is not signed by this vault")
            elif point.seq > head.seq:
                problems.append(
                    f"{place}: at {point.at} the log had {point.seq} records, now it has {head.seq}: "
                    "it was cut short, or this is an older copy of the database"
                )
            elif hashes.get(point.seq) != point.hash:
                problems.append(f"{place}: record {point.seq} is not the one that was there at {point.at}")
        return problems


_stored = select(
    checkpoint_table.c.seq, checkpoint_table.c.at, checkpoint_table.c.hash, checkpoint_table.c.signature
).order_by(checkpoint_table.c.seq)
