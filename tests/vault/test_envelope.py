"""Sealing: what opens, what must not, and that every release opens what an earlier one sealed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import example, given
from hypothesis import strategies as st

from gusset.vault.crypto.envelope import (
    FORMAT,
    CannotOpen,
    encode_context,
    kek_number,
    open_sealed,
    rewrap,
    seal,
    version_context,
)

KEKS = {1: AESGCM(bytes(range(32))), 2: AESGCM(bytes(range(32, 64)))}
CONTEXT = encode_context("team", "secret", "1")
VECTORS = sorted((Path(__file__).parent.parent / "vectors").glob("sealed-*.json"))


def opened(sealed: bytes, context: bytes = CONTEXT) -> bytes:
    return open_sealed(sealed, context=context, keks=KEKS.__getitem__)


@given(st.binary(max_size=2000))
def test_a_sealed_value_opens_to_the_same_bytes(value: bytes) -> None:
    """Whatever the bytes, sealing and opening gives them back."""
    assert opened(seal(value, context=CONTEXT, kek=KEKS[1], number=1)) == value


@given(st.binary(max_size=64), st.data())
def test_any_flipped_bit_is_refused(value: bytes, data: st.DataObject) -> None:
    """No single bit of a sealed value can change without being noticed."""
    sealed = bytearray(seal(value, context=CONTEXT, kek=KEKS[1], number=1))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises((CannotOpen, KeyError)):
        opened(bytes(sealed))


@given(st.binary(max_size=64), st.data())
def test_a_sealed_value_that_is_cut_short_is_refused(value: bytes, data: st.DataObject) -> None:
    """A shortened value does not open, wherever it was cut."""
    sealed = seal(value, context=CONTEXT, kek=KEKS[1], number=1)
    with pytest.raises(CannotOpen):
        opened(sealed[: data.draw(st.integers(0, len(sealed) - 1))])


@given(st.lists(st.text(max_size=8), max_size=4), st.lists(st.text(max_size=8), max_size=4))
def test_different_places_have_different_contexts(one: list[str], other: list[str]) -> None:
    """No two lists of parts give the same context, so a row cannot pass for another."""
    assert (encode_context(*one) == encode_context(*other)) == (one == other)


def test_a_value_does_not_open_in_another_place() -> None:
    """A value of version 1 that is put where version 2 belongs is refused."""
    sealed = seal(b"value", context=CONTEXT, kek=KEKS[1], number=1)
    with pytest.raises(CannotOpen):
        opened(sealed, encode_context("team", "secret", "2"))


@pytest.mark.parametrize("write_id", ["another write", "", None])
def test_a_value_opens_only_under_the_write_id_that_it_was_sealed_with(write_id: str | None) -> None:
    """A version number that is used again has another write id; a value of format 1 had none."""
    place = ("team", "secret", "name", 3)
    sealed = seal(b"value", context=version_context(*place, "a write"), kek=KEKS[1], number=1)
    assert opened(sealed, version_context(*place, "a write")) == b"value"
    with pytest.raises(CannotOpen):
        opened(sealed, version_context(*place, write_id))
    with pytest.raises(CannotOpen):  # the format byte is sealed in, too
        opened(bytes([1]) + sealed[1:], version_context(*place, "a write"))


places = st.tuples(
    st.text(max_size=3),
    st.text(max_size=3),
    st.text(max_size=3),
    st.integers(1, 12),
    st.none() | st.text(max_size=3),
)


@given(places, places)
@example(("t", "s", "n", 1, None), ("t", "s", "n", 1, ""))
def test_different_versions_have_different_contexts(one: Any, other: Any) -> None:
    """Team, secret, name, number and write id are all part of it."""
    assert (version_context(*one) == version_context(*other)) == (one == other)


def test_equal_values_look_different_sealed() -> None:
    """Each sealing has a key of its own, so that equal values cannot be recognised."""
    assert len({seal(b"same", context=CONTEXT, kek=KEKS[1], number=1)[5:] for _ in range(20)}) == 20


def test_rewrapping_changes_the_wrapping_key_and_not_the_value() -> None:
    """After a rewrap the value names the new key and opens with it alone."""
    sealed = seal(b"value", context=CONTEXT, kek=KEKS[1], number=1)
    again = rewrap(sealed, context=CONTEXT, keks=KEKS.__getitem__, kek=KEKS[2], number=2)
    assert kek_number(again) == 2
    assert open_sealed(again, context=CONTEXT, keks={2: KEKS[2]}.__getitem__) == b"value"


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_values_sealed_by_earlier_releases_open(path: Path) -> None:
    """The files in tests/vectors were sealed once and for all; each of their values opens."""
    vectors = json.loads(path.read_text())
    keks = {int(number): AESGCM(bytes.fromhex(key)) for number, key in vectors["keks"].items()}
    for vector in vectors["sealed"]:
        value = open_sealed(
            bytes.fromhex(vector["sealed"]), context=encode_context(*vector["context"]), keks=keks.__getitem__
        )
        assert value == bytes.fromhex(vector["value"])


def test_there_are_vectors_of_this_format() -> None:
    """An empty folder of vectors would make the test above pass without a look."""
    assert {"sealed-1", f"sealed-{FORMAT}"} <= {path.stem for path in VECTORS}
