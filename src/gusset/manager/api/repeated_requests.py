"""The header `Idempotency-Key`: a write that is sent again is not executed again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from gusset.errors import GussetError, RequestMismatch, ResponseLost, UsageError
from gusset.manager.api.json_responses import NO_STORE, json_response, response_of
from gusset.manager.api.operations import Operation
from gusset.manager.auth.callers import Caller, PersonCaller
from gusset.runtime.exchange import Exchange
from gusset.runtime.responses import Response
from gusset.vault.services.idempotency import AlreadyExecuted, Executed, OnceWriter, RequestId
from gusset.vault.wiring import Vault

log = logging.getLogger("gusset.manager")

MAX_KEY = 200  # characters
IN_FLIGHT = 60.0  # seconds after which a response that is not there will not come

_SHOWN_ONCE = ("api_key", "token", "link")  # fields that only the first response has
_REPLAYED = (b"idempotency-replayed", b"true")

# Takes the function that makes a handler's response from the result of its first write.
Keep = Callable[[Callable[[Any], object]], None]


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
        """The repeatable request; None without a key, and for an operation that ignores keys.

        Raises:
            UsageError: the key is too long, empty or not printable.
        """
        header = exchange.header(b"idempotency-key")
        if header is None or not operation.repeatable:
            return None
        key = header.decode("latin-1").strip()
        if not 1 <= len(key) <= MAX_KEY or not (key.isascii() and key.isprintable()):
            raise UsageError(f"an Idempotency-Key must have 1 to {MAX_KEY} printable ASCII characters")
        route = f"{operation.method} {operation.path}"
        # A deployment's id, not its token's prefix: a repeated request may come with another token.
        sender = caller.person.id if isinstance(caller, PersonCaller) else caller.grant.deployment_id
        request = RequestId(caller=sender, route=route, key=key)
        conditions = [exchange.header(b"if-match") or b""]
        if (absent := exchange.header(b"if-none-match")) is not None:
            conditions.append(absent)
        digest = vault.idempotency.digest(exchange.path, exchange.query, *conditions, exchange.body)
        return cls(vault, request, digest)

    def respond(self, execute: Callable[[Vault, Keep], Response]) -> Response:
        """The response of `execute`, or that of the earlier request that this one repeats.

        Before its first write, `execute` may call its second argument with the function that makes the
        response from that write's result: the response is then stored in the write's transaction.

        Raises:
            RequestMismatch: another request had the key.
            ResponseLost: the earlier request is in flight, or its response cannot be shown again.
            IntegrityError: the response of the earlier request was altered in the database.
            GussetError: as `execute` raises it. Nothing is remembered then. A response that cannot be
                kept is no error: the request was executed.
        """
        known = self.vault.idempotency.find(self.request, self.digest)
        if known is not None:
            return self._earlier(known)
        once = self.vault.idempotency.writer(self.request, self.digest)
        try:
            response = execute(self.vault.with_writer(once), partial(_keep, once))
        except AlreadyExecuted as error:
            return self._earlier(error.executed)
        if once.lacks_response:
            self._keep_response(response)
        return response

    def _keep_response(self, response: Response) -> None:
        try:
            self.vault.idempotency.keep_response(self.request, _storable(response))
        except GussetError as error:  # an error would claim that nothing was written
            log.warning("The response of a request with an Idempotency-Key is not kept: %s", error.message)

    def _earlier(self, executed: Executed) -> Response:
        """The earlier response, marked as such."""
        if not executed.same:
            raise RequestMismatch(
                "another request had this Idempotency-Key", hint="use a new key for each request"
            )
        if executed.response is None:
            raise self._no_response(executed)
        stored = executed.response
        if "shown_once" in stored:
            raise ResponseLost(
                f"this request was executed before: it made {stored['shown_once']}, which is shown only once",
                hint="if it is lost, revoke it, and send the request with a new Idempotency-Key",
            )
        headers = [(name.encode(), text.encode()) for name, text in stored.get("headers", {}).items()]
        return json_response(200, stored["body"], *headers, _REPLAYED)

    def _no_response(self, executed: Executed) -> ResponseLost:
        if self.vault.idempotency.is_recent(executed, IN_FLIGHT):
            return ResponseLost("this request is in flight", hint="try again in a moment")
        return ResponseLost(
            "this request was executed before, but its response was not kept",
            hint="read what it has changed; it is not executed again",
        )


def _keep(once: OnceWriter, respond: Callable[[Any], object]) -> None:
    once.keep_response(lambda result: _storable(response_of(respond(result))))


def _storable(response: Response) -> dict[str, Any]:
    """A response as it is stored: without keys, tokens and links."""
    data = json.loads(response.body)
    if shown := [field for field in _SHOWN_ONCE if isinstance(data.get(field), str)]:
        name = {"api_key": "the API key", "token": "the token", "link": "a link"}[shown[0]]
        return {"shown_once": f"{name} {data['prefix']}" if "prefix" in data else name}
    headers = {name.decode(): text.decode() for name, text in response.headers if (name, text) != NO_STORE}
    return {"body": data, "headers": headers} if headers else {"body": data}
