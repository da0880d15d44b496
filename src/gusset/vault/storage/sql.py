"""Statements as text, written once for both databases, and the rows that they return.

Parameters are `:name`. `:name...` in `IN (:name...)` stands for a list. Only SQL that
SQLite and PostgreSQL read alike is used; what differs is in `sqlite.py` and `postgres.py`.
"""

from __future__ import annotations

import re
import string
from collections import namedtuple
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

Parameters = Mapping[str, Any]


class Numbered(NamedTuple):
    """A statement as PostgreSQL reads it: parameters are `$1`, `$2`; `parameters` is how many there are."""

    sql: bytes
    parameters: int


_LIST = re.compile(r":(\w+)\.\.\.")
_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]\w*)")

_MAX_LENGTHS = 100  # of lists, for which a statement is kept
_LONGEST_PADDED = 16_384  # a longer list could be padded beyond what a database takes as parameters


class Statement:
    """One statement. Rows of a SELECT are named tuples with the names of its columns."""

    __slots__ = (
        "_by_lengths",
        "_for_postgres",
        "_for_sqlite",
        "_names",
        "_row_type",
        "lists",
        "reads",
        "text",
    )

    def __init__(self, text: str) -> None:
        self.text = text
        self.lists = tuple(_LIST.findall(text))
        self.reads = text.lstrip()[:6].upper() == "SELECT"
        self._names: tuple[str, ...] | None = None
        self._for_postgres: Numbered | None = None
        self._for_sqlite: str | None = None
        self._row_type: Any = None
        self._by_lengths: dict[tuple[int, ...], Statement] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its parameters, in the order of their numbers."""
        if self._names is None:
            self._names = tuple(dict.fromkeys(_PARAMETER.findall(self.text)))
        return self._names

    @property
    def for_postgres(self) -> Numbered:
        """The statement as PostgreSQL reads it."""
        if self._for_postgres is None:
            self._for_postgres = Numbered(self._with_numbers("$").encode(), len(self.names))
        return self._for_postgres

    @property
    def for_sqlite(self) -> str:
        """The statement as SQLite reads it, with `?1`, `?2`: its driver binds by name in twice the time."""
        if self._for_sqlite is None:
            self._for_sqlite = self._with_numbers("?")
        return self._for_sqlite

    def _with_numbers(self, mark: str) -> str:
        numbers = {name: f"{mark}{number}" for number, name in enumerate(self.names, 1)}
        return _PARAMETER.sub(lambda match: numbers[match[1]], self.text)

    def row(self, values: Sequence[Any], description: Sequence[Any]) -> Any:
        """A row of the result as a named tuple. `description` is the cursor's."""
        if self._row_type is None:
            names = [column[0] for column in description]
            self._row_type = make_row_type(names)
        return self._row_type._make(values)

    def with_lists(self, parameters: Parameters) -> tuple[Statement, Parameters]:
        """The statement with a parameter for each element of its lists, and these parameters."""
        values = dict(parameters)
        lists = {name: _padded(values.pop(name)) for name in self.lists}
        lengths = tuple(len(elements) for elements in lists.values())
        found = self._by_lengths.get(lengths)
        if found is None:
            text = _LIST.sub(lambda match: _placeholders(match[1], len(lists[match[1]])), self.text)
            found = Statement(text)
            if len(self._by_lengths) < _MAX_LENGTHS:
                self._by_lengths[lengths] = found
        for name, elements in lists.items():
            values |= {f"{name}_{index}": value for index, value in enumerate(elements)}
        return found, values


def make_row_type(names: Sequence[str]) -> Any:
    """The type of rows with these columns."""
    return namedtuple("Row", names)  # its fields are known at run time only


def _padded(elements: Collection[Any]) -> list[Any]:
    """The elements, the last one repeated so that few lengths occur: all up to 15, then eight per doubling.

    A statement is made and prepared for each length. `IN` ignores elements that are repeated.
    """
    found = list(elements)
    if len(found) <= _LONGEST_PADDED:
        step = 1 << max(0, len(found).bit_length() - 4)
        found += found[-1:] * (-len(found) % step)
    return found


def _placeholders(name: str, length: int) -> str:
    """`:name_0, :name_1`; NULL for an empty list, which no value is in."""
    return ", ".join(f":{name}_{index}" for index in range(length)) or "NULL"


_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def containing_pattern(text: str) -> str:
    """The LIKE pattern, with `ESCAPE '/'`, of what contains `text`; compare it with `lower(column)`.

    Of other letters than those of ASCII the case counts: both databases' `lower` leaves them as they are.
    """
    return f"%{escaped(text.translate(_LOWER))}%"


def escaped(text: str) -> str:
    """`text` escaped for a LIKE pattern with `ESCAPE '/'`, so that it matches itself."""
    return text.replace("/", "//").replace("%", "/%").replace("_", "/_")
