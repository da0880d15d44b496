"""JSON in and out of a model: strict where clients are, generous where Python is."""

from __future__ import annotations

import decimal
import json
import pathlib
from typing import Any

import orjson

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


class InvalidJson(Exception):
    """The body is not JSON; the text says where it stops being so."""


class NotSerializable(TypeError):
    """A result holds something that JSON has no form for; the text names its type only."""


def parse(body: bytes) -> Any:
    """What `body` says in JSON. NaN, UTF-16, UTF-32 and a byte-order mark are taken, too.

    Raises:
        InvalidJson: with the position of the fault.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(body)  # takes a little more, and has the texts that clients know
    except RecursionError:
        raise InvalidJson("nested too deeply") from None
    except ValueError as error:
        raise InvalidJson(str(error)) from None


def render(result: Any) -> bytes:
    """`result` as JSON: numpy, pydantic, dates and the like in their usual forms, NaN as null.

    Raises:
        NotSerializable: some part of it has no JSON form.
    """
    try:
        return orjson.dumps(result, _plain, _OPTIONS)
    except TypeError as error:
        if isinstance(error.__cause__, NotSerializable):
            raise error.__cause__ from None
    try:  # integers over 64 bits, lone surrogates, numpy's numbers as keys
        rendered = json.dumps(_with_plain_keys(result), default=_plain)
        # What is not a number becomes null here, as above.
        return json.dumps(json.loads(rendered, parse_constant=lambda _: None), separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, NotSerializable):
            raise
        raise NotSerializable(f"Object of type {type(result).__name__} is not JSON serializable") from None


def _with_plain_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {_key(key): _with_plain_keys(each) for key, each in value.items()}
    return [_with_plain_keys(each) for each in value] if isinstance(value, list | tuple) else value


def _key(key: Any) -> Any:
    return key.item() if hasattr(key, "item") else key


def _plain(value: Any) -> Any:
    """A part of a result in types that JSON knows."""
    if hasattr(value, "model_dump"):  # pydantic
        return value.model_dump(mode="json")
    if hasattr(value, "tolist"):  # numpy arrays that are not contiguous, torch tensors
        return value.tolist()
    if isinstance(value, decimal.Decimal | pathlib.PurePath):
        return str(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise NotSerializable(f"Object of type {type(value).__name__} is not JSON serializable")
