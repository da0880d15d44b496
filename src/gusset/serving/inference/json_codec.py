"""The JSON of requests and responses. Reads a little more than standard JSON, writes only that."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import pathlib
import uuid
from typing import Any, Final

import orjson

from gusset.serving.inference import pydantic_models

_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
_parse: Final = orjson.loads
_render: Final = orjson.dumps


class InvalidJson(Exception):
    """The body is not JSON; the text gives the position of the fault."""


class NotSerializable(Exception):
    """A result holds a value that the format cannot express; the text names only its type."""


def parse(body: bytes) -> Any:
    """The value of a JSON body. NaN, UTF-16, UTF-32 and a byte-order mark are accepted, too.

    Raises:
        InvalidJson: the body is not JSON.
    """
    try:
        return _parse(body)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(body)  # accepts a little more, and has the error texts that clients know
    except RecursionError:
        raise InvalidJson("nested too deeply") from None
    except ValueError as error:
        raise InvalidJson(str(error)) from None


def render(result: Any) -> bytes:
    """A result as JSON: numpy, pydantic, dates and the like in their usual forms, NaN as null.

    Raises:
        NotSerializable: a part of it has no JSON form.
    """
    try:
        return _render(result, _plain, _OPTIONS)
    except TypeError as error:
        if isinstance(error.__cause__, NotSerializable):
            raise error.__cause__ from None
    return _render_unusual(result)


def _render_unusual(result: Any) -> bytes:
    try:  # orjson refuses integers over 64 bits, lone surrogates and numpy's numbers as keys
        rendered = json.dumps(_with_plain_keys(result), default=_plain)
        # NaN becomes null, as with orjson.
        return json.dumps(json.loads(rendered, parse_constant=lambda _: None), separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):
        raise NotSerializable(f"Object of type {type(result).__name__} is not JSON serializable") from None


def _with_plain_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {_key(key): _with_plain_keys(each) for key, each in value.items()}
    return [_with_plain_keys(each) for each in value] if isinstance(value, list | tuple) else value


def _key(key: Any) -> Any:
    """A key of a map in a type that Python's `json` accepts."""
    if isinstance(key, enum.Enum):
        key = key.value
    if hasattr(key, "item"):  # numpy
        key = key.item()
    if isinstance(key, datetime.date | datetime.time):
        return key.isoformat()
    if isinstance(key, uuid.UUID):
        return str(key)
    if key is None or isinstance(key, str | int | float):
        return key
    raise NotSerializable(f"A key of type {type(key).__name__} is not JSON serializable: write it as text")


def _plain(value: Any) -> Any:
    """A value of a type that a JSON writer does not know, in types that it does."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, uuid.UUID):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, tuple):  # named tuples too
        return list(value)
    if isinstance(value, float):  # a subclass
        return float(value)
    if isinstance(value, int):
        return int(value)
    if pydantic_models.is_model(value):
        return pydantic_models.dump_json(value)
    if hasattr(value, "tolist"):  # numpy arrays that are not contiguous, torch tensors
        return value.tolist()
    if isinstance(value, decimal.Decimal | pathlib.PurePath):
        return str(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise NotSerializable(f"Object of type {type(value).__name__} is not JSON serializable")
