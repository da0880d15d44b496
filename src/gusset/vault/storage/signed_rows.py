"""Rows that nobody can forge: each carries an HMAC, and so does the audit record that wrote it.

Whoever can write to the database, but does not have the root key, can change, add, remove or
put back a row. A changed or added row has no valid HMAC, so it is refused wherever it is
used. So is a row that was not asked for: whoever owns the tables can exchange an index, or a
column's type and its operators, so that another row is found (`Select.check_found`). A removed row,
and one that was rolled back with the HMAC that it had, contradict the audit log: each record has
the HMACs of the rows that it wrote (`RowChange`), and `consistency` compares all rows with
the newest of these.

The HMAC covers the vault, the epoch, the table, the number of the audit record that
wrote the row (`changed_seq`), and each signed column with its type and length. Columns
that give neither authority nor meaning, such as times of last use, are not signed.
"""

from __future__ import annotations

import binascii
import hmac
import json
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from json.encoder import encode_basestring_ascii as json_string
from typing import Any, NamedTuple

from gusset.errors import IntegrityError
from gusset.vault.crypto.keyring import Keyring
from gusset.vault.storage.sql import Parameters, Statement, make_row_type

_FORMAT = b"gusset row 1"


Right = tuple[str, str, int, str]
"""A row on which a right rests: its table, its key as audit records have it, the record that wrote it.

And the beginning of its HMAC, since several states of a row may have one record's number.
"""


class SignedTable:
    """A table whose rows are signed. `columns` are signed, its `key` first; `unsigned` are not.

    `row` says what a row is, for messages, with the names of columns in braces.
    """

    def __init__(
        self,
        *,
        name: str,
        key: tuple[str, ...],
        columns: tuple[str, ...],
        unsigned: tuple[str, ...] = (),
        row: str,
    ) -> None:
        self.name = name
        self.key = key
        self.columns = columns
        self.all_columns = (*columns, *unsigned, "changed_seq", "mac")
        self.positions = {column: at for at, column in enumerate(self.all_columns)}
        self._row = row
        self._row_type: Any = None  # made when it is first used: that takes long, and most commands use few
        self._this_row = " AND ".join([f"{column} = :{column}" for column in key])
        names = ", ".join(self.all_columns)
        placeholders = ", ".join([f":{column}" for column in self.all_columns])
        self.insert = Statement(f"INSERT INTO {name} ({names}) VALUES ({placeholders})")
        self.delete = Statement(f"DELETE FROM {name} WHERE {self._this_row}")
        self.all_rows = Statement(f"SELECT {names} FROM {name}")
        self._updates: dict[tuple[str, ...], Statement] = {}

    @property
    def row_type(self) -> Any:
        if self._row_type is None:
            self._row_type = make_row_type(self.all_columns)
        return self._row_type

    def update(self, changed: tuple[str, ...]) -> Statement:
        """The UPDATE of the columns `changed`, of one row."""
        found = self._updates.get(changed)
        if found is None:
            sets = ", ".join(f"{name} = :{name}" for name in (*changed, "changed_seq", "mac"))
            found = Statement(f"UPDATE {self.name} SET {sets} WHERE {self._this_row}")
            self._updates[changed] = found
        return found

    def key_text(self, row: Any) -> str:
        """The key of a row as one text, as audit records have it."""
        return "/".join([_key_part(value) for value in row[: len(self.key)]])

    def right(self, row: Any) -> Right:
        """`row` as one on which a right rests."""
        return self.name, self.key_text(row), row.changed_seq, mac_beginning(row.mac)

    def describe(self, row: Any) -> str:
        """What `row` is, for a message."""
        return self._row.format_map(row._asdict())


class Select(Statement):
    """A SELECT of whole rows of one signed table; each is verified when it is read.

    `conditions` say what every row must have in one column: `id = :id`, `kind = 'token'`, `id IN (:ids...)`,
    `deleted_at IS NULL` or `IS NOT NULL`. Each row that the database returns is compared with them. `also`, a
    condition of any kind, is left to the database. `then` follows, such as `ORDER BY name`.

    Raises:
        ValueError: a condition is of another kind.
    """

    __slots__ = ("_equal", "_fixed", "_listed", "_present", "table")

    def __init__(self, table: SignedTable, *conditions: str, also: str = "", then: str = "") -> None:
        where = " AND ".join([*conditions, *([f"({also})"] if also else [])])
        parts = [table.all_rows.text, where and f"WHERE {where}", then]
        super().__init__(" ".join(filter(None, parts)))
        self.table = table
        equal: list[tuple[int, str]] = []
        listed: list[tuple[int, str]] = []
        fixed: list[tuple[int, str | None]] = []
        present: list[int] = []
        for condition in conditions:
            match = _CONDITION.fullmatch(condition)
            if match is None:
                raise ValueError(f"{condition} is not a condition on one column")
            at = table.positions[match["column"]]
            if match["parameter"]:
                equal.append((at, match["parameter"]))
            elif match["list"]:
                listed.append((at, match["list"]))
            elif match["absent"] or match["text"]:
                fixed.append((at, match["text"]))
            else:
                present.append(at)
        # Positions of columns, with the parameter or the value that they must have.
        self._equal = tuple(equal)
        self._listed = tuple(listed)
        self._fixed = tuple(fixed)
        self._present = tuple(present)

    def finds(self, row: Any, parameters: Parameters) -> bool:
        """Whether `row` fulfils the conditions."""
        for at, parameter in self._equal:
            if row[at] != parameters[parameter]:
                return False
        for at, parameter in self._listed:
            if row[at] not in parameters[parameter]:
                return False
        for at, value in self._fixed:
            if row[at] != value:
                return False
        for at in self._present:  # noqa: SIM110  # for each row: a generator takes longer
            if row[at] is None:
                return False
        return True

    def check_found(self, row: Any, parameters: Parameters) -> None:
        """Raises IntegrityError for a row that the database returns, though it was not asked for."""
        if not self.finds(row, parameters):
            raise IntegrityError(
                f"the database returns {self.table.describe(row)} where another was asked for: "
                "its indexes, or the types of its columns, were altered",
                hint="restore the database from a backup, or load a dump into a new one",
            )


_CONDITION = re.compile(
    r"(?P<column>\w+) (?:= :(?P<parameter>\w+)|= '(?P<text>\w+)'|IN \(:(?P<list>\w+)\.\.\.\)"
    r"|IS (?P<absent>NULL)|IS NOT NULL)"
)


class Lookup(Select):
    """A SELECT of the one row that has given values in the columns `by`, and NULL in the columns `without`.

    Its parameters have the names of the columns. No two rows of the table may fulfil it.
    """

    __slots__ = ()

    def __init__(self, table: SignedTable, *, by: tuple[str, ...], without: tuple[str, ...] = ()) -> None:
        super().__init__(
            table, *[f"{name} = :{name}" for name in by], *[f"{name} IS NULL" for name in without]
        )

    def values(self, parameters: Parameters) -> tuple[Any, ...]:
        """The values of the columns `by`."""
        return tuple([parameters[name] for _, name in self._equal])

    def values_of(self, row: Any) -> tuple[Any, ...] | None:
        """With which values `row` is found; None if it never is."""
        for at, value in self._fixed:
            if row[at] != value:
                return None
        return tuple([row[at] for at, _ in self._equal])


class RowChange(NamedTuple):
    """A signed row that was written, with its new HMAC; None for one that was removed.

    `before` is the HMAC of the row that it replaced: None for an insert, and of a removed row. It is empty
    where an older gusset wrote the record, which did not store it.
    """

    table: str
    key: str
    mac: bytes | None
    before: bytes | None

    def json(self) -> str:
        """As audit records store it: table, key and HMACs in a list.

        Both HMACs are one text. Managers of an older gusset, which may run beside this one, decode it up to
        the end of the first, and take a list of another length for no change at all.
        """
        macs = "null"
        if self.mac is not None:
            before = _NOTHING if self.before is None else _mac_text(self.before)
            macs = f'"{_mac_text(self.mac)}{before}"'
        return f"[{json_string(self.table)},{json_string(self.key)},{macs}]"


class RowSigner:
    """Signs rows, and verifies them."""

    def __init__(
        self,
        vault: str,
        keyring: Callable[[], Keyring],
        epoch_of: Callable[[int], int],
        reload_if_newer: Callable[[Any], bool] = lambda _: False,
    ) -> None:
        """`epoch_of` gives the epoch of the audit record with that number.

        `reload_if_newer` reads keyring and epochs through a connection if another process has changed them.
        """
        self._vault = vault
        self._keyring = keyring
        self._epoch_of = epoch_of
        self._reload_if_newer = reload_if_newer
        self._heads: dict[tuple[str, int], bytes] = {}  # by table and epoch

    def mac(self, table: SignedTable, row: Any) -> bytes:
        """The HMAC that `row` must have, for its `changed_seq`, which comes before the HMAC."""
        return self._keyring().state_mac(self._content(table, row), row[-2])

    def check(self, connection: Any, table: SignedTable, row: Any) -> None:
        """Raises IntegrityError for a row that was not written by a holder of the state key."""
        if not self.is_valid_in(connection, table, row):
            raise IntegrityError(
                f"{table.describe(row)} was altered in the database: it is not used",
                hint="`gusset audit verify` lists what differs from the audit log",
            )

    def is_valid_in(self, connection: Any, table: SignedTable, row: Any) -> bool:
        """`is_valid` for a row that `connection` has read, also by a key that another process has added."""
        return self.is_valid(table, row) or (self._reload_if_newer(connection) and self.is_valid(table, row))

    def is_valid(self, table: SignedTable, row: Any) -> bool:
        """Whether a holder of the state key wrote this row."""
        # SQLite's columns hold any type.
        if type(row.mac) is not bytes or type(row.changed_seq) is not int:
            return False
        try:
            return hmac.compare_digest(self.mac(table, row), row.mac)
        except (TypeError, KeyError):
            return False

    def _content(self, table: SignedTable, row: Any) -> bytes:
        seq = row[-2]
        return self._head(table.name, self._epoch_of(seq)) + _encoded((seq, *row[: len(table.columns)]))

    def _head(self, table: str, epoch: int) -> bytes:
        """What the contents of all rows of a table begin with that were written in an epoch."""
        head = self._heads.get((table, epoch))
        if head is None:
            head = self._heads[table, epoch] = _FORMAT + _encoded((self._vault, epoch, table))
        return head


def _encoded(values: Sequence[Any]) -> bytes:
    """Values with their types and lengths, so that two rows are never encoded alike."""
    parts: list[bytes] = []
    for value in values:
        if type(value) is str:
            data = value.encode()
            parts += (_HEAD(b"t", len(data)), data)
        elif value is None:
            parts.append(b"n")
        elif type(value) is int:
            data = b"%d" % value
            parts += (_HEAD(b"i", len(data)), data)
        elif type(value) is bytes:
            parts += (_HEAD(b"b", len(value)), value)
        else:
            raise TypeError("the column holds another type")
    return b"".join(parts)


_HEAD: Callable[[bytes, int], bytes] = struct.Struct(">cI").pack


def _key_part(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def mac_beginning(mac: bytes) -> str:
    """Enough of an HMAC to tell it from others, as text."""
    return mac[:8].hex()


def _mac_text(mac: bytes) -> str:
    return binascii.b2a_base64(mac, newline=False).decode()


_NOTHING = "-"  # what an inserted row replaced, where an updated one has an HMAC
_MAC_LENGTH = 44  # of the text of an HMAC


def changes_text(changes: Sequence[RowChange]) -> str:
    """The changes as audit records store them: compact JSON."""
    return f"[{','.join([change.json() for change in changes])}]"


def stored_changes(text: str) -> Iterator[RowChange]:
    """The changes of which `changes_text` made this text. Raises ValueError, TypeError or RecursionError."""
    for table, key, macs in json.loads(text):
        if macs is None:
            yield RowChange(table, key, None, None)
        else:
            before = macs[_MAC_LENGTH:]
            replaced = None if before == _NOTHING else binascii.a2b_base64(before)
            yield RowChange(table, key, binascii.a2b_base64(macs[:_MAC_LENGTH]), replaced)
