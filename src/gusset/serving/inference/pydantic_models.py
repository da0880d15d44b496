"""Objects of a model's pydantic classes, of pydantic 1 or 2. Imports neither: the model has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class InvalidFields(Exception):
    """A value does not fit a class; `errors` are pydantic's, each with the keys `loc` and `msg`."""

    def __init__(self, errors: list[Mapping[str, Any]]) -> None:
        super().__init__()
        self.errors = errors


def validate(cls: Any, value: Any) -> Any:
    """`value` as an object of a pydantic class.

    Raises:
        InvalidFields: it does not fit.
        Exception: whatever a validator of the model raised.
    """
    is_second = hasattr(cls, "model_validate")
    try:
        return cls.model_validate(value) if is_second else cls.parse_obj(value)
    except ValueError as error:  # as pydantic's ValidationError is in both versions
        if not hasattr(error, "errors"):
            raise
        options = {"include_url": False, "include_context": False, "include_input": False}
        errors = error.errors(**options) if is_second else error.errors()
    raise InvalidFields(errors)


def schema(cls: Any) -> Any:
    """The JSON Schema of a pydantic class."""
    return cls.model_json_schema() if hasattr(cls, "model_json_schema") else cls.schema()


def is_model(value: Any) -> bool:
    """Whether it is an object of a pydantic class."""
    return hasattr(value, "model_dump") or hasattr(value, "__fields_set__")


def dump(value: Any) -> Any:
    """The fields of an object as a dict."""
    return value.model_dump() if hasattr(value, "model_dump") else value.dict()


def dump_json(value: Any) -> Any:
    """The fields of an object as a dict of what JSON has."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return json.loads(value.json())
