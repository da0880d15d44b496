"""Routes requests of the API to their operations, and makes responses of what handlers return or raise."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from math import ceil
from typing import Any, Final, NamedTuple

from starlette.datastructures import QueryParams

from gusset.errors import (
    DatabaseUnreachable,
    GussetError,
    HostError,
    RootKeyError,
    TokensLeft,
    Unreachable,
    VaultError,
    outcome_of,
)
from gusset.manager.api import schemas
from gusset.manager.api.json_responses import json_response, response_of
from gusset.manager.api.operations import ApiRequest, Operation, parse
from gusset.manager.api.repeated_requests import RepeatableRequest
from gusset.manager.auth.access_cache import AccessCache
from gusset.manager.auth.authenticator import Authenticator, AuthRequest
from gusset.manager.auth.authorization import authorize
from gusset.manager.auth.callers import Caller
from gusset.manager.executors import Executors
from gusset.runtime.exchange import Exchange
from gusset.runtime.responses import Response
from gusset.vault.deadline import ending_within
from gusset.vault.wiring import Vault

KEY_CHECK: Final = 0.2  # seconds that a request waits for the look-up of its key before its body is read

failure_log = logging.getLogger("gusset.manager.failures")  # of this machine, and of the database


class Route(NamedTuple):
    """An operation, and the values of the parameters in its path."""

    operation: Operation
    parameters: Mapping[str, str]


class Router:
    """Finds operations by path and method, in a tree of the segments of their paths.

    Starlette's router tries one regular expression after the other, which
    takes as long as a read of the vault.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._root = _Segment()
        for operation in operations:
            self._add(operation)

    def _add(self, operation: Operation) -> None:
        segment, names = self._root, []
        for text in operation.path.split("/")[1:]:
            if text.startswith("{"):
                names.append(text[1:-1])
                segment.parameter = segment.parameter or _Segment()
                segment = segment.parameter
            else:
                segment = segment.literals.setdefault(text, _Segment())
        segment.operations[operation.method] = (operation, names)

    def find(self, path: str, method: str) -> Route | Response | None:
        """The route; None if the path is not one of the API, a 405 if it does not support the method."""
        segment, values = self._root, []
        for text in path.split("/")[1:]:
            if text in segment.literals:
                segment = segment.literals[text]
            elif segment.parameter is not None and text:
                segment = segment.parameter
                values.append(text)
            else:
                return None
        if not segment.operations:
            return None
        found = segment.operations.get(method)
        if found is None:
            allowed = ", ".join(sorted(segment.operations)).encode()
            return http_error(405, "that route does not take this method", (b"allow", allowed))
        operation, names = found
        return Route(operation, dict(zip(names, values, strict=True)))


class _Segment:
    """A node of the tree: what may follow in a path, and the operations on the path that ends here."""

    __slots__ = ("literals", "operations", "parameter")

    def __init__(self) -> None:
        self.literals: dict[str, _Segment] = {}
        self.parameter: _Segment | None = None
        self.operations: dict[str, tuple[Operation, list[str]]] = {}  # by method; with its parameters' names


class Api:
    """Handles requests of the API: authorizes the caller, calls the operation's handler, writes JSON."""

    def __init__(
        self,
        vault: Vault,
        authenticator: Authenticator,
        cache: AccessCache,
        *,
        executors: Executors,
        on_write: Callable[[], None],
    ) -> None:
        """`on_write` is called after each operation that may have changed secrets."""
        self._vault = vault
        self._authenticator = authenticator
        self._cache = cache
        self._executors = executors
        self._on_write = on_write
        self._key_checks: set[asyncio.Task[bool]] = set()

    def handle(self, exchange: Exchange, route: Route, address: str | None) -> Response:
        """Handle a request in a greenlet, where it may wait for a commit.

        Raises:
            GussetError: see `error_response`.
        """
        caller = self._authorize(exchange, route.operation, address)
        return self._call_handler(exchange, route, caller, self._cache.deployments_by_secret)

    def lacks_key(self, exchange: Exchange) -> bool | Awaitable[bool]:
        """Whether a request has no valid key or token. An awaitable where the vault's reads wait.

        False also if that is not known in time: what the request may take begins only afterwards.
        """
        authorization = (exchange.header(b"authorization") or b"").decode("latin-1")
        if self._vault.reads_wait:
            return self._is_soon_unknown_key(authorization)
        return self._is_unknown_key(authorization)

    async def _is_soon_unknown_key(self, authorization: str) -> bool:
        """Whether it turns out in time that a key is unknown.

        A look-up that takes longer goes on: to interrupt it would end its connection to a slow database.
        """
        check = asyncio.ensure_future(self._executors.run(self._is_unknown_key, authorization))
        self._key_checks.add(check)
        check.add_done_callback(self._note_key_check)
        done, _ = await asyncio.wait({check}, timeout=KEY_CHECK)
        return bool(done) and check.result()

    def _note_key_check(self, check: asyncio.Future[bool]) -> None:
        self._key_checks.discard(check)
        if not check.cancelled():
            check.exception()  # retrieved, or asyncio logs it unmasked; handling the request fails by it, too

    def _is_unknown_key(self, authorization: str) -> bool:
        try:
            with ending_within(self._vault.request_seconds):
                return not self._authenticator.knows_key(authorization)
        except GussetError:  # such as an altered row; handling the request fails with the same error
            return False

    async def handle_slow(self, exchange: Exchange, route: Route, address: str | None) -> Response:
        """Handle a request on a thread. Raises as `handle` does."""
        run, run_slow = self._executors.run, self._executors.run_slow
        caller = await run(self._authorize, exchange, route.operation, address)
        return await run_slow(
            self._call_handler, exchange, route, caller, self._vault.deployments.by_declared_secret
        )

    def _authorize(self, exchange: Exchange, operation: Operation, address: str | None) -> Caller:
        request = AuthRequest(
            method=operation.method,
            route=operation.path,
            address=address,
            authorization=(exchange.header(b"authorization") or b"").decode("latin-1"),
        )
        return authorize(self._authenticator, request, operation.scope)

    def _call_handler(
        self,
        exchange: Exchange,
        route: Route,
        caller: Caller,
        deployments_by_secret: Callable[[str], Mapping[str, Sequence[str]]],
    ) -> Response:
        repeatable = RepeatableRequest.of(self._vault, exchange, route.operation, caller)
        execute = partial(self._execute, exchange, route, caller, deployments_by_secret)
        if repeatable is None:
            return execute(self._vault, lambda _: None)
        return repeatable.respond(execute)

    def _execute(
        self,
        exchange: Exchange,
        route: Route,
        caller: Caller,
        deployments_by_secret: Callable[[str], Mapping[str, Sequence[str]]],
        vault: Vault,
        keep: Callable[[Callable[[Any], object]], None],
    ) -> Response:
        operation = route.operation
        body = parse(operation.body, exchange.body) if operation.body else None
        try:
            result = operation.handler(
                ApiRequest(
                    vault=vault,
                    caller=caller,
                    body=body,
                    path=route.parameters,
                    query=QueryParams(exchange.query) if exchange.query else {},
                    headers=exchange.fields,
                    deployments_by_secret=deployments_by_secret,
                    keep=keep,
                )
            )
        finally:
            if operation.writes:
                self._on_write()
        return response_of(result)


def error_response(error: GussetError) -> Response:
    """The response for an expected error: its status, and its message, code and hint as JSON."""
    status = outcome_of(error).http
    message, hint = public_text(error)
    headers = _HEADERS.get(status, ())
    if isinstance(error, Unreachable) and error.retry_after is not None:
        headers = ((b"retry-after", str(ceil(error.retry_after)).encode()),)
    if isinstance(error, TokensLeft):
        tokens = [schemas.TokenLeft(prefix=prefix, deployment=name) for prefix, name in error.tokens]
        identities = [
            schemas.IdentityLeft(name=name, team_name=team, deployment=deployment)
            for name, team, deployment in error.identities
        ]
        left = schemas.TokensLeft(
            message=message, code=error.code, hint=hint, tokens=tokens, identities=identities
        )
        return json_response(status, left, *headers)
    return json_response(status, schemas.Error(message=message, code=error.code, hint=hint), *headers)


def public_text(error: GussetError) -> tuple[str, str | None]:
    """An error's message and hint for a client.

    The details of a failure of this machine, which may name its files, or of its database, which may name
    hosts and addresses, are only logged.
    """
    if not isinstance(error, VaultError | HostError | DatabaseUnreachable):
        return error.message, error.hint
    failure_log.error("%s%s", error.message, f" ({error.hint})" if error.hint else "")
    if isinstance(error, DatabaseUnreachable):
        return error.message, "try again; the manager's log has the details"
    message = "the vault's root key cannot be used" if isinstance(error, RootKeyError) else error.message
    return message, "the manager's log has the details"


def http_error(status: int, message: str, *headers: tuple[bytes, bytes]) -> Response:
    """The response for what HTTP itself does not allow, such as an unknown route or too large a body."""
    code = _CODES.get(status, "usage")
    return json_response(status, schemas.Error(message=message, code=code, hint=None), *headers)


_HEADERS: Mapping[int, tuple[tuple[bytes, bytes], ...]] = {
    401: ((b"www-authenticate", b"Bearer"),),
    503: ((b"retry-after", b"1"),),
}
_CODES = {404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "too_large"}
