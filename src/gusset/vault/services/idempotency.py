"""Requests with an idempotency key are executed once, however often they are sent.

The key is stored in the transaction of the request's first write: a request whose response was
lost was either executed, and is known, or was not. The response is stored with it if that write alone
determines it, else after the last write. What is compared is an HMAC of the request: a plain hash
would let whoever reads the database guess a value. The response has an HMAC, too: else whoever writes the
database could make a client accept a key of theirs as its own.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from gusset.errors import IntegrityError
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Write, Writer, WriteResult
from gusset.vault.storage.connection import Connection, Store, Transaction
from gusset.vault.storage.keyring_store import KeyringStore
from gusset.vault.storage.known_rows import LookupCall
from gusset.vault.storage.sql import Statement

KEPT = timedelta(days=1)

_MAC = "mac"  # the field of a stored response that has its HMAC; those of older releases have none

T = TypeVar("T")

_FIND = Statement(
    "SELECT mac, response, created_at FROM idempotency "
    "WHERE caller = :caller AND route = :route AND key = :key"
)
_INSERT = Statement(
    "INSERT INTO idempotency (caller, route, key, mac, response, created_at) "
    "VALUES (:caller, :route, :key, :mac, :response, :created_at)"
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
    """A request that was executed before. `response` is None if it is not stored (yet)."""

    same: bool  # whether it was the same request, and not another one with its key
    response: Mapping[str, Any] | None
    created_at: str


class AlreadyExecuted(Exception):
    """Another request with the same key has been executed meanwhile. Nothing is recorded about this one."""

    def __init__(self, executed: Executed) -> None:
        super().__init__("the request was executed before")
        self.executed = executed


class OnceWriter:
    """A writer for the writes of one request: the first one stores the request's key."""

    def __init__(self, writer: Writer, idempotency: Idempotency, request: RequestId, digest: bytes) -> None:
        self._writer = writer
        self._idempotency = idempotency
        self._request = request
        self._digest = digest
        self._render: Callable[[Any], Mapping[str, Any]] | None = None
        self._executed = False

    def keep_response(self, render: Callable[[Any], Mapping[str, Any]]) -> None:
        """Store the response in the first write's transaction: `render` makes it of what that write returns.

        It may be called several times, and must do nothing else: the transaction waits for it.
        """
        self._render = render

    @property
    def lacks_response(self) -> bool:
        """Whether the request was executed and its response is not stored."""
        return self._executed and self._render is None

    @property
    def commits(self) -> int:
        return self._writer.commits

    @property
    def access_changes(self) -> int:
        return self._writer.access_changes

    def run(self, intent: AuditEvent, write: Write[T], lookups: Sequence[LookupCall] = ()) -> T:
        if self._executed:
            return self._writer.run(intent, write, lookups)

        def once(transaction: Transaction) -> WriteResult[T]:
            self._idempotency.raise_if_executed(transaction, self._request, self._digest)
            result = write(transaction)
            response = self._render(result.value) if self._render else None
            self._idempotency.add(transaction, self._request, self._digest, response)
            return result

        value = self._writer.run(intent, once, lookups)
        self._executed = True
        return value

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
        """What is known of a request; None if it was not executed within the last day.

        Raises:
            IntegrityError: its response was altered in the database.
        """
        with self._store.read() as connection:
            return self._find(connection, request, digest)

    def _find(self, connection: Connection, request: RequestId, digest: bytes) -> Executed | None:
        row = connection.one(_FIND, request.parameters())
        if row is None:
            return None
        # SQLite's columns hold any type.
        created_at = row.created_at if type(row.created_at) is str else timestamp(self._clock())
        if created_at < self._oldest():
            return None
        same = self._is_of(row.mac, digest)
        if not same and self._keys.reload_if_newer(connection):  # another process has rotated the key
            same = self._is_of(row.mac, digest)
        response = self._genuine(request, row.response) if same else None
        return Executed(same=same, response=response, created_at=created_at)

    def _genuine(self, request: RequestId, text: str | None) -> Mapping[str, Any] | None:
        """The stored response of a request; None if there is none, or none that has an HMAC."""
        if text is None:
            return None
        try:
            stored: dict[str, Any] = json.loads(text)
            if _MAC not in stored:
                return None
            mac = bytes.fromhex(stored.pop(_MAC))
            genuine = self._is_of(mac, self._response_digest(request, stored))
        except (ValueError, TypeError, AttributeError):  # SQLite's columns hold any type
            genuine = False
        if not genuine:
            raise IntegrityError(
                f"the response of an earlier request ({request.route}) was altered in the database: "
                "it is not repeated",
                hint="read what the request has changed; it is not executed again",
            )
        return stored

    def _authenticated(self, request: RequestId, response: Mapping[str, Any]) -> str:
        """A response as it is stored, with its HMAC."""
        mac = self._keys.current.request_macs(self._response_digest(request, response))[0]
        return json.dumps({**response, _MAC: mac.hex()})

    def _response_digest(self, request: RequestId, response: Mapping[str, Any]) -> bytes:
        parts = ("response", request.caller, request.route, request.key, json.dumps(response))
        return self.digest(*[part.encode() for part in parts])

    def _is_of(self, mac: Any, digest: bytes) -> bool:
        if type(mac) is not bytes:  # SQLite's columns hold any type
            return False
        return any(hmac.compare_digest(mac, each) for each in self._keys.current.request_macs(digest))

    def writer(self, request: RequestId, digest: bytes) -> OnceWriter:
        """The writer for the handler of a request.

        Its `run` raises AlreadyExecuted if the request was executed meanwhile.
        """

        return OnceWriter(self._writer, self, request, digest)

    def raise_if_executed(self, transaction: Transaction, request: RequestId, digest: bytes) -> None:
        """Raises AlreadyExecuted if it was; nobody else can execute it before the transaction ends."""
        if (executed := self._find(transaction, request, digest)) is not None:
            raise AlreadyExecuted(executed)

    def add(
        self,
        transaction: Transaction,
        request: RequestId,
        digest: bytes,
        response: Mapping[str, Any] | None,
    ) -> None:
        """Store that a request is executed, within the transaction that does it; forget what is too old."""
        transaction.run(_FORGET, {"before": self._oldest()})
        mac = self._keys.current.request_macs(digest)[0]
        text = None if response is None else self._authenticated(request, response)
        row = {"mac": mac, "response": text, "created_at": timestamp(self._clock())}
        transaction.run(_INSERT, request.parameters() | row)

    def keep_response(self, request: RequestId, response: Mapping[str, Any]) -> None:
        """Store the response of an executed request, which `OnceWriter` could not store with a write."""

        def write(transaction: Transaction) -> WriteResult[None]:
            text = self._authenticated(request, response)
            transaction.run(_SET_RESPONSE, request.parameters() | {"response": text})
            return WriteResult(None, [])

        self._writer.run(AuditEvent("gusset", Action.REQUEST_REPEAT, request.route), write)

    def is_recent(self, executed: Executed, seconds: float) -> bool:
        """Whether it was executed within the last `seconds`."""
        since: datetime = self._clock() - timedelta(seconds=seconds)
        return executed.created_at > timestamp(since)

    def _oldest(self) -> str:
        return timestamp(self._clock() - KEPT)
