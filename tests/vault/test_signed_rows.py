"""The HMAC of a row: no two rows share one, whatever their columns hold. And which rows a SELECT may return."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gusset.vault.crypto.keyring import Keyring
from gusset.vault.storage.signed_rows import (
    RowChange,
    RowSigner,
    Select,
    SignedTable,
    changes_text,
    stored_changes,
)

KEYRING = Keyring.new("root")
SHORT = SignedTable(name="table", key=("a",), columns=("a", "b"), row="the row {a}")
OTHER = SignedTable(name="tablet", key=("a",), columns=("a", "b"), row="the row {a}")
LONG = SignedTable(name="table", key=("a",), columns=("a", "b", "c"), row="the row {a}")

# Few texts, which contain what the encoding itself is made of: so that equal and confusable rows occur.
texts = st.text(alphabet="nti1\0\x01", max_size=3)
values = st.none() | texts | texts.map(str.encode) | st.integers(-1, 11)
rows = st.tuples(
    st.sampled_from(["vault", "vault2"]),
    st.integers(1, 2),  # the epoch
    st.sampled_from([SHORT, OTHER, LONG]),
    st.integers(1, 2),  # the audit record
    st.tuples(values, values, values),
)


def mac(row: Any) -> bytes:
    vault, epoch, table, seq, columns = row
    signer = RowSigner(vault, lambda: KEYRING, lambda _: epoch)
    return signer.mac(table, table.row_type(*columns[: len(table.columns)], seq, None))


def covered(row: Any) -> Any:
    """What the HMAC must cover: a number differs from its digits, and a text from its bytes."""
    vault, epoch, table, seq, columns = row
    return vault, epoch, table.name, seq, [(type(each), each) for each in columns[: len(table.columns)]]


def row(*columns: Any, vault: str = "vault", epoch: int = 1, table: SignedTable = SHORT, seq: int = 1) -> Any:
    return vault, epoch, table, seq, (*columns, None)[:3]


@given(rows, rows)
@example(row(None, "x"), row("", "x"))
@example(row("at", ""), row("a", "t"))
@example(row(b"ab", b""), row(b"a", b"b"))
@example(row("ann", None), row("a", None))
@example(row("1", 1), row(1, "1"))
@example(row("a", b"b"), row("a", "b"))
@example(row("a", "b", vault="vault"), row("a", "b", vault="vault2"))
@example(row("a", "b", table=SHORT), row("a", "b", table=OTHER))
@example(row("a", "b", table=SHORT), row("a", "b", None, table=LONG))
@example(row("a", "b", epoch=1), row("a", "b", epoch=2))
@example(row("a", "b", seq=1), row("a", "b", seq=2))
@example(row(1, "b", seq=1), row(11, "b", seq=1))
def test_two_rows_share_an_hmac_only_if_they_are_the_same(one: Any, other: Any) -> None:
    """NULL is not the empty text, lengths and types count, and vault, epoch, table and record are covered."""
    assert (mac(one) == mac(other)) is (covered(one) == covered(other))


@given(rows)
def test_a_row_is_valid_as_it_was_signed(one: Any) -> None:
    vault, epoch, table, seq, columns = one
    signer = RowSigner(vault, lambda: KEYRING, lambda _: epoch)
    signed = table.row_type(*columns[: len(table.columns)], seq, mac(one))
    assert signer.is_valid(table, signed)
    assert not signer.is_valid(table, signed._replace(mac=signed.mac[:-1]))


@pytest.mark.parametrize("value", [1.5, True, [], ("a",)])
def test_a_column_of_another_type_is_never_valid(value: Any) -> None:
    """SQLite's columns hold any type."""
    signer = RowSigner("vault", lambda: KEYRING, lambda _: 1)
    signed = SHORT.row_type("a", "1", 1, mac(row("a", "1")))
    assert signer.is_valid(SHORT, signed)
    assert not signer.is_valid(SHORT, signed._replace(b=value))
    assert not signer.is_valid(SHORT, signed._replace(mac=value))
    assert not signer.is_valid(SHORT, signed._replace(changed_seq=value))


@pytest.mark.parametrize(
    ("condition", "right", "wrong"),
    [
        ("b = :b", "asked", "other"),
        ("b = :b", "asked", None),
        ("b = 'kind'", "kind", "kin"),
        ("b IN (:bs...)", "one", "three"),
        ("b IN (:bs...)", "two", None),
        ("b IS NULL", None, ""),
        ("b IS NOT NULL", "", None),
    ],
)
def test_a_row_must_fulfil_each_condition_whatever_the_database_returns(
    condition: str, right: Any, wrong: Any
) -> None:
    """Conditions of one column are compared with the row itself."""
    select = Select(SHORT, "a = :a", condition, also="b < :most", then="ORDER BY a")
    asked = {"a": 1, "b": "asked", "bs": frozenset(("one", "two")), "most": "z"}

    assert select.finds(SHORT.row_type(1, right, 1, None), asked)
    assert not select.finds(SHORT.row_type(1, wrong, 1, None), asked)
    assert not select.finds(SHORT.row_type(2, right, 1, None), asked)
    assert select.text.endswith(f" FROM table WHERE a = :a AND {condition} AND (b < :most) ORDER BY a")


@pytest.mark.parametrize("condition", ["b < :b", "b = :b OR a = :a", "lower(b) = :b", "b = 1"])
def test_a_condition_that_rows_cannot_be_compared_with_is_refused(condition: str) -> None:
    """It is given as what is left to the database, so that a reader sees it."""
    with pytest.raises(ValueError, match="not a condition on one column"):
        Select(SHORT, condition)


CHANGES = [
    RowChange("users", "a", b"m" * 32, b"b" * 32),
    RowChange("users", 'b"', b"m" * 32, None),
    RowChange("users", "c", None, None),
]


def test_changes_are_read_as_they_were_stored() -> None:
    """With the row that each replaced, or that there was none."""
    assert list(stored_changes(changes_text(CHANGES))) == CHANGES


def test_an_older_gusset_and_this_one_read_each_others_changes() -> None:
    """It stores what a row was written as, but not what it replaced, and reads just that."""
    older = [[table, key, base64.b64encode(mac).decode() if mac else None] for table, key, mac, _ in CHANGES]
    assert list(stored_changes(json.dumps(older))) == [
        change._replace(before=None if change.mac is None else b"") for change in CHANGES
    ]
    read = [
        (table, key, base64.b64decode(mac) if mac else None)
        for table, key, mac in json.loads(changes_text(CHANGES))
    ]
    assert read == [change[:3] for change in CHANGES]
