"""What a model's method is called with, parsed from a request's body."""

# Imports in functions: a worker imports numpy's codec at the first request that needs it.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gusset.serving.inference import pydantic_models
from gusset.serving.inference.json_codec import InvalidJson, parse
from gusset.serving.inference.methods import Method
from gusset.serving.inference.model_call import ModelCall
from gusset.serving.inference.responses import MSGPACK


class InvalidInputs(Exception):
    """The body cannot be parsed or validated; the text is for the caller, in Truss's words."""


def parse_inputs(call: ModelCall, method: Method | None) -> Any:
    """The inputs of `method`: parsed from JSON or msgpack, and validated where it names a pydantic class.

    None for a method that takes the request alone, and reads its body itself.

    Raises:
        InvalidInputs: the body is not what the method takes.
        Exception: whatever a validator of the model's class raised.
    """
    exchange = call.exchange
    content_type = exchange.fields.get(b"content-type")
    if content_type is not None and content_type[:24].lower() == MSGPACK:
        call.uses_msgpack = content_type[24:].strip()[:1] in (b"", b";")
    if method is not None and method.wants_request and not method.wants_inputs:
        return None
    input_type = method.input_type if method is not None else None
    try:
        value = _unpack(exchange.body) if call.uses_msgpack else parse(exchange.body)
    except InvalidJson as error:
        if input_type is not None:
            raise InvalidInputs(f"Input Parsing Error:\n  `__root__`: Invalid JSON: {error}.") from None
        raise InvalidInputs(f"Invalid JSON payload: {error}") from None
    exchange.body = b""  # the model may need the memory
    if method is None or not method.wants_request:
        call.body = b""
    return value if input_type is None else _validate(input_type, value)


def _unpack(body: bytes) -> Any:
    from gusset.serving.inference.msgpack_codec import InvalidMsgpack, unpack

    try:
        return unpack(body)
    except InvalidMsgpack as error:
        raise InvalidInputs(str(error)) from None


def _validate(input_type: Any, value: Any) -> Any:
    """`value` as an object of a pydantic class."""
    try:
        return pydantic_models.validate(input_type, value)
    except pydantic_models.InvalidFields as error:
        lines = [f"  `{_location(each)}`: {each['msg']}." for each in error.errors]
    title = "Input Parsing Errors:" if len(lines) > 1 else "Input Parsing Error:"
    raise InvalidInputs("\n".join((title, *lines)))


def _location(error: Mapping[str, Any]) -> str:
    """Where in the inputs pydantic found an error, as in `rows[0].n`."""
    location = ""
    for part in error["loc"]:
        location += f"[{part}]" if isinstance(part, int) else f".{part}" if location else str(part)
    return location
