"""Verification while the vault is in use: new records soon, all rows now and then, a piece at a time.

The state that the log gives is kept between the runs, one entry for each signed row, so that
only new records are read. No snapshot is held for longer than a piece takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from gusset.errors import GussetError, IntegrityError, Unreachable, VaultTooNew
from gusset.vault.audit.chain_walk import RECORD, ChainWalk, record_of
from gusset.vault.audit.consistency import RowComparison, contradiction, unreadable
from gusset.vault.audit.known_head import KnownRecord
from gusset.vault.clock import Clock, timestamp
from gusset.vault.crypto.keyring import Keyring
from gusset.vault.storage.connection import Connection, Store
from gusset.vault.storage.signed_rows import RowSigner, SignedTable
from gusset.vault.storage.sql import Statement
from gusset.vault.storage.tables import SIGNED_TABLES

PIECE = 50  # records or rows that are read at a time: a few milliseconds, in which no request is handled
_MAX_PROBLEMS = 1000  # of each kind that are kept; whoever can alter one row can alter all

_NEXT_RECORDS = Statement(f"{RECORD} WHERE seq > :seq ORDER BY seq LIMIT :limit")
_FIND_BELOW = Statement("SELECT seq FROM audit WHERE seq < 1 ORDER BY seq LIMIT 1")
_FIND_HASH = Statement("SELECT hash FROM audit WHERE seq = :seq")

# Called between two pieces, to leave time to others. Returns whether to stop.
Pause = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Integrity:
    """What was found. `records_at` and `rows_at` are when new records and all rows were last verified."""

    problems: tuple[str, ...] = ()
    records: int = 0
    records_at: str | None = None
    rows_at: str | None = None


class ContinuousVerification:
    """For use by one thread; any thread may read `result`."""

    def __init__(
        self,
        store: Store,
        vault: str,
        *,
        reload_keyring: Callable[[Connection], Keyring],
        signer: RowSigner,
        clock: Clock,
        check_schema: Callable[[Connection], None],
    ) -> None:
        self.result = Integrity()
        self._store = store
        self._vault = vault
        self._reload_keyring = reload_keyring
        self._signer = signer
        self._clock = clock
        self._check_schema = check_schema
        self._walk = ChainWalk(vault)
        self._keyring: Keyring | None = None
        self._records_at: str | None = None
        self._rows_at: str | None = None
        self._lost: KnownRecord | None = None
        self._chain_problems: list[str] = []
        self._row_problems: list[str] = []
        self._schema_problem: list[str] = []
        self._failures: dict[str, str] = {}  # why "records" or "rows" cannot be verified

    def verify_new_records(self, pause: Pause) -> None:
        """Verify the records that were added since the last call; the first call verifies all.

        Raises:
            Exception: they cannot be verified. That is a problem, too, unless the database is only away.
        """
        with self._naming_failure("records"):
            self._verify_new_records(pause)

    def verify_rows(self, pause: Pause) -> None:
        """Compare all signed rows with the log, after `verify_new_records`. Raises the same errors.

        Also finds triggers and views.
        """
        with self._naming_failure("rows"):
            self._verify_rows(pause)

    @contextmanager
    def _naming_failure(self, what: str) -> Iterator[None]:
        """Report a failure to verify: whoever can cause one must not be able to hide a problem that way."""
        try:
            yield
        except Exception as error:
            if (reason := _reason(error)) is not None:
                self._failures[what] = f"the {what} cannot be verified: {reason}"
                self._publish()
            raise
        if self._failures.pop(what, None) is not None:
            self._publish()

    def _verify_new_records(self, pause: Pause) -> None:
        more = True
        while more:
            with self._store.snapshot() as connection:
                more = self._follow_piece(connection)
                if not more and (row := connection.one(_FIND_BELOW)) is not None:
                    self._add_chain_problem(f"record {row.seq} was added: the first one has the number 1")
            if more:
                self._publish()
                if pause():
                    return
        self._records_at = timestamp(self._clock())
        self._publish()

    def _verify_rows(self, pause: Pause) -> None:
        until, comparison = self._walk.head.seq, RowComparison(self._walk.state, self._signer)
        with self._store.snapshot() as connection:
            self._schema_problem = schema_problem(self._check_schema, connection)
        if self._schema_problem:
            self._publish()
        found: list[str] = []
        contradictions: list[str] = []
        failure: GussetError | None = None
        for table in SIGNED_TABLES:
            try:
                if not self._verify_table(table, comparison, found, pause):
                    return
                with self._store.snapshot() as connection:
                    contradictions += contradiction(connection, table)
            except Exception as error:  # whoever can cause it must not hide what is wrong elsewhere
                if _reason(error) is None:
                    raise
                comparison.unreadable(table)
                if isinstance(error, GussetError):
                    failure = failure or error
                else:
                    self._add_row_problems(found, [unreadable(table.name, error)])
        # A row that was added after its part of the table had been read is in the next comparison.
        found += islice(comparison.missing(until), _MAX_PROBLEMS)
        self._row_problems = [*contradictions, *found]
        if failure is not None:
            raise failure
        self._rows_at = timestamp(self._clock())
        self._publish()

    def _verify_table(
        self, table: SignedTable, comparison: RowComparison, found: list[str], pause: Pause
    ) -> bool:
        """Compare the rows of a table with the log, and add what is wrong to `found`.

        Returns whether to go on.
        """
        last: Any = None
        beyond = False  # whether to read only rows that follow `last`, and none with the same key
        while True:
            with self._store.snapshot() as connection:
                while self._follow_piece(connection):
                    pass
                if comparison.state is not self._walk.state:
                    return False  # an older copy of the database was restored: the next call begins again
                rows = _next_rows(connection, table, last, beyond=beyond)
                is_last = len(rows) < PIECE
                if rows and not beyond and _has_key_of(table, rows[0], last):
                    del rows[0]  # it was read before
                problems = list(comparison.differences(table, rows))
                if problems and not found:  # another process may have rotated keys
                    self._keyring = self._reload_keyring(connection)
                    problems = list(comparison.differences(table, rows))
                problems += comparison.duplicates(table, rows)
            self._add_row_problems(found, problems)
            if is_last:
                return True
            # A piece of one key only: the next one would be the same.
            beyond = not rows or _has_key_of(table, rows[-1], last)
            last = rows[-1] if rows else last
            if pause():
                return False

    def _add_row_problems(self, found: list[str], problems: list[str]) -> None:
        """Publish problems of a run that is not complete, and add them to those that were `found` in it."""
        if problems:
            found += problems[: _MAX_PROBLEMS - len(found)]
            self._row_problems = list(dict.fromkeys([*self._row_problems, *found]))
            self._publish()

    def _follow_piece(self, connection: Connection) -> bool:
        """Verify the next records. Returns whether there may be more."""
        self._check_head(connection)
        before = self._walk.head.seq
        rows = connection.all(_NEXT_RECORDS, {"seq": before, "limit": PIECE})
        if self._keyring is None:
            self._keyring = self._reload_keyring(connection)
        for record in map(record_of, rows):
            if not self._chain_problems and not self._walk.is_signed(record, self._keyring):
                self._keyring = self._reload_keyring(connection)
            self._add_chain_problem(self._walk.follow(record, self._keyring))
        # Records that have no number are read again and again.
        return len(rows) == PIECE and self._walk.head.seq > before

    def _add_chain_problem(self, problem: str | None) -> None:
        if problem is not None and len(self._chain_problems) < _MAX_PROBLEMS:
            self._chain_problems = list(dict.fromkeys([*self._chain_problems, problem]))

    def _check_head(self, connection: Connection) -> None:
        """Begin again if the newest verified record is not in the log any more."""
        head = self._walk.head
        row = connection.one(_FIND_HASH, {"seq": head.seq}) if head.seq else None
        if head.seq and (row is None or row.hash != head.hash):
            self._lost = KnownRecord(self._walk.state.epochs.of(head.seq), head.seq, head.hash)
            self._walk, self._chain_problems = ChainWalk(self._vault), []

    def _publish(self) -> None:
        lost = []
        if self._lost is not None and not self._walk.state.epochs.has_lost(self._lost.epoch, self._lost.seq):
            lost = [
                f"record {self._lost.seq}, which was verified before, is not in the log any more: "
                "it was altered or cut short, or the database was replaced by an older copy"
            ]
        wrong = self._walk.state.problems[:_MAX_PROBLEMS]
        self.result = Integrity(
            problems=(
                *self._failures.values(),
                *self._schema_problem,
                *lost,
                *self._chain_problems,
                *wrong,
                *self._row_problems,
            ),
            records=self._walk.head.seq,
            records_at=self._records_at,
            rows_at=self._rows_at,
        )


def schema_problem(check_schema: Callable[[Connection], None], connection: Connection) -> list[str]:
    """What is wrong with the schema of the database: at most one problem, also where gusset fails by it."""
    try:
        check_schema(connection)
    except IntegrityError as error:
        return [error.message]
    except (GussetError, OSError, connection.dialect.errors):
        raise
    except Exception as error:  # whoever can cause it must not hide what is wrong elsewhere
        return [unreadable("the schema", error)]
    return []


def _reason(error: Exception) -> str | None:
    """Why something cannot be verified; None if the database is only away, or that of a newer gusset."""
    if isinstance(error, Unreachable | VaultTooNew):
        return None
    if isinstance(error, GussetError):
        return error.message
    return f"gusset fails by what the database holds ({type(error).__name__})"


def _has_key_of(table: SignedTable, row: Any, other: Any) -> bool:
    return other is not None and row[: len(table.key)] == other[: len(table.key)]


def _next_rows(connection: Connection, table: SignedTable, last: Any, *, beyond: bool) -> list[Any]:
    """The rows from the key of `last` on, not verified; the first rows if it is None.

    The key may not be one any more: whoever can write the database can drop it. So rows with the key of
    `last` are among them, unless they are to be `beyond` it.
    """
    parameters: dict[str, Any] = {"limit": PIECE}
    if last is not None:
        parameters |= {name: getattr(last, name) for name in table.key}
    rows = connection.all(_statement(table, "" if last is None else ">" if beyond else ">="), parameters)
    return [table.row_type._make(row) for row in rows]


@cache
def _statement(table: SignedTable, comparison: str) -> Statement:
    """`comparison` is how the keys compare with the parameters: `>`, `>=`, or empty for all rows."""
    where = f" WHERE {' OR '.join(_after(table.key, comparison))}" if comparison else ""
    order = ", ".join(table.key)
    return Statement(f"{table.all_rows.text}{where} ORDER BY {order} LIMIT :limit")


def _after(key: tuple[str, ...], comparison: str) -> Iterator[str]:
    """The conditions, one of which the rows after a key meet."""
    for index, name in enumerate(key):
        equal = "".join(f"{each} = :{each} AND " for each in key[:index])
        sign = comparison if index == len(key) - 1 else ">"
        yield f"({equal}{name} {sign} :{name})"
