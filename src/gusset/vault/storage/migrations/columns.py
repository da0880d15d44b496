"""Types of columns. SQLite has them as the first schema did; PostgreSQL's keep the same promises.

SQLite limits no text and no integer, and compares texts by their bytes. PostgreSQL does so
with `BIGINT`, and `TEXT` in the collation "C"; its own `VARCHAR(24)` refuses the 25th character.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.types import TypeEngine

_TEXT = sa.Text(collation="C")

INTEGER: TypeEngine[Any] = sa.Integer().with_variant(sa.BigInteger(), "postgresql")
TEXT: TypeEngine[Any] = sa.Text().with_variant(_TEXT, "postgresql")


def short_text(length: int) -> TypeEngine[Any]:
    """`length` is what SQLite's schema has, where it means nothing."""
    return sa.String(length).with_variant(_TEXT, "postgresql")
