"""What in the schema of SQLite's file is not gusset's, and could change what gusset reads or writes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

from gusset.vault.storage.prepared_schema import made_revision, statements


class SchemaEntry(NamedTuple):
    """A row of `sqlite_master`, whose names SQLite compares with the text. An index of a key has no text."""

    type: str
    name: str
    table: str
    sql: str | None


_SPACE = re.compile("[ \\t\\r\\n\\f]+")  # what SQLite takes for space
_AROUND = re.compile(" ?([(),]) ?")
_TABLE = re.compile(r'CREATE TABLE ("?)(\w+)\1[(](.*)[)]')  # one that was renamed has a quoted name
_ADDITION = re.compile(r"ALTER TABLE (\w+) ADD COLUMN (.*)")
_INDEX = re.compile(r"CREATE (?:UNIQUE )?INDEX (\w+) ON .*")


class _Schema(NamedTuple):
    """The columns and constraints of each table, sorted; the text of each index."""

    tables: dict[str, list[str]]
    indexes: dict[str, str]


def foreign_objects(entries: Iterable[SchemaEntry], revision: str | None) -> list[str]:
    """Their kinds and names. Tables of others are accepted: nothing reads them.

    What a newer gusset than this has added to the schema (of `revision`) is accepted, too. The columns of
    an older one's tables are unknown.
    """
    made = made_revision("sqlite")
    found = revision or made
    return [
        name
        for entry in entries
        for name in _foreign(entry, _expected(), older=found < made, newer=found > made)
    ]


def _foreign(entry: SchemaEntry, expected: _Schema, *, older: bool, newer: bool) -> Iterator[str]:
    if entry.type not in ("table", "index"):
        yield f"{entry.type} {entry.name}"
    elif entry.name.lower().startswith("sqlite_stat"):
        yield f"statistics {entry.name}"  # they decide which index is used
    elif entry.table.lower() not in expected.tables or entry.sql is None:
        return
    elif entry.type == "index":
        if (known := expected.indexes.get(entry.name)) is None and newer:
            return
        if _normal(entry.sql) != known:
            yield f"index {entry.name}"
    elif not older:
        wanted, parts = expected.tables[entry.table.lower()], _parts_of(entry)
        if parts != wanted and not (newer and parts is not None and set(wanted) <= set(parts)):
            yield f"changed table {entry.name}"


def _parts_of(entry: SchemaEntry) -> list[str] | None:
    """The columns and constraints of a table; None if its text has another form than gusset's."""
    match = _TABLE.fullmatch(_normal(entry.sql or ""))
    return _parts(match[3]) if match is not None and match[2] == entry.name else None


def _parts(body: str) -> list[str]:
    """What the commas outside of parentheses separate, sorted: a new column comes before the constraints.

    It knows nothing of quotes: a part with a single one is not gusset's.
    """
    parts, part = list[str](), ""
    for piece in body.split(","):
        part = f"{part},{piece}" if part else piece
        if part.count("(") == part.count(")"):
            parts.append(part)
            part = ""
    return sorted([*parts, part] if part else parts)  # a rest has an open parenthesis


@cache
def _expected() -> _Schema:
    tables, indexes = dict[str, list[str]](), dict[str, str]()
    for statement in map(_normal, statements("sqlite")):
        if match := _TABLE.search(statement):
            tables[match[2]] = _parts(match[3])  # of one that was made anew, the last
        elif match := _ADDITION.fullmatch(statement):
            tables[match[1]] = sorted([*tables[match[1]], match[2]])
        elif match := _INDEX.fullmatch(statement):
            indexes[match[1]] = statement
    return _Schema(tables, indexes)


def _normal(sql: str) -> str:
    """A statement without the spaces that mean nothing."""
    return _AROUND.sub(r"\1", _SPACE.sub(" ", sql)).strip(" ")
