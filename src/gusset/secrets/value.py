"""A secret's value: `SecretValue` inside gusset, `SecretText` for models."""

from __future__ import annotations

from typing import Final, NoReturn, TypeVar

from gusset.errors import InvalidValue

MAX_BYTES = 65_536
MIN_MASKED: Final = 8  # bytes: a shorter value would match other text
MASK = "***"


class SecretValue:
    """The bytes of a secret, protected from being shown by accident.

    Printing, formatting or logging shows a mask, and pickling is refused. Only
    `reveal` returns the bytes: searching the code for that word finds every
    place that uses them.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __bool__(self) -> bool:
        return True  # an empty value is a value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretValue) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return f"SecretValue('{MASK}')"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SecretValue is never pickled; pass the secret's name instead")

    def __deepcopy__(self, memo: object) -> SecretValue:
        return self

    def __copy__(self) -> SecretValue:
        return self


class SecretText(str):
    """A secret as a model gets it: a `str` with the exact text and a masked `repr`.

    All else is inherited from `str`, so headers, f-strings, JSON and clients
    work unchanged. Results of its methods (`.strip()`, slices, `+`) are plain
    `str`. It can be pickled, because model libraries start processes of their own.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{MASK}'"

    def __reduce__(self) -> tuple[type[SecretText], tuple[str]]:
        return (SecretText, (str(self),))

    def __copy__(self) -> SecretText:
        return self

    def __deepcopy__(self, memo: object) -> SecretText:
        return self

    def __str__(self) -> str:
        return str.__str__(self)


_Value = TypeVar("_Value", bytes, SecretValue)


def check_length(value: _Value, what: object = "the value") -> _Value:
    """Return `value`; raise `InvalidValue`, about `what`, when it is too long for a secret."""
    if len(value) > MAX_BYTES:
        raise InvalidValue(
            f"{what} has more than {MAX_BYTES:,} bytes, the most that a secret can hold",
            hint="keep large files elsewhere, and store the key that opens them as the secret",
        )
    return value
