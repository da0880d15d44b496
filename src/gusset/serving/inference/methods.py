"""What a model's methods take and give, read from their signatures.

Nothing here calls them. Starlette and pydantic are looked at only where the
model has imported them.
"""

from __future__ import annotations

import enum
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

STAGES = ("preprocess", "predict", "postprocess")
# The methods that OpenAI-style routes call, by the last part of the path.
OPENAI_STYLE = {
    "chat/completions": "chat_completions",
    "completions": "completions",
    "embeddings": "embeddings",
    "messages": "messages",
    "responses": "responses",
}

_Parameter = inspect.Parameter


class ModelDefinitionError(TypeError):
    """The class is not what a model has to be; the text says what to change."""


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


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a model, as it is to be called. `input_type` is the pydantic class of its inputs."""

    name: str
    function: Callable[..., Any]
    parameters: Parameters
    kind: MethodKind
    input_type: Any = None
    returns: Any = None

    @property
    def wants_request(self) -> bool:
        return self.parameters in (Parameters.REQUEST, Parameters.INPUTS_AND_REQUEST)

    @property
    def wants_inputs(self) -> bool:
        return self.parameters in (Parameters.INPUTS, Parameters.INPUTS_AND_REQUEST)

    def arguments(self, inputs: Any, request: Any) -> tuple[Any, ...]:
        """What to call it with."""
        if self.parameters is Parameters.INPUTS:
            return (inputs,)
        if self.parameters is Parameters.INPUTS_AND_REQUEST:
            return (inputs, request)
        return (request,) if self.parameters is Parameters.REQUEST else ()


@dataclass(frozen=True, slots=True)
class Methods:
    """Everything that a model's object can be asked for."""

    preprocess: Method | None = None
    predict: Method | None = None
    postprocess: Method | None = None
    websocket: Method | None = None
    is_healthy: Method | None = None
    openai_style: tuple[Method, ...] = ()

    @property
    def stages(self) -> tuple[Method, ...]:
        """Those that a prediction passes through, in order."""
        return tuple(stage for stage in (self.preprocess, self.predict, self.postprocess) if stage)


def find_methods(instance: Any, described: str) -> Methods:
    """The methods of a model's object; `described` names its class in messages.

    Raises:
        ModelDefinitionError: a method lacks, or two exclude each other, or parameters are not allowed.
    """
    found = {
        name: _method(name, getattr(instance, name))
        for name in (*STAGES, "websocket", *OPENAI_STYLE.values())
        if hasattr(instance, name)
    }
    methods = Methods(
        **{name: found.get(name) for name in (*STAGES, "websocket")},
        is_healthy=_health(instance),
        openai_style=tuple(found[name] for name in OPENAI_STYLE.values() if name in found),
    )
    _check(methods, described)
    return methods


def _check(methods: Methods, described: str) -> None:
    if methods.websocket is not None:
        _check_websocket(methods)
        return
    if methods.predict is None:
        raise ModelDefinitionError(
            "Truss model must have a `predict` or `websocket` method. "
            f"{described} has neither; add:\n\n"
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


def _health(instance: Any) -> Method | None:
    if not hasattr(instance, "is_healthy"):
        return None
    method = instance.is_healthy
    parameters = _signature("is_healthy", method).parameters
    if parameters:
        raise ModelDefinitionError("`is_healthy` must have only one argument: `self`.")
    return Method("is_healthy", method, Parameters.NONE, _kind(method))


def _method(name: str, function: Any) -> Method:
    signature = _signature(name, function)
    parameters = list(signature.parameters.values())
    taken = _parameters(name, function, parameters)
    input_type = None
    if taken in (Parameters.INPUTS, Parameters.INPUTS_AND_REQUEST):
        input_type = pydantic_class(_resolved(function, parameters[0].annotation))
    returns = _resolved(function, signature.return_annotation)
    return Method(name, function, taken, _kind(function), input_type, returns)


def _parameters(name: str, function: Any, parameters: list[_Parameter]) -> Parameters:
    got = f"Got: ({', '.join(map(str, parameters))})"
    if len(parameters) > 2:
        raise ModelDefinitionError(f"`{name}` method cannot have more than two arguments. {got}")
    are_requests = [_is_request(_resolved(function, p.annotation)) for p in parameters]
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
        raise ModelDefinitionError(f"`{name}` method must take what it is called with by position. {got}")
    if not parameters:
        return Parameters.NONE
    if len(parameters) == 2:
        return Parameters.INPUTS_AND_REQUEST
    return Parameters.REQUEST if are_requests[0] else Parameters.INPUTS


def _signature(name: str, function: Any) -> inspect.Signature:
    if not callable(function):
        raise ModelDefinitionError(f"{function!r} is not a callable object: `{name}` must be a method")
    return inspect.signature(function)


def _plain(function: Any) -> Any:
    """The function itself, without partials, decorators and callable objects around it."""
    while isinstance(function, functools.partial | functools.partialmethod):
        function = function.func
    if not (inspect.isfunction(function) or inspect.ismethod(function) or inspect.isclass(function)):
        function = getattr(function, "__call__", function)  # noqa: B004  # not whether: which
    return function


def _kind(function: Any) -> MethodKind:
    plain = _plain(function)
    if inspect.iscoroutinefunction(plain):
        return MethodKind.COROUTINE
    if inspect.isasyncgenfunction(plain):
        return MethodKind.ASYNC_GENERATOR
    return MethodKind.GENERATOR if inspect.isgeneratorfunction(plain) else MethodKind.SYNC


def _resolved(function: Any, annotation: Any) -> Any:
    """An annotation that is text, as `from __future__ import annotations` makes it, as what it names."""
    if not isinstance(annotation, str):
        return annotation
    plain = inspect.unwrap(_plain(function))
    names = getattr(plain, "__globals__", {})
    try:
        return eval(annotation, names)  # noqa: S307  # the model's own code, as Python itself would
    except Exception:  # a name that exists for type checkers only
        return annotation


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The arms of a union, without None; else the annotation alone. `Annotated` is looked through."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(arm for arm in typing.get_args(annotation) if arm is not type(None))
    return (annotation,)


def _is_request(annotation: Any) -> bool:
    starlette = sys.modules.get("starlette.requests")
    if starlette is None:
        return False
    arms = _alternatives(annotation)
    return len(arms) == 1 and isinstance(arms[0], type) and issubclass(arms[0], starlette.Request)


def pydantic_class(annotation: Any) -> Any:
    """The pydantic class that an annotation names, None for any other."""
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return None
    (arm,) = _alternatives(annotation) or (None,)
    is_one = isinstance(arm, type) and typing.get_origin(arm) is None and issubclass(arm, pydantic.BaseModel)
    return arm if is_one else None
