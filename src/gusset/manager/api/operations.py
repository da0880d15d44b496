"""How an operation of the API is written down and carried out: one table serves routing and the document.

A handler is a plain function of a `Call`; it runs on a thread, since it asks
the vault. What it returns is the JSON of a 200; what it raises is an error's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar, cast

import orjson
from pydantic import BaseModel, ValidationError

from gusset.errors import UsageError
from gusset.manager.auth.authenticator import Caller, DeploymentCaller
from gusset.vault.commit.greenlets import spawn
from gusset.vault.services.access_keys import Scope
from gusset.vault.wiring import Vault

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
    declaring: Callable[[str], Mapping[str, Sequence[str]]]  # a team's id -> folded name -> deployments

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
    slow: bool = False

    @property
    def summary(self) -> str:
        return (self.handler.__doc__ or "").strip().split("\n")[0]


class Workers:
    """Where the vault is asked: on the loop's thread, or, for what takes long, on threads of their own."""

    def __init__(self) -> None:
        self._slow = ThreadPoolExecutor(4, "gusset-slow")
        self._pages = ThreadPoolExecutor(8, "gusset-pages")

    def run(self, act: Callable[..., T], *args: Any, **kwargs: Any) -> Awaitable[T]:
        """Carry out what takes less than a millisecond; it may wait for a commit."""
        return spawn(act, *args, **kwargs)

    def run_slow(self, act: Callable[..., T], *args: Any, **kwargs: Any) -> Awaitable[T]:
        """Carry out what takes longer: a password's hash, a list of everything."""
        return asyncio.get_running_loop().run_in_executor(self._slow, partial(act, *args, **kwargs))

    def run_page(self, act: Callable[..., T], *args: Any, **kwargs: Any) -> Awaitable[T]:
        """Carry out what takes some milliseconds: a page."""
        return asyncio.get_running_loop().run_in_executor(self._pages, partial(act, *args, **kwargs))

    def close(self) -> None:
        self._slow.shutdown()
        self._pages.shutdown()


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
