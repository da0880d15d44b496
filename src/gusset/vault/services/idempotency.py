"""Requests that carry a key of their own are executed once, however often they are sent.

The key is stored in the transaction of the request's first write: a request whose response was
lost was either executed, and is known, or was not. The response is stored after it. What is compared
is an HMAC of the request: a plain hash would let whoever reads the database guess a value.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Write, Writer, WriteResult
from gusset.vault.storage.connection import Connection, Store, Transaction
from gusset.vault.storage.keyring_store import KeyringStore
from gusset.vault.storage.known_rows import LookupCall
from gusset.vault.storage.sql import Statement

KEPT = timedelta(days=1)

T = TypeVar("T")

_FIND = Statement(
    "SELECT mac, response, created_at FROM idempotency "
    "WHERE caller = :caller AND route = :route AND key = :key"
)
_INSERT = Statement(
    "INSERT INTO idempotency (caller, route, key, mac, created_at) "
    "VALUES (:caller, :route, :key, :mac, :created_at)"
)
_FORGET = Statement("DELETE FROM idempotency WHERE created_at < :before")
_SET_RESPONSE = Statement(
    "UPDATE idempotency SET response = :response WHERE caller = :caller AND route = :route AND key = :key"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestId:
    """What a repeated request is known by: who sends it, where to, and the key that they chose."""

    caller: str
    route: str
    key: str

    def parameters(self) -> dict[str, Any]:
        return {"caller": self.caller, "route": self.route, "key": self.key}


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """A request that was executed before. `response` is None if it is not known (yet)."""

    same: bool  # whether it was the same request, and not another one with its key
    response: str | None
    created_at: str


class AlreadyExecuted(Exception):
    """Another request with the same key has been executed meanwhile. Nothing is recorded about this one."""

    def __init__(self, executed: Executed) -> None:
        super().__init__("the request was executed before")
        self.executed = executed


class OnceWriter:
    """A writer for the writes of one request: the first one claims the request's key."""

    def __init__(self, writer: Writer, claim: Callable[[Transaction], None]) -> None:
        self._writer = writer
        self._claim = claim
        self._claimed = False

    @property
    def commits(self) -> int:
        return self._writer.commits

    @property
    def access_changes(self) -> int:
        return self._writer.access_changes

    def run(self, intent: AuditEvent, write: Write[T], lookups: Sequence[LookupCall] = ()) -> T:
        if self._claimed:
            return self._writer.run(intent, write, lookups)

        def once(transaction: Transaction) -> WriteResult[T]:
            self._claim(transaction)
            return write(transaction)

        result = self._writer.run(intent, once, lookups)
        self._claimed = True
        return result

    def record_refusal_sums(self) -> None:
        self._writer.record_refusal_sums()

    def sign_head(self) -> None:
        self._writer.sign_head()

    def close(self) -> None:
        """Nothing: the vault closes its own writer."""


class Idempotency:
    """Remembers executed requests for `KEPT`."""

    def __init__(self, store: Store, writer: Writer, clock: Clock, keys: KeyringStore) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock
        self._keys = keys

    def digest(self, *parts: bytes) -> bytes:
        """What requests are compared by. Only its HMAC is stored."""
        return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()

    def find(self, request: RequestId, digest: bytes) -> Executed | None:
        """What is known of a request; None if it was not executed within the last day."""
        with self._store.read() as connection:
            return self._find(connection, request, digest)

    def _find(self, connection: Connection, request: RequestId, digest: bytes) -> Executed | None:
        row = connection.one(_FIND, request.parameters())
        if row is None or row.created_at < self._oldest():
            return None
        same = self._is_of(row.mac, digest)
        if not same and self._keys.reload_if_newer(connection):  # another process has rotated the key
            same = self._is_of(row.mac, digest)
        return Executed(same=same, response=row.response, created_at=row.created_at)

    def _is_of(self, mac: bytes, digest: bytes) -> bool:
        return any(hmac.compare_digest(mac, each) for each in self._keys.current.request_macs(digest))

    def writer(self, request: RequestId, digest: bytes) -> OnceWriter:
        """The writer for the handler of a request.

        Its `run` raises AlreadyExecuted if the request was executed meanwhile.
        """

        def claim(transaction: Transaction) -> None:
            if (executed := self._find(transaction, request, digest)) is not None:
                raise AlreadyExecuted(executed)
            transaction.run(_FORGET, {"before": self._oldest()})
            mac = self._keys.current.request_macs(digest)[0]
            row = request.parameters() | {"mac": mac, "created_at": timestamp(self._clock())}
            transaction.run(_INSERT, row)

        return OnceWriter(self._writer, claim)

    def keep_response(self, request: RequestId, response: str) -> None:
        """Store the response of an executed request."""

        def write(transaction: Transaction) -> WriteResult[None]:
            transaction.run(_SET_RESPONSE, request.parameters() | {"response": response})
            return WriteResult(None, [])

        self._writer.run(AuditEvent("gusset", Action.REQUEST_REPEAT, request.route), write)

    def is_recent(self, executed: Executed, seconds: float) -> bool:
        """Whether it was executed within the last `seconds`."""
        since: datetime = self._clock() - timedelta(seconds=seconds)
        return executed.created_at > timestamp(since)

    def _oldest(self) -> str:
        return timestamp(self._clock() - KEPT)
