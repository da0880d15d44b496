"""JSON Pointers lead to just the value that they name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gusset.errors import UsageError
from gusset.vault.services.json_pointer import MISSING, check_pointer, look_up

KEYS = st.text(st.sampled_from("ab~/01-. é"), max_size=4)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


def paths(document: Any) -> list[tuple[list[str | int], Any]]:
    """Every value in a document, with the keys and indexes that lead to it."""
    found: list[tuple[list[str | int], Any]] = [([], document)]
    if isinstance(document, dict):
        inner = list(document.items())
    else:
        inner = list(enumerate(document)) if isinstance(document, list) else []
    for key, value in inner:
        found += [([key, *rest], each) for rest, each in paths(value)]
    return found


def pointer_to(path: list[str | int]) -> str:
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in path)


@given(DOCUMENTS)
def test_every_value_is_found_by_its_own_pointer(document: Any) -> None:
    for path, value in paths(document):
        pointer = pointer_to(path)
        check_pointer(pointer)
        assert look_up(document, pointer) is value


@given(DOCUMENTS, st.lists(KEYS, max_size=4))
def test_any_other_pointer_leads_to_nothing(document: Any, keys: list[str]) -> None:
    """What exists is found, all else is missing: never an error, and never another value."""
    pointer = pointer_to(list(keys))
    known = {pointer_to(path): value for path, value in paths(document)}
    assert look_up(document, pointer) is known.get(pointer, MISSING)


@given(st.text(st.sampled_from("a/~012"), max_size=6))
def test_a_text_is_a_pointer_or_refused(text: str) -> None:
    """It is empty or begins with '/', and each '~' is followed by 0 or 1 (RFC 6901, section 3)."""
    valid = (text == "" or text.startswith("/")) and "~" not in text.replace("~0", "").replace("~1", "")
    if valid:
        check_pointer(text)
    else:
        with pytest.raises(UsageError):
            check_pointer(text)


@pytest.mark.parametrize(
    "pointer", ["/list/01", "/list/-", "/list/-1", "/list/+0", "/list/\u0660", "/list/2", "/text/0"]
)
def test_only_the_plain_index_of_an_element_finds_it(pointer: str) -> None:
    assert look_up({"list": ["a", "b"], "text": "ab"}, pointer) is MISSING
