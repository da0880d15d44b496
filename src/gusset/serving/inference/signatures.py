"""The JSON schemas of a typed model's inputs and results."""

from __future__ import annotations

import collections.abc
import types
import typing
from typing import Any

from gusset.serving.inference import pydantic_models
from gusset.serving.inference.methods import Methods, pydantic_class

_STREAMS = (
    collections.abc.Generator,
    collections.abc.AsyncGenerator,
    collections.abc.Iterator,
    collections.abc.AsyncIterator,
)


def model_schema(methods: Methods) -> dict[str, Any] | None:
    """The response of the schema route: both schemas and whether the model streams, None where unknown.

    None for an untyped model.
    """
    if methods.predict is None:
        return None
    first, last = methods.preprocess or methods.predict, methods.postprocess or methods.predict
    output, streams = _output_type(last.returns)
    if first.input_type is None and output is None and streams is None:
        return None
    return {
        "input_schema": _schema(first.input_type),
        "output_schema": _schema(output),
        "supports_streaming": streams,
    }


def _schema(cls: Any) -> Any:
    return pydantic_models.schema(cls) if cls is not None else None


def _output_type(returns: Any) -> tuple[Any, bool | None]:
    """The pydantic class that a return annotation names, and whether it names a stream."""
    if typing.get_origin(returns) in (typing.Union, types.UnionType):
        members = typing.get_args(returns)
        if len(members) != 2:
            return None, None
        classes = [cls for cls in map(_class, members) if cls is not None]
        if len(classes) == 1 and any(map(_is_stream, members)):
            return classes[0], True
        return None, None
    if _is_stream(returns):
        return None, True
    cls = _class(returns)
    return cls, None if cls is None else False


def _class(annotation: Any) -> Any:
    if typing.get_origin(annotation) is collections.abc.Awaitable:
        annotation = typing.get_args(annotation)[0]
    return pydantic_class(annotation)


def _is_stream(annotation: Any) -> bool:
    return typing.get_origin(annotation) in _STREAMS
