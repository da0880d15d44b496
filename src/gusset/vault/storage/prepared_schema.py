"""The newest schema as prepared SQL: `make newest-schema` writes it from the migrations."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "newest_schema"

_REVISION = re.compile(r"INSERT INTO alembic_version \(version_num\) VALUES \('(\w+)'\)")
_TABLE = re.compile(r"^CREATE TABLE (\w+)", re.MULTILINE)


def statements(kind: str) -> list[str]:
    """What makes the schema in an empty database of this kind."""
    return (FOLDER / f"{kind}.sql").read_text().split(";\n")


@cache
def table_names(kind: str) -> frozenset[str]:
    """The tables that it has."""
    return frozenset(_TABLE.findall((FOLDER / f"{kind}.sql").read_text()))


@cache
def made_revision(kind: str) -> str:
    """The revision that it has."""
    match = _REVISION.search(statements(kind)[-1])
    assert match is not None  # noqa: S101  # `make newest-schema` writes it last
    return match[1]
