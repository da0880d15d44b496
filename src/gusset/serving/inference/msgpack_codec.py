"""The msgpack of requests and responses, with numpy, dates and the like as Truss's clients encode them.

A value that msgpack has no type for is encoded as a map whose keys are bytes.
Nothing is ever pickled or unpickled: an array of objects is refused both ways.
"""

from __future__ import annotations

import datetime
import decimal
import sys
import uuid
from collections.abc import Callable
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it has no types

from gusset.serving.inference import pydantic_models
from gusset.serving.inference.json_codec import NotSerializable


class InvalidMsgpack(Exception):
    """The body is not msgpack, or holds a value that is refused; the text says why."""


def unpack(body: bytes) -> Any:
    """The value of a msgpack body.

    Raises:
        InvalidMsgpack: the body is not msgpack, or holds an array of objects.
    """
    try:
        return msgpack.unpackb(body, object_hook=_decode, strict_map_key=True)
    except InvalidMsgpack:
        raise
    except RecursionError:
        raise InvalidMsgpack("nested too deeply") from None
    except Exception as error:  # a hostile map can make numpy, decimal and datetime raise anything
        raise InvalidMsgpack(str(error) or type(error).__name__) from None


def pack(result: Any, mask: Callable[[Any], Any] = lambda value: value) -> bytes:
    """A result as msgpack; bytes are sent as they are.

    `mask` is applied to parts whose strings cannot be seen from outside, in their plain form.

    Raises:
        NotSerializable: a part of it has no msgpack form.
    """
    if isinstance(result, bytes):
        return result
    try:
        packed: bytes = msgpack.packb(result, default=lambda value: _encode(value, mask))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise NotSerializable(
            f"Object of type {type(result).__name__} cannot be written as msgpack ({type(error).__name__})"
        ) from None
    return packed


def _encode(value: Any, mask: Callable[[Any], Any]) -> Any:
    if type(value).__module__ == "numpy" or _is_array(value):
        return _encode_numpy(_masked_array(value, mask) if value.dtype.kind in "SU" else value)
    if pydantic_models.is_model(value):
        return mask(pydantic_models.dump(value))
    if isinstance(value, complex):
        return {b"complex": True, b"data": repr(value)}
    if isinstance(value, datetime.datetime):
        return {b"__dt_datetime_iso__": True, b"data": value.isoformat().replace("+00:00", "Z")}
    if isinstance(value, datetime.date):
        return {b"__dt_date_iso__": True, b"data": value.isoformat()}
    if isinstance(value, datetime.time):
        return {b"__dt_time_iso__": True, b"data": value.isoformat()}
    if isinstance(value, datetime.timedelta):
        return {b"__dt_timedelta__": True, b"data": [value.days, value.seconds, value.microseconds]}
    if isinstance(value, decimal.Decimal):
        return {b"__decimal__": True, b"data": str(value)}
    if isinstance(value, uuid.UUID):
        return {b"__uuid__": True, b"data": str(value)}
    raise NotSerializable(f"Object of type {type(value).__name__} cannot be written as msgpack")


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _masked_array(value: Any, mask: Callable[[Any], Any]) -> Any:
    """An array or a scalar of numpy's strings, masked."""
    import numpy

    strings = value.tolist()
    if (masked := mask(strings)) == strings:
        return value
    array = numpy.array(masked, dtype=value.dtype.kind)
    return array if _is_array(value) else array[()]


def _encode_numpy(value: Any) -> Any:
    if value.dtype.hasobject:
        raise NotSerializable("An array of objects cannot be written as msgpack; it would have to be pickled")
    if not _is_array(value):  # a scalar
        return {b"nd": False, b"type": value.dtype.str, b"data": value.tobytes()}
    structured = value.dtype.kind == "V"
    return {
        b"nd": True,
        b"type": value.dtype.descr if structured else value.dtype.str,
        b"kind": b"V" if structured else b"",
        b"shape": value.shape,
        b"data": value.tobytes(),
    }


def _decode(encoded: dict[Any, Any]) -> Any:
    """The value that a map encodes, or the map itself."""
    if b"nd" in encoded:
        return _decode_numpy(encoded)
    if b"complex" in encoded:
        return complex(encoded[b"data"])
    for key, decode in _DECODERS.items():
        if key in encoded:
            return decode(encoded[b"data"])
    return encoded


def _decode_numpy(encoded: dict[Any, Any]) -> Any:
    import numpy

    kind = encoded.get(b"kind", b"")
    if kind == b"O":
        raise InvalidMsgpack("unsupported payload")
    dtype_spec = encoded[b"type"]
    dtype = numpy.dtype(_fields(dtype_spec) if kind == b"V" else dtype_spec)
    if dtype.hasobject:
        raise InvalidMsgpack("unsupported payload")
    array = numpy.frombuffer(encoded[b"data"], dtype)
    # A copy, since `frombuffer` makes a read-only array and the model may write to it.
    return array.reshape(encoded[b"shape"]).copy() if encoded[b"nd"] else array[0]


def _fields(dtype_spec: Any) -> list[tuple[Any, ...]]:
    return [tuple(tuple(part) if isinstance(part, list) else part for part in each) for each in dtype_spec]


_DECODERS: dict[bytes, Callable[[Any], Any]] = {
    b"__dt_datetime_iso__": lambda data: datetime.datetime.fromisoformat(data.replace("Z", "+00:00")),
    b"__dt_date_iso__": datetime.date.fromisoformat,
    b"__dt_time_iso__": datetime.time.fromisoformat,
    b"__dt_timedelta__": lambda data: datetime.timedelta(data[0], data[1], data[2]),
    b"__decimal__": decimal.Decimal,
    b"__uuid__": uuid.UUID,
}
