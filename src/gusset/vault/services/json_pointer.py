"""JSON Pointer (RFC 6901): the path to one value of a JSON document. Pure functions."""

from __future__ import annotations

import re
from typing import Any, Final

from gusset.errors import UsageError

_VALID = re.compile(r"(?:/(?:[^~/]|~[01])*)*")
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")


class Missing:
    """The type of `MISSING`."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()  # a document may contain null


def check_pointer(pointer: str) -> None:
    """Raises UsageError for a text that is not a JSON Pointer."""
    if not _VALID.fullmatch(pointer):
        raise UsageError(
            "that is not a JSON Pointer",
            hint="an example: /kubernetes.io/namespace; in a key, write '~1' for '/' and '~0' for '~'",
        )


def look_up(document: Any, pointer: str) -> Any:
    """The value that a valid pointer leads to, or `MISSING`."""
    value = document
    for token in pointer.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(key, MISSING)
        elif isinstance(value, list) and _INDEX.fullmatch(key) and int(key) < len(value):
            value = value[int(key)]
        else:
            return MISSING
    return value
