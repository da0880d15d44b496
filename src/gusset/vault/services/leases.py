"""Leases: which replicas of deployments are running, and which versions they hold.

A lease begins in the transaction that delivers values to the replica, so every manager knows
it. The replica then renews it. Renewals are kept in memory and written in batches by `flush`:
one write for each would be a commit for every replica every few seconds. A lease that is
not renewed for `LEASE_SECONDS` belongs to a lost replica. Its row stays for a day, and longer while
a rotation by a provider is unfinished: that waits for lost replicas, too.

Leases are not signed, since they give no rights, and not audited: they are state, not acts.
"""

from __future__ import annotations

import base64
import hmac
import json
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Protocol

from gusset.errors import Conflict, Denied, NotFound
from gusset.printable import printable
from gusset.secrets.name import fold_name
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.ids import new_id
from gusset.vault.services.existing_versions import ExistingVersions
from gusset.vault.storage.connection import Connection, Store, Transaction
from gusset.vault.storage.keyring_store import KeyringStore
from gusset.vault.storage.sql import Statement

LEASE_SECONDS = 20.0
MAX_REPLICAS = 1000  # of a deployment, running or not; those that are gone make room for others
_RETENTION = timedelta(days=1)  # of the rows of replicas that are gone
_NEVER_RENEWED_RETENTION = timedelta(minutes=15)  # a rotation may be waiting for them
_IN_ONE_STATEMENT = 100
_SAME_TIME = 0.05  # seconds in which mere renewals share one timestamp, since formatting one is slow
_EVICTED = 100  # leases that were never renewed, at a time
_MAX_VERSION = 2**63 - 1  # what a column holds
_SESSION_PREFIX = "gusset_ses_"
_PURPOSE = "sessions of replicas"  # of the key under which their session keys are made

LEASE_COLUMNS = (
    "id, deployment_id, host, delivered, versions, used, started_at, seen_at, reported_at, stopped_at"
)

_FIND = Statement(f"SELECT {LEASE_COLUMNS} FROM replicas WHERE id = :id AND deployment_id = :deployment_id")
_INSERT = Statement(
    "INSERT INTO replicas (id, deployment_id, host, delivered, versions, used, started_at, seen_at) "
    "VALUES (:id, :deployment_id, '', :delivered, '{}', '{}', :at, :at)"
)
_SET_DELIVERED = Statement("UPDATE replicas SET delivered = :delivered WHERE id = :id")
_COUNT = Statement("SELECT count(*) AS total FROM replicas WHERE deployment_id = :id")
_NO_ROTATION_WAITS = "NOT EXISTS (SELECT 1 FROM secret_rotations)"
_DELETE_GONE = Statement(
    "DELETE FROM replicas WHERE deployment_id = :id "
    f"AND (stopped_at IS NOT NULL OR (seen_at <= :since AND {_NO_ROTATION_WAITS}))"
)
_DELETE_LOST = Statement("DELETE FROM replicas WHERE deployment_id = :id AND seen_at <= :since")
_DELETE_NEVER_RENEWED = Statement(
    "DELETE FROM replicas WHERE id IN (SELECT id FROM replicas WHERE deployment_id = :id "
    f"AND seen_at = started_at AND reported_at IS NULL ORDER BY started_at LIMIT {_EVICTED})"
)
_DELETE_OLD = Statement(
    "DELETE FROM replicas WHERE (seen_at < :before "
    "OR (seen_at = started_at AND reported_at IS NULL AND seen_at <= :never_renewed)) "
    f"AND (stopped_at IS NOT NULL OR {_NO_ROTATION_WAITS})"
)
_SET_SEEN = Statement(
    "UPDATE replicas SET seen_at = :at WHERE id IN (:ids...) AND seen_at < :at AND stopped_at IS NULL"
)
# A report that reached another manager later is not replaced.
_SET_REPORT = Statement(
    "UPDATE replicas SET host = :host, versions = :versions, used = :used, seen_at = :seen_at, "
    "reported_at = :reported_at, stopped_at = :stopped_at "
    "WHERE id = :id AND stopped_at IS NULL AND (reported_at IS NULL OR reported_at <= :reported_at)"
)


class LeaseHolder(Protocol):
    """The deployment that a replica belongs to: a `Grant`."""

    @property
    def deployment_id(self) -> str: ...
    @property
    def deployment(self) -> str: ...
    @property
    def team_id(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseReport:
    """What a replica reports when it renews its lease. None means that it is unchanged.

    `versions` are those that it holds, `used` the newest that it has used, by name of the secret.
    """

    host: str | None = None
    versions: Mapping[str, int] | None = None
    used: Mapping[str, int] | None = None
    stopped: bool = False

    def differs_from(self, lease: Lease) -> bool:
        """Whether it changes more than the time at which the replica was seen."""
        return (
            self.stopped
            or self.host not in (None, lease.host)
            or (self.versions is not None and self.versions != lease.versions)
            or (self.used is not None and self.used != lease.used)
        )


@dataclass(slots=True, kw_only=True)
class Lease:
    """The state of one lease. `reported_at` is the time of the last report that changed anything.

    `delivered` has, by folded name, the first version of each secret that the replica got, 0 for one that
    was missing: what it may hold before it has reported anything. None for a lease of an older gusset.
    Only `seen_at` and `session_key` are ever changed; for everything else there is a new object.
    """

    id: str
    deployment_id: str
    host: str = ""
    delivered: Mapping[str, int] | None = None
    versions: Mapping[str, int] = field(default_factory=dict)
    used: Mapping[str, int] = field(default_factory=dict)
    seen_at: str
    reported_at: str | None = None
    stopped_at: str | None = None
    session_key: bytes = field(default=b"", repr=False)  # with which it was renewed here

    @classmethod
    def from_row(cls, row: Any) -> Lease:
        """The lease of a row; what is no version or text counts as not reported: rows are not signed."""
        return cls(
            id=text_in(row.id) or "",
            deployment_id=text_in(row.deployment_id) or "",
            host=text_in(row.host) or "",
            delivered=None if row.delivered is None else _numbers(row.delivered),
            versions=_numbers(row.versions),
            used=_numbers(row.used),
            seen_at=text_in(row.seen_at) or "",
            reported_at=text_in(row.reported_at),
            stopped_at=text_in(row.stopped_at),
        )

    def version_of(self, folded: str) -> int | None:
        """The version that the replica reports to hold of the secret with that folded name."""
        return _highest(self.versions, folded)

    def used_of(self, folded: str) -> int | None:
        """The newest version that the replica has used of the secret with that folded name."""
        return _highest(self.used, folded)

    def holds(self, folded: str) -> bool:
        """Whether the replica may hold a version of the secret with that folded name."""
        if not self.versions:  # it has not reported any yet
            return bool((self.delivered or {}).get(folded))
        return self.version_of(folded) is not None

    def row(self) -> dict[str, Any]:
        """The parameters of `_SET_REPORT`: texts that every database can store, whatever was reported.

        Else one report would keep all others from being written.
        """
        return {
            "id": self.id,
            "host": printable(self.host),
            "versions": json.dumps(dict(self.versions)),
            "used": json.dumps(dict(self.used)),
            "seen_at": self.seen_at,
            "reported_at": self.reported_at,
            "stopped_at": self.stopped_at,
        }


class Leases:
    """The leases of one vault, in its database and in this process's memory. Thread-safe."""

    def __init__(self, store: Store, writer: Writer, clock: Clock, *, keys: KeyringStore) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock
        self._keys = keys
        self._lock = threading.Lock()  # guards the fields below
        self._renewed: dict[str, Lease] = {}  # leases that were renewed here, by id
        self._unwritten: set[str] = set()  # ids of those that were renewed since the last `flush`
        self._reported: set[str] = set()  # ids of those with a report that is not written
        self._time, self._time_until = "", 0.0  # of `renew_again`, and until when it is used
        self._existing = ExistingVersions(store)

    # --- beginning and renewing

    def begin(self, transaction: Transaction, holder: LeaseHolder, delivered: Mapping[str, int]) -> str:
        """Begin a lease; returns its id. Only the session key of `session_key_of` renews it.

        `delivered` are the versions that its replica gets in the same transaction, 0 for a missing secret.

        Raises:
            Conflict: the deployment has `MAX_REPLICAS` that are running.
        """
        self._make_room(transaction, holder)
        self._existing.note(holder.team_id, delivered.items())
        lease = new_id()
        transaction.run(
            _INSERT,
            {
                "id": lease,
                "deployment_id": holder.deployment_id,
                "delivered": json.dumps(_by_folded_name(delivered)),
                "at": timestamp(self._clock()),
            },
        )
        return lease

    def extend(
        self, transaction: Transaction, holder: LeaseHolder, lease: Lease, delivered: Mapping[str, int]
    ) -> None:
        """Note that the replica of `lease` gets these secrets, too, in the same transaction."""
        self._existing.note(holder.team_id, delivered.items())
        folded = _by_folded_name(delivered)
        if lease.delivered is None or folded.keys() <= lease.delivered.keys():
            return
        row = transaction.one(_FIND, {"id": lease.id, "deployment_id": holder.deployment_id})
        if row is not None and row.delivered is not None:
            known = _numbers(row.delivered)
            transaction.run(_SET_DELIVERED, {"id": lease.id, "delivered": json.dumps(folded | known)})

    def _make_room(self, transaction: Transaction, holder: LeaseHolder) -> None:
        """Have room for a lease, if need be by forgetting gone replicas and those that never renewed."""
        deployment = {"id": holder.deployment_id}
        if self._count(transaction, holder) < MAX_REPLICAS:
            return
        transaction.run(_DELETE_GONE, deployment | {"since": self._live_since()})
        if self._count(transaction, holder) < MAX_REPLICAS:
            return
        transaction.run(_DELETE_NEVER_RENEWED, deployment)
        if self._count(transaction, holder) < MAX_REPLICAS:
            return
        transaction.run(_DELETE_LOST, deployment | {"since": self._live_since()})
        if self._count(transaction, holder) >= MAX_REPLICAS:
            raise Conflict(
                f"{holder.deployment} has {MAX_REPLICAS} running replicas, which is the limit",
                hint=f"a replica that has not renewed its lease for {LEASE_SECONDS:g} s no longer counts",
            )

    def _count(self, connection: Connection, holder: LeaseHolder) -> int:
        row: Any = connection.one(_COUNT, {"id": holder.deployment_id})
        return int(row.total)

    def session_key_of(self, holder: LeaseHolder, lease: str) -> str:
        """The key with which the replica of a lease shows that it is that replica.

        An HMAC: every manager can verify it without having stored anything, and whoever can only
        write the database cannot make one.
        """
        return _session_key(holder, lease, self._keys.current.derive(_PURPOSE))

    def _check_session_key(self, holder: LeaseHolder, lease: str, given: bytes) -> None:
        """Raises Denied unless it is the lease's, made with any of the vault's keys.

        A lease goes on when the audit key is replaced, of which this process may not know yet.
        """

        def made(key: bytes) -> bool:
            return hmac.compare_digest(given, _session_key(holder, lease, key).encode())

        if self._keys.find_derived(_PURPOSE, made, self._store.read) is None:
            raise Denied("that is not this replica's session key")

    def resume(self, holder: LeaseHolder, session_key: str) -> Lease | None:
        """Renew the lease of a session key and return it; None if there is no such lease any more."""
        lease = session_key.removeprefix(_SESSION_PREFIX).partition("_")[0]
        try:
            return self.renew(holder, lease, session_key, LeaseReport())
        except (Denied, NotFound):
            return None

    def renew(self, holder: LeaseHolder, lease_id: str, session_key: str, report: LeaseReport) -> Lease:
        """Renew a lease, and store what its replica reports. Returns the lease.

        Raises:
            Denied: the session key is missing, or another's.
            NotFound: there is no such lease, or it has ended.
            Conflict: a reported version does not exist.
        """
        if not session_key:
            raise Denied(
                "a replica's report needs its session key, in the header Gusset-Session",
                hint="POST /v1/deployment/secrets returns it; update a gusset that does not send it",
            )
        lease = self._find(holder, lease_id)
        if lease is None or lease.stopped_at is not None:
            raise NotFound("there is no such replica", hint="fetch the secrets again to become one")
        given = session_key.encode("utf-8", "replace")
        self._check_session_key(holder, lease_id, given)
        lease.session_key = given
        at, changed = timestamp(self._clock()), report.differs_from(lease)
        if changed:
            new = replace(
                lease,
                host=lease.host if report.host is None else report.host,
                versions=lease.versions if report.versions is None else dict(report.versions),
                used=lease.used if report.used is None else dict(report.used),
                reported_at=at,
                stopped_at=at if report.stopped else None,
            )
            claimed = {*new.versions.items(), *new.used.items()}
            self._existing.check(holder.team_id, claimed - {*lease.versions.items(), *lease.used.items()})
            lease = new
        with self._lock:
            lease.seen_at = at
            self._renewed[lease_id] = lease
            (self._reported if changed else self._unwritten).add(lease_id)
        return lease

    def renew_again(self, holder: LeaseHolder, lease_id: str, session_key: bytes) -> bool:
        """Renew a lease as it was renewed here before, without reading the database.

        Returns whether that was possible: otherwise call `renew`.
        """
        lease = self._renewed.get(lease_id)
        if lease is None or lease.stopped_at is not None or lease.deployment_id != holder.deployment_id:
            return False
        if not lease.session_key or not hmac.compare_digest(session_key, lease.session_key):
            return False
        with self._lock:
            if (now := time.monotonic()) >= self._time_until:
                self._time, self._time_until = timestamp(self._clock()), now + _SAME_TIME
            lease.seen_at = max(lease.seen_at, self._time)
            self._renewed[lease_id] = lease
            self._unwritten.add(lease_id)
        return True

    def _find(self, holder: LeaseHolder, lease_id: str) -> Lease | None:
        lease = self._renewed.get(lease_id)
        if lease is not None:
            return lease if lease.deployment_id == holder.deployment_id else None
        with self._store.read() as connection:
            row = connection.one(_FIND, {"id": lease_id, "deployment_id": holder.deployment_id})
        return None if row is None else Lease.from_row(row)

    # --- reading

    def current(self, row: Any) -> Lease:
        """The lease of a row, with what was reported here since the row was written."""
        lease = Lease.from_row(row)
        renewed = self._renewed.get(lease.id)
        if renewed is None:
            return lease
        newest = renewed if (renewed.reported_at or "") >= (lease.reported_at or "") else lease
        seen_at = max(renewed.seen_at, lease.seen_at)
        return replace(newest, seen_at=seen_at, delivered=lease.delivered)

    def is_live(self, lease: Lease) -> bool:
        """Whether the replica is running, as far as is known."""
        return lease.stopped_at is None and lease.seen_at > self._live_since()

    def _live_since(self) -> str:
        return timestamp(self._clock() - timedelta(seconds=LEASE_SECONDS))

    # --- writing in batches

    @property
    def has_reports(self) -> bool:
        """Whether reports wait to be written. They matter to other managers sooner than mere renewals."""
        return bool(self._reported)

    def flush(self, *, reports_only: bool = False) -> None:
        """Write what has changed since the last time, in one transaction.

        Raises:
            Unreachable, HostError, IntegrityError: the database failed. It is written the next time.
        """
        with self._lock:
            reported, self._reported = self._reported, set()
            renewed: set[str] = set()
            if not reports_only:
                renewed, self._unwritten = self._unwritten - reported, set()
            leases = dict(self._renewed)
        if not (reported or renewed):
            self._forget()
            return
        now = self._clock()
        old = {
            "before": timestamp(now - _RETENTION),
            "never_renewed": timestamp(now - _NEVER_RENEWED_RETENTION),
        }

        def write(transaction: Transaction) -> WriteResult[None]:
            if not reports_only:
                for at, ids in _by_second(leases[lease] for lease in renewed):
                    transaction.run(_SET_SEEN, {"at": at, "ids": ids})
            transaction.run_many(_SET_REPORT, [leases[lease].row() for lease in reported])
            if not reports_only:
                transaction.run(_DELETE_OLD, old)
            return WriteResult(None, [])

        try:
            self._writer.run(AuditEvent("gusset", Action.REPLICA_REPORT, "replicas"), write)
        except BaseException:
            with self._lock:
                self._reported |= reported
                self._unwritten |= renewed
            raise
        self._forget()

    def _forget(self) -> None:
        """Drop from memory the leases that have ended and have been written to the database."""
        since = self._live_since()
        with self._lock:
            kept = self._reported | self._unwritten
            for lease in list(self._renewed.values()):
                if lease.id not in kept and (lease.stopped_at is not None or lease.seen_at <= since):
                    del self._renewed[lease.id]


def _session_key(holder: LeaseHolder, lease: str, key: bytes) -> str:
    mac = hmac.digest(key, f"{holder.deployment_id}/{lease}".encode(), "sha256")
    return f"{_SESSION_PREFIX}{lease}_{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


def _numbers(text: Any) -> dict[str, int]:
    """The versions in a column, by name of the secret; none if the column has anything else."""
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return {}
    if type(found) is not dict or not all(_is_version(name, number) for name, number in found.items()):
        return {}
    return found


def _is_version(name: str, number: Any) -> bool:
    return type(number) is int and 0 <= number <= _MAX_VERSION and name.isprintable()


def text_in(value: Any) -> str | None:
    """The text in a column of a replica's row, which is not signed; None if the column has anything else."""
    return value if type(value) is str and value.isprintable() else None


def _highest(versions: Mapping[str, int], folded: str) -> int | None:
    return max((number for name, number in versions.items() if fold_name(name) == folded), default=None)


def _by_folded_name(versions: Mapping[str, int]) -> dict[str, int]:
    return {fold_name(name): version for name, version in versions.items()}


def _by_second(leases: Iterable[Lease]) -> Iterable[tuple[str, list[str]]]:
    """Lists of ids with the second in which they were renewed, all of one length: one prepared statement."""
    seconds: dict[str, list[str]] = {}
    for lease in leases:
        seconds.setdefault(lease.seen_at[:19] + ".000Z", []).append(lease.id)
    for second, ids in seconds.items():
        for start in range(0, len(ids), _IN_ONE_STATEMENT):
            part = ids[start : start + _IN_ONE_STATEMENT]
            yield second, part + part[-1:] * (_IN_ONE_STATEMENT - len(part))
