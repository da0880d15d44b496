"""Operations of the API: one table serves both the router and the OpenAPI document.

A handler is a plain function from an `ApiRequest` to a response model. Its
annotations are the only place that names the types of its body and response.
Handlers run in a greenlet on the event loop's thread, which can wait for a commit
without blocking other requests; slow ones run in a thread pool (see `Executors`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

import orjson
from pydantic import BaseModel, ValidationError

from gusset.errors import UsageError
from gusset.manager.auth.callers import DeploymentCaller, PersonCaller
from gusset.vault.services.access_keys import Scope
from gusset.vault.wiring import Vault

CallerT = TypeVar("CallerT", PersonCaller, DeploymentCaller)
BodyT = TypeVar("BodyT")
ModelT = TypeVar("ModelT")
ResultT = TypeVar("ResultT")
ResponseT = TypeVar("ResponseT")
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


@dataclass(slots=True, kw_only=True)  # not frozen: making one would take nearly three times as long
class ApiRequest(Generic[CallerT, BodyT]):
    """An authorized request. `body` is the validated body, None where the operation takes none."""

    vault: Vault
    caller: CallerT
    body: BodyT = field(repr=False)
    path: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[bytes, bytes] = field(repr=False)  # the first of each name, in lower case
    deployments_by_secret: Callable[
        [str], Mapping[str, Sequence[str]]
    ]  # team id -> folded secret name -> deployments
    keep: Callable[[Callable[[Any], object]], None]  # see `RepeatableRequest`

    def write(self, write: Callable[[], ResultT], respond: Callable[[ResultT], ResponseT]) -> ResponseT:
        """Make the one write of a request; `respond` makes the response from its result alone.

        Where the request has an `Idempotency-Key`, the response is stored in the write's transaction. So
        `respond` is called there too, and must do nothing else.
        """
        self.keep(respond)
        return respond(write())

    def flag(self, name: str) -> bool:
        """A boolean query parameter. Raises UsageError for anything but true and false."""
        text = self.query.get(name, "false").lower()
        if text not in ("true", "false", "1", "0", ""):
            raise UsageError(f"{name} must be true or false")
        return text in ("true", "1")


MAX_NUMBER = 2**63 - 1  # that the database can compare with


def number(text: str, what: str, *, most: int = MAX_NUMBER) -> int:
    """A whole number from a URL. Raises UsageError for anything but 0 to `most` in decimal digits."""
    if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_NUMBER)) and int(text) <= most:
        return int(text)
    raise UsageError(f"{what} must be a whole number from 0 to {most}")


PersonRequest = ApiRequest[PersonCaller, BodyT]
DeploymentRequest = ApiRequest[DeploymentCaller, BodyT]


def teams_to_search(request: PersonRequest[Any]) -> Sequence[str]:
    """The id of the team that the query names, or of all that the caller sees.

    An administrator may name one that is missing or was altered in the database: what is in it must not
    be kept from being removed.

    Raises:
        NotFound: there is no such team, or the caller does not see it.
        IntegrityError: none is named, and one was altered in the database: what is found in another team
            might not be what is meant.
    """
    caller, team_id = request.caller, request.query.get("team_id")
    if team_id:
        return [team_id] if caller.sees_all else [caller.team(team_id).id]
    caller.check_teams()
    if caller.sees_all:
        request.vault.teams.check()
    return [team.id for team in caller.teams]


@dataclass(frozen=True, slots=True)
class ApiResponse(Generic[ModelT]):
    """A response model with additional headers."""

    data: ModelT
    headers: Mapping[str, str] = field(default_factory=dict)


ApiHandler = Callable[[ApiRequest[Any, Any]], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One row of the table, made by `operation`. `scope` is None if a deployment's token is needed.

    `body` and `response` are the models of the request and the response. `writes`
    says that secrets may change, `slow` that the handler needs a thread, `repeatable`
    that an `Idempotency-Key` is heeded.
    """

    method: Method
    path: str
    handler: ApiHandler
    scope: Scope | None
    body: type[BaseModel] | None
    response: type
    query: Mapping[str, str]  # parameter -> description
    writes: bool
    slow: bool
    repeatable: bool

    @property
    def summary(self) -> str:
        """One line for the document."""
        return (self.handler.__doc__ or "").strip().split("\n")[0].rstrip(".")


def operation(
    method: Method,
    path: str,
    handler: ApiHandler,
    scope: Scope | None,
    *,
    query: Mapping[str, str] | None = None,
    writes: bool = False,
    slow: bool = False,
    repeatable: bool | None = None,
) -> Operation:
    """An `Operation`, with the models that the handler's annotations name.

    By default, it is `repeatable` if it is for people and may change something.
    """
    hints = get_type_hints(handler)
    response = hints.pop("return")
    [request] = hints.values()
    _, body = get_args(request)
    return Operation(
        method=method,
        path=path,
        handler=handler,
        scope=scope,
        body=None if body is type(None) else body,
        response=get_args(response)[0] if get_origin(response) is ApiResponse else response,
        query=query or {},
        writes=writes,
        slow=slow,
        repeatable=(method != "GET" and scope is not None) if repeatable is None else repeatable,
    )


def parse(model: type[BaseModel], raw: bytes) -> BaseModel:
    """Validate a request's body.

    Raises:
        UsageError: it is not JSON, or does not fit the model. The message repeats none of the body.
    """
    try:
        data = orjson.loads(raw or b"{}")
    except orjson.JSONDecodeError:
        raise UsageError(
            "the body is not valid JSON",
            hint="strings must be valid Unicode; send other bytes as base64 with `encoding`",
        ) from None
    if not isinstance(data, dict):
        raise UsageError("the body is not a JSON object")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        raise UsageError("; ".join(map(_describe, problems))) from None


def _describe(problem: Any) -> str:
    field_path = ".".join(part if _is_safe(part) else "?" for part in map(str, problem["loc"]))
    return f"{field_path} is missing" if problem["type"] == "missing" else f"{field_path}: {problem['msg']}"


def _is_safe(part: str) -> bool:
    """Whether part of a field's path may be shown: one of our keys or an index, not a key of the client's."""
    return (
        part.isascii()
        and len(part) <= 32
        and part.replace("_", "").isalnum()
        and part.islower() | part.isdigit()
    )
