"""The header `Idempotency-Key`: a write that is sent again is not executed again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gusset.errors import GussetError, RequestMismatch, ResponseLost, UsageError
from gusset.manager.api.operations import Operation
from gusset.manager.auth.callers import Caller, PersonCaller
from gusset.runtime.exchange import Exchange
from gusset.runtime.responses import Response
from gusset.vault.services.idempotency import AlreadyExecuted, Executed, RequestId
from gusset.vault.wiring import Vault

log = logging.getLogger("gusset.manager")

MAX_KEY = 200  # characters
IN_FLIGHT = 60.0  # seconds after which a response that is not there will not come

_SHOWN_ONCE = ("api_key", "token", "link")  # fields that only the first response has


@dataclass(frozen=True, slots=True)
class RepeatableRequest:
    """One request with an idempotency key."""

    vault: Vault
    request: RequestId
    digest: bytes

    @classmethod
    def of(
        cls, vault: Vault, exchange: Exchange, operation: Operation, caller: Caller
    ) -> RepeatableRequest | None:
        """None for a request without a key, and for one that writes nothing of a person's.

        Raises:
            UsageError: the key is too long, empty or not printable.
        """
        header = exchange.header(b"idempotency-key")
        if header is None or operation.method == "GET" or not isinstance(caller, PersonCaller):
            return None
        key = header.decode("latin-1").strip()
        if not 1 <= len(key) <= MAX_KEY or not (key.isascii() and key.isprintable()):
            raise UsageError(f"an Idempotency-Key must have 1 to {MAX_KEY} printable ASCII characters")
        route = f"{operation.method} {operation.path}"
        request = RequestId(caller=caller.person.id, route=route, key=key)
        digest = vault.idempotency.digest(
            exchange.path, exchange.query, exchange.header(b"if-match") or b"", exchange.body
        )
        return cls(vault, request, digest)

    def respond(self, execute: Callable[[Vault], Response], replayed: Callable[[Any], Response]) -> Response:
        """The response of `execute`, or of the earlier request that this one repeats: `replayed` makes it.

        Raises:
            RequestMismatch: another request had the key.
            ResponseLost: the other one is in flight, or its response cannot be shown again.
            GussetError: as `execute` raises it. Nothing is remembered then. A response that cannot be
                kept is no error: the request was executed.
        """
        known = self.vault.idempotency.find(self.request, self.digest)
        if known is not None:
            return replayed(self._earlier(known))
        once = self.vault.idempotency.writer(self.request, self.digest)
        try:
            response = execute(self.vault.with_writer(once))
        except AlreadyExecuted as error:
            return replayed(self._earlier(error.executed))
        try:
            self.vault.idempotency.keep_response(self.request, _storable(response.body))
        except GussetError as error:  # an error would claim that nothing was written
            log.warning("The response of a request with an Idempotency-Key is not kept: %s", error.message)
        return response

    def _earlier(self, executed: Executed) -> Any:
        """The body of the earlier response."""
        if not executed.same:
            raise RequestMismatch(
                "another request had this Idempotency-Key", hint="use a new key for each request"
            )
        if executed.response is None:
            raise self._no_response(executed)
        stored = json.loads(executed.response)
        if "shown_once" in stored:
            raise ResponseLost(
                f"this request was executed before: it made {stored['shown_once']}, which is shown only once",
                hint="if it is lost, revoke it, and send the request with a new Idempotency-Key",
            )
        return stored["body"]

    def _no_response(self, executed: Executed) -> ResponseLost:
        if self.vault.idempotency.is_recent(executed, IN_FLIGHT):
            return ResponseLost("this request is in flight", hint="try again in a moment")
        return ResponseLost(
            "this request was executed before, but its response was not kept",
            hint="read what it has changed; it is not executed again",
        )


def _storable(body: bytes) -> str:
    """A response as it is stored: without keys, tokens and links."""
    data = json.loads(body)
    if shown := [field for field in _SHOWN_ONCE if isinstance(data.get(field), str)]:
        name = {"api_key": "the API key", "token": "the token", "link": "a link"}[shown[0]]
        return json.dumps({"shown_once": f"{name} {data['prefix']}" if "prefix" in data else name})
    return json.dumps({"body": data})
