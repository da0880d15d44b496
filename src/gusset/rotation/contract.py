"""The contract with a provider's program, version 1: JSON on its standard input and output.

gusset runs the program once for each step. docs/rotation.md describes the contract for those who write
one. No message about a provider's output repeats any of it, since it may be a value.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gusset.errors import GussetError, ProviderFailed
from gusset.rotation.state import MAX_HANDLE, ProviderRotation
from gusset.secrets.value import SecretValue, check_length

VERSION = 1
MAX_OUTPUT = 512 * 1024  # bytes: the largest value with each byte as a JSON escape

EXIT_UNKNOWN_STEP = 64  # as EX_USAGE of sysexits.h: the program does not have this step, or not this secret
EXIT_TEMPORARY = 75  # as EX_TEMPFAIL: the same step may succeed later


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """The credential that a provider has made. `expires_at` is aware."""

    value: SecretValue
    handle: str
    expires_at: datetime | None


def create_request(rotation: ProviderRotation) -> bytes:
    """The input of the step `create`."""
    return _request(rotation, "create", current=rotation.current)


def verify_request(rotation: ProviderRotation, created: Created) -> bytes:
    """The input of the step `verify`. It has the value."""
    return _request(rotation, "verify", handle=created.handle, **_value_fields(created.value))


def revoke_request(rotation: ProviderRotation, handle: str) -> bytes:
    """The input of the step `revoke`, for the credential with that handle."""
    return _request(rotation, "revoke", handle=handle, current=rotation.handle)


def _request(rotation: ProviderRotation, step: str, **fields: Any) -> bytes:
    head = {
        "contract": VERSION,
        "step": step,
        "rotation": rotation.id,
        "secret": rotation.name,
        "team": rotation.team,
    }
    return json.dumps(head | fields).encode() + b"\n"


def _value_fields(value: SecretValue) -> dict[str, str]:
    data = value.reveal()
    try:
        return {"value": data.decode()}
    except UnicodeDecodeError:
        return {"value_base64": base64.b64encode(data).decode()}


def parse_created(output: bytes) -> Created:
    """The credential in the output of the step `create`.

    Raises:
        ProviderFailed: the output is not what the contract demands.
    """
    data = _fields(output)
    value, handle = _value(data), data.get("handle")
    if not isinstance(handle, str) or not 0 < len(handle) <= MAX_HANDLE or not handle.isprintable():
        raise _bad(f"has no `handle`, a printable text of 1 to {MAX_HANDLE} characters")
    if value.reveal() in handle.encode():
        raise _bad("has the value in its `handle`, which is not secret")
    return Created(value=value, handle=handle, expires_at=_expires_at(data))


def value_in(output: bytes) -> SecretValue | None:
    """The value in what a failed program has written, if that can be read."""
    try:
        return _value(_fields(output))
    except ProviderFailed:
        return None


def _fields(output: bytes) -> dict[str, Any]:
    if len(output) > MAX_OUTPUT:
        raise _bad("is too large")
    try:
        data = json.loads(output)
    except (ValueError, RecursionError):
        raise _bad("is not JSON") from None
    if not isinstance(data, dict):
        raise _bad("is not a JSON object")
    return data


def _value(data: dict[str, Any]) -> SecretValue:
    text, encoded = data.get("value"), data.get("value_base64")
    if isinstance(text, str) == isinstance(encoded, str):
        raise _bad("must have either `value`, a text, or `value_base64`")
    try:
        value = text.encode() if isinstance(text, str) else base64.b64decode(str(encoded), validate=True)
        if not value:
            raise _bad("has an empty value")
        return SecretValue(check_length(value))
    except (UnicodeEncodeError, binascii.Error, ValueError):
        raise _bad("has a value that is not valid") from None
    except ProviderFailed:
        raise
    except GussetError as error:
        raise _bad(f"has a value that cannot be stored: {error.message}") from None


def _expires_at(data: dict[str, Any]) -> datetime | None:
    text = data.get("expires_at")
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except (ValueError, TypeError):
        raise _bad("has an `expires_at` that is not a time, such as 2031-01-31T12:00:00Z") from None
    if moment.tzinfo is None:
        raise _bad("has an `expires_at` without a time zone")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise _bad("has an `expires_at` outside of the years 1 to 9999 in UTC") from None


def _bad(what: str) -> ProviderFailed:
    return ProviderFailed(
        f"the output of the provider's program for the step create {what}",
        hint="it writes one JSON object with `value` and `handle`, and nothing else; see docs/rotation.md",
    )
