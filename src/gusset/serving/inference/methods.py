"""The methods of a model, and how each is to be called, read from their signatures.

Nothing here calls them. Starlette and pydantic are used only if the model has
imported them.
"""

from __future__ import annotations

import enum
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

STAGES = ("preprocess", "predict", "postprocess")
# The paths of OpenAI-style routes after /v1/, and the methods that they call.
OPENAI_STYLE = {
    "chat/completions": "chat_completions",
    "completions": "completions",
    "embeddings": "embeddings",
    "messages": "messages",
    "responses": "responses",
}

_Parameter = inspect.Parameter


class ModelDefinitionError(Exception):
    """The class cannot be served as a model; the text says what to change."""


class Parameters(enum.Enum):
    """Which parameters a method has beside `self`."""

    NONE = "none"
    INPUTS = "inputs"
    REQUEST = "request"
    INPUTS_AND_REQUEST = "inputs and request"


class MethodKind(enum.Enum):
    """How a method's body runs."""

    SYNC = "sync"
    COROUTINE = "coroutine"
    GENERATOR = "generator"
    ASYNC_GENERATOR = "async generator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method of a model. `input_type` is the pydantic class of its inputs, `returns` its annotation."""

    name: str
    function: Callable[..., Any]
    parameters: Parameters
    kind: MethodKind
    input_type: Any = None
    returns: Any = None
    wants_inputs: bool = field(init=False)
    wants_request: bool = field(init=False)

    def __post_init__(self) -> None:
        # For each request these are much faster than comparisons of enum members.
        wants_inputs = self.parameters in (Parameters.INPUTS, Parameters.INPUTS_AND_REQUEST)
        wants_request = self.parameters in (Parameters.REQUEST, Parameters.INPUTS_AND_REQUEST)
        object.__setattr__(self, "wants_inputs", wants_inputs)
        object.__setattr__(self, "wants_request", wants_request)

    def arguments(self, inputs: Any, request: Any) -> tuple[Any, ...]:
        """The positional arguments of a call."""
        if self.wants_inputs:
            return (inputs, request) if self.wants_request else (inputs,)
        return (request,) if self.wants_request else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Methods:
    """The methods of a model's object that gusset calls to serve it."""

    preprocess: Method | None = None
    predict: Method | None = None
    postprocess: Method | None = None
    websocket: Method | None = None
    is_healthy: Method | None = None
    openai_style: tuple[Method, ...] = ()

    @property
    def stages(self) -> tuple[Method, ...]:
        """The methods that a prediction passes through, in order."""
        return tuple(stage for stage in (self.preprocess, self.predict, self.postprocess) if stage)


def find_methods(instance: Any, description: str) -> Methods:
    """The methods of a model's object; `description` names its class in messages.

    Raises:
        ModelDefinitionError: a method is missing, two cannot be used together, or a signature is not allowed.
    """
    found = {
        name: _read_method(name, getattr(instance, name))
        for name in (*STAGES, "websocket", *OPENAI_STYLE.values())
        if hasattr(instance, name)
    }
    methods = Methods(
        **{name: found.get(name) for name in (*STAGES, "websocket")},
        is_healthy=_health_method(instance),
        openai_style=tuple(found[name] for name in OPENAI_STYLE.values() if name in found),
    )
    _check(methods, description)
    return methods


def _check(methods: Methods, description: str) -> None:
    if methods.websocket is not None:
        _check_websocket(methods)
        return
    if methods.predict is None:
        raise ModelDefinitionError(
            "Truss model must have a `predict` or `websocket` method. "
            f"{description} has neither; add:\n\n"
            "    def predict(self, model_input):\n        return model_input"
        )
    if methods.preprocess is not None and methods.predict.parameters is Parameters.REQUEST:
        raise ModelDefinitionError(
            "When using `preprocess`, the predict method cannot only have the request argument "
            "(because the result of `preprocess` would be discarded)."
        )
    if methods.postprocess is not None and methods.postprocess.parameters is Parameters.REQUEST:
        raise ModelDefinitionError(
            "The `postprocess` method cannot only have the request argument "
            "(because the result of `predict` would be discarded)."
        )


def _check_websocket(methods: Methods) -> None:
    if methods.stages:
        raise ModelDefinitionError(
            "Truss model cannot have both `websocket` and any of `predict`, `preprocess`, "
            "or `postprocess` methods."
        )
    if methods.websocket and methods.websocket.kind is not MethodKind.COROUTINE:
        raise ModelDefinitionError("`websocket` endpoints must be async function definitions.")
    if methods.websocket and methods.websocket.parameters is not Parameters.INPUTS:
        raise ModelDefinitionError("`websocket` must have only one argument: `websocket`.")


def _health_method(instance: Any) -> Method | None:
    if not hasattr(instance, "is_healthy"):
        return None
    method = instance.is_healthy
    parameters = _signature("is_healthy", method).parameters
    if parameters:
        raise ModelDefinitionError("`is_healthy` must have only one argument: `self`.")
    return Method(name="is_healthy", function=method, parameters=Parameters.NONE, kind=_kind(method))


def _read_method(name: str, function: Any) -> Method:
    signature = _signature(name, function)
    parameters = list(signature.parameters.values())
    takes = _parameters(name, function, parameters)
    input_type = None
    if takes in (Parameters.INPUTS, Parameters.INPUTS_AND_REQUEST):
        input_type = pydantic_class(_evaluated(function, parameters[0].annotation))
    return Method(
        name=name,
        function=function,
        parameters=takes,
        kind=_kind(function),
        input_type=input_type,
        returns=_evaluated(function, signature.return_annotation),
    )


def _parameters(name: str, function: Any, parameters: list[_Parameter]) -> Parameters:
    got = f"Got: ({', '.join(map(str, parameters))})"
    if len(parameters) > 2:
        raise ModelDefinitionError(f"`{name}` method cannot have more than two arguments. {got}")
    are_requests = [_is_request(_evaluated(function, p.annotation)) for p in parameters]
    if len(parameters) == 2:
        if are_requests[0]:
            raise ModelDefinitionError(
                f"`{name}` method with two arguments is not allowed to have request as first argument, "
                f"request must be second. {got}"
            )
        if not are_requests[1]:
            raise ModelDefinitionError(
                f"`{name}` method with two arguments must have request as second argument "
                f"(type annotated). {got}"
            )
    if any(p.kind in (_Parameter.KEYWORD_ONLY, _Parameter.VAR_KEYWORD) for p in parameters):
        raise ModelDefinitionError(f"`{name}` method must take its arguments by position. {got}")
    if not parameters:
        return Parameters.NONE
    if len(parameters) == 2:
        return Parameters.INPUTS_AND_REQUEST
    return Parameters.REQUEST if are_requests[0] else Parameters.INPUTS


def _signature(name: str, function: Any) -> inspect.Signature:
    if not callable(function):
        raise ModelDefinitionError(f"`{name}` must be a method; {function!r} is not callable")
    return inspect.signature(function)


def _unwrapped(function: Any) -> Any:
    """The function inside partials and callable objects."""
    while isinstance(function, functools.partial | functools.partialmethod):
        function = function.func
    if not (inspect.isfunction(function) or inspect.ismethod(function) or inspect.isclass(function)):
        function = getattr(function, "__call__", function)  # noqa: B004  # gets it, does not test for it
    return function


def _kind(function: Any) -> MethodKind:
    plain = _unwrapped(function)
    if inspect.iscoroutinefunction(plain):
        return MethodKind.COROUTINE
    if inspect.isasyncgenfunction(plain):
        return MethodKind.ASYNC_GENERATOR
    return MethodKind.GENERATOR if inspect.isgeneratorfunction(plain) else MethodKind.SYNC


def _evaluated(function: Any, annotation: Any) -> Any:
    """An annotation, evaluated if it is a string as with `from __future__ import annotations`."""
    if not isinstance(annotation, str):
        return annotation
    plain = inspect.unwrap(_unwrapped(function))
    names = getattr(plain, "__globals__", {})
    try:
        return eval(annotation, names)  # noqa: S307  # the model's own code
    except Exception:  # a name that is imported for type checkers only
        return annotation


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union without None, else the annotation alone; `Annotated` is unwrapped."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(each for each in typing.get_args(annotation) if each is not type(None))
    return (annotation,)


def _is_request(annotation: Any) -> bool:
    starlette = sys.modules.get("starlette.requests")
    if starlette is None:
        return False
    members = _alternatives(annotation)
    return len(members) == 1 and isinstance(members[0], type) and issubclass(members[0], starlette.Request)


def pydantic_class(annotation: Any) -> Any:
    """The pydantic class that an annotation names; None if it names anything else."""
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return None
    (cls,) = _alternatives(annotation) or (None,)
    is_model = (
        isinstance(cls, type) and typing.get_origin(cls) is None and issubclass(cls, pydantic.BaseModel)
    )
    return cls if is_model else None
