"""How an operation of the API is written down and carried out: one table serves routing and the document.

A handler is a plain function of a `Call`; it runs on a thread, since it asks
the vault. What it returns is the JSON of a 200; what it raises is an error's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar, cast

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gusset.errors import Denied, UsageError
from gusset.manager.callers import Caller, DeploymentCaller, Doorkeeper
from gusset.vault.access import Scope
from gusset.vault.opening import Vault

T = TypeVar("T")
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


@dataclass(frozen=True, slots=True)
class Call:
    """One request, as handlers see it. `body` is None where the operation takes none."""

    vault: Vault
    caller: Any
    path: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any

    @property
    def person(self) -> Caller:
        """The caller of an operation for people."""
        return cast(Caller, self.caller)

    @property
    def deployment(self) -> DeploymentCaller:
        """The caller of an operation for deployments."""
        return cast(DeploymentCaller, self.caller)

    def flag(self, name: str) -> bool:
        """A query parameter that is `true` or `false`. Raises UsageError for anything else."""
        text = self.query.get(name, "false").lower()
        if text not in ("true", "false", "1", "0", ""):
            raise UsageError(f"{name} is true or false")
        return text in ("true", "1")


@dataclass(frozen=True, slots=True)
class Answer:
    """JSON, and headers beside it."""

    data: Any
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Call], Any]
Shape = type[BaseModel]


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the API's table. `scope` is None for a deployment's own operations."""

    method: Method
    path: str
    handler: Handler
    scope: Scope | None
    answer: Shape
    body: Shape | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    writes: bool = False

    @property
    def summary(self) -> str:
        return (self.handler.__doc__ or "").strip().split("\n")[0]


class Workers:
    """Threads that ask the vault, and two that hash passwords: those are slow, and take much memory."""

    def __init__(self) -> None:
        self._vault = ThreadPoolExecutor(40, "gusset-vault")
        self._passwords = ThreadPoolExecutor(2, "gusset-passwords")

    def run(self, act: Callable[..., T], *args: Any, **kwargs: Any) -> Awaitable[T]:
        """Carry `act` out on a thread."""
        return asyncio.get_running_loop().run_in_executor(self._vault, partial(act, *args, **kwargs))

    def run_slow(self, act: Callable[..., T], *args: Any, **kwargs: Any) -> Awaitable[T]:
        """Carry `act` out where it holds up nobody but others that are as slow."""
        return asyncio.get_running_loop().run_in_executor(self._passwords, partial(act, *args, **kwargs))

    def close(self) -> None:
        self._vault.shutdown()
        self._passwords.shutdown()


class Api:
    """Makes routes of operations."""

    def __init__(self, vault: Vault, door: Doorkeeper, workers: Workers, wrote: Callable[[], None]) -> None:
        self._vault = vault
        self._door = door
        self._workers = workers
        self._wrote = wrote

    def route(self, operation: Operation) -> Route:
        async def endpoint(request: Request) -> Response:
            # The body is read whatever the method, so that a connection can be used again.
            raw = await request.body()
            return await self._workers.run(self._carry_out, operation, request, raw)

        return Route(operation.path, endpoint, methods=[operation.method])

    def _carry_out(self, operation: Operation, request: Request, raw: bytes) -> Response:
        """On a thread: who calls, may they, what do they say; then the handler."""
        caller = self.let_in(operation.path, operation.scope, request)
        call = Call(
            self._vault,
            caller,
            request.path_params,
            request.query_params,
            request.headers,
            parse(operation.body, raw) if operation.body else None,
        )
        try:
            found = operation.handler(call)
        finally:
            if operation.writes:
                self._wrote()
        answer = found if isinstance(found, Answer) else Answer(found)
        return json_response(answer.data, headers=answer.headers)

    def let_in(self, path: str, scope: Scope | None, request: Request) -> Caller | DeploymentCaller:
        """Who calls `path`, when they may: a person whose key has `scope`, for None a deployment.

        Raises:
            NotSignedIn, Denied, TooManyAttempts: see `Doorkeeper`.
        """
        request.scope["route_path"] = path
        if scope is None:
            return self._door.deployment(request)
        caller = self._door.person(request)
        try:
            caller.need(scope)
        except Denied as error:
            self._door.refused(request, caller, error)
            raise
        return caller


def json_response(data: Any, *, status: int = 200, headers: Mapping[str, str] = {}) -> Response:
    """An answer that nobody may keep."""
    return Response(
        orjson.dumps(data),
        status_code=status,
        media_type="application/json",
        headers={"cache-control": "no-store", **headers},
    )


def parse(model: Shape, raw: bytes) -> BaseModel:
    """A body as `model`.

    Raises:
        UsageError: it is not JSON, or not of that shape. Nothing of it is repeated.
    """
    try:
        data = orjson.loads(raw or b"{}")
    except orjson.JSONDecodeError:
        raise UsageError(
            "the body is not JSON", hint="a text holds whole Unicode characters; bytes go as base64"
        ) from None
    if not isinstance(data, dict):
        raise UsageError("the body is not a JSON object")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UsageError(
            "; ".join(map(_told, error.errors(include_url=False, include_input=False)))
        ) from None


def _told(problem: Any) -> str:
    place = ".".join(part if _plain(part) else "?" for part in map(str, problem["loc"]))
    return f"{place}: {problem['msg']}" if problem["type"] != "missing" else f"{place} is missing"


def _plain(part: str) -> bool:
    """Whether a place may be named: a key of ours or a number, not what somebody typed as a key."""
    return (
        part.isascii()
        and len(part) <= 32
        and part.replace("_", "").isalnum()
        and part.islower() | part.isdigit()
    )
