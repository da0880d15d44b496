"""The rule for names, and how spellings fold together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gusset.errors import InvalidName
from gusset.secrets.name import check_name, fold_name, spelling_clashes


@pytest.mark.parametrize(
    "name", ["a", "hf_access_token", "A-Z.0_9", ".hidden", "a..b", "-", "_", "x" * 253, "123"]
)
def test_names(name):
    """These are names, and come back unchanged."""
    assert check_name(name) == name


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        ".",
        "..",
        "..data",
        "...",
        "a/b",
        "../a",
        "a b",
        "a\n",
        "\na",
        "a\x00",
        "\u00e9",
        "\uff41",
        "x" * 254,
        "a\\b",
        "a:b",
    ],
)
def test_what_is_no_name(wrong):
    """The rule holds for the whole text: a trailing newline, a path, a letter beyond ASCII."""
    with pytest.raises(InvalidName):
        check_name(wrong)


@pytest.mark.parametrize("wrong", [None, 1, b"name", ["name"]])
def test_a_name_is_a_text(wrong):
    """Anything but a text is refused, by its type."""
    with pytest.raises(InvalidName, match=type(wrong).__name__):
        check_name(wrong)


def test_a_wrong_name_is_not_repeated():
    """A value typed in a name's place shows no more than which kinds of characters were wrong."""
    with pytest.raises(InvalidName) as caught:
        check_name("hunter2 is/my password\n")
    assert "hunter2" not in f"{caught.value} {caught.value.hint} {caught.value!r}"
    assert "a space" in str(caught.value)


@given(st.text(min_size=1, max_size=260))
def test_what_passes_never_leaves_its_folder(text):
    """Whatever passes the check is one plain component of a path, in ASCII."""
    try:
        name = check_name(text)
    except InvalidName:
        return
    assert name.isascii()
    assert "/" not in name
    assert not name.startswith("..")
    assert name != "."


def test_folding_keeps_runs():
    """`-`, `_` and `.` are one character, one for one."""
    assert fold_name("hf-access.token") == fold_name("hf_access_token") == "hf_access_token"
    assert fold_name("a--b") != fold_name("a-b")
    assert fold_name("A") != fold_name("a")


def test_spelling_clashes():
    """Each other spelling is paired with the one seen first."""
    assert spelling_clashes(["a-b", "c", "a_b", "a-b", "a.b"]) == [("a-b", "a_b"), ("a-b", "a.b")]
    assert spelling_clashes(["a", "b"]) == []
