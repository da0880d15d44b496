"""From a request to the operation that answers it, and back: routes, who calls, answers, errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as ASGIScope

from gusset.errors import GussetError, outcome_of
from gusset.manager.api.operations import ApiRequest, ApiResponse, Operation, parse
from gusset.manager.auth.access_cache import AccessCache
from gusset.manager.auth.authenticator import Authenticator, AuthRequest
from gusset.manager.auth.authorization import authorize
from gusset.manager.auth.callers import Caller
from gusset.manager.executors import Executors
from gusset.vault.wiring import Vault

Words = Mapping[str, str]


class Api:
    """An ASGI application of operations; what it has no operation for is `beside`'s.

    A router of its own: the framework's costs as much as a read of the vault.
    """

    def __init__(
        self,
        vault: Vault,
        authenticator: Authenticator,
        cache: AccessCache,
        *,
        executors: Executors,
        wrote: Callable[[], None],
        beside: ASGIApp,
    ) -> None:
        self._vault = vault
        self._authenticator = authenticator
        self._cache = cache
        self._executors = executors
        self._wrote = wrote
        self._beside = beside
        self._routes = _Branch()

    def add(self, operation: Operation) -> None:
        branch, names = self._routes, []
        for segment in operation.path.split("/")[1:]:
            if segment.startswith("{"):
                names.append(segment[1:-1])
                branch.wild = branch.wild or _Branch()
                branch = branch.wild
            else:
                branch = branch.named.setdefault(segment, _Branch())
        branch.operations[operation.method] = (operation, tuple(names))

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        branch = None
        if scope["type"] == "http":
            branch, words = self._routes.find(scope["path"].split("/")[1:])
        if branch is None:
            await self._beside(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            operation, names = branch.operation(scope["method"])
            scope["route_path"] = operation.path
            # The body is read whatever the method, so that a connection can be used again.
            raw = await request.body()
            path = dict(zip(names, words, strict=True))
            if operation.slow:
                caller = await self._executors.run(self._authorize, operation, request)
                declaring = self._vault.deployments.by_declared_secret
                answer = await self._executors.run_slow(
                    self._carry_out, operation, request, path, raw, caller, declaring
                )
            else:
                answer = await self._executors.run(self._fast, operation, request, path, raw)
        except GussetError as error:
            answer = error_response(error)
        except HTTPException as error:
            answer = http_error_response(error)
        await answer(scope, receive, send)

    def _fast(self, operation: Operation, request: Request, path: Words, raw: bytes) -> JsonAnswer:
        caller = self._authorize(operation, request)
        return self._carry_out(operation, request, path, raw, caller, self._cache.declaring)

    def _authorize(self, operation: Operation, request: Request) -> Caller:
        return authorize(self._authenticator, AuthRequest.from_starlette(request), operation.scope)

    def _carry_out(
        self,
        operation: Operation,
        request: Request,
        path: Words,
        raw: bytes,
        caller: Caller,
        declaring: Callable[[str], Mapping[str, Sequence[str]]],
    ) -> JsonAnswer:
        body = parse(operation.body, raw) if operation.body else None
        query = request.query_params if request.scope["query_string"] else {}
        try:
            found = operation.handler(
                ApiRequest(
                    vault=self._vault,
                    caller=caller,
                    body=body,
                    path=path,
                    query=query,
                    headers=request.headers,
                    declaring=declaring,
                )
            )
        finally:
            if operation.writes:
                self._wrote()
        if isinstance(found, ApiResponse):
            return JsonAnswer(found.data, headers=found.headers)
        return JsonAnswer(found)


class _Branch:
    """A place in the tree of routes: what follows by name, what follows by any word, and what is here."""

    __slots__ = ("named", "operations", "wild")

    def __init__(self) -> None:
        self.named: dict[str, _Branch] = {}
        self.wild: _Branch | None = None
        self.operations: dict[str, tuple[Operation, tuple[str, ...]]] = {}

    def find(self, segments: Sequence[str]) -> tuple[_Branch | None, list[str]]:
        """The branch at a path that has operations, and the words that its names stand for."""
        branch, words = self, []
        for segment in segments:
            if segment in branch.named:
                branch = branch.named[segment]
            elif branch.wild is not None and segment:
                branch = branch.wild
                words.append(segment)
            else:
                return None, []
        return (branch if branch.operations else None), words

    def operation(self, method: str) -> tuple[Operation, tuple[str, ...]]:
        """What answers a method here, and the names in its path. Raises HTTPException."""
        found = self.operations.get(method)
        if found is None:
            allowed = ", ".join(sorted(self.operations))
            raise HTTPException(405, "that route does not take this method", {"allow": allowed})
        return found


class JsonAnswer:
    """An answer in JSON, that nobody may keep."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, data: Any, *, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        self.body = orjson.dumps(data)
        self.status = status
        self.headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self.body)),
            (b"cache-control", b"no-store"),
            *((name.encode(), text.encode("latin-1")) for name, text in headers.items()),
        ]

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})


def error_response(error: GussetError) -> JsonAnswer:
    """A foreseen error: every one looks so."""
    status = outcome_of(error).http
    headers = {401: {"www-authenticate": "Bearer"}, 429: {"retry-after": "60"}}.get(status, {})
    return JsonAnswer(
        {"message": error.message, "code": error.code, "hint": error.hint}, status=status, headers=headers
    )


_CODES = {404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "too_large"}


def http_error_response(error: HTTPException) -> JsonAnswer:
    """What HTTP itself refuses: no such route, no such method, a body that is too large or too slow."""
    status = error.status_code
    message = "there is no such route" if status == 404 else error.detail
    headers = dict(error.headers or {}) | ({"connection": "close"} if status in (408, 413) else {})
    data = {"message": message, "code": _CODES.get(status, "usage"), "hint": None}
    return JsonAnswer(data, status=status, headers=headers)
