"""`SecretValue` never shows itself; `SecretText` is text in every way but its repr."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle

import httpx
import orjson
import pytest

from gusset.errors import InvalidValue
from gusset.secrets.value import MAX_BYTES, SecretText, SecretValue, check_length

WORD = "s3cret-w\u00f6rd"
TEXT = SecretText(WORD)
VALUE = SecretValue(WORD.encode())


@pytest.mark.parametrize(
    "shown",
    [
        repr(VALUE),
        str(VALUE),
        f"{VALUE}",
        f"{VALUE!r:>40}",
        f"{VALUE:>40}",
        "%s %r" % (VALUE, VALUE),  # noqa: UP031
        repr([VALUE]),
        repr({VALUE: VALUE}),
        ascii(VALUE),
    ],
)
def test_a_value_never_shows_itself(shown):
    """Every way of printing a SecretValue gives a mask."""
    assert "s3cret" not in shown
    assert "***" in shown


def test_only_reveal_returns_the_bytes():
    """The bytes are exact; serialisers and pickle refuse the rest."""
    assert VALUE.reveal() == WORD.encode()
    assert bytes(SecretValue(b"\x00\xff\n").reveal()) == b"\x00\xff\n"
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(VALUE)
    for dump in (json.dumps, orjson.dumps, bytes):
        with pytest.raises(TypeError) as caught:
            dump(VALUE)
        assert "s3cret" not in str(caught.value)
    assert not hasattr(VALUE, "__dict__")


def test_values_compare_by_their_bytes():
    """Two equal values are one in a set; a value never equals plain bytes."""
    assert SecretValue(WORD.encode()) == VALUE
    assert len({VALUE, SecretValue(WORD.encode()), SecretValue(b"other")}) == 2
    assert WORD.encode() != VALUE
    assert len(VALUE) == len(WORD.encode())


def test_an_empty_value_is_a_value():
    """Nothing that asks `if value` takes an empty secret for a missing one."""
    assert SecretValue(b"")
    assert len(SecretValue(b"")) == 0


def test_copying_a_value_keeps_it():
    """Copies of structures that hold values work and hold the same value."""
    assert copy.deepcopy({"a": VALUE})["a"] is VALUE
    assert copy.copy(VALUE) is VALUE


def test_only_the_repr_of_text_is_masked():
    """Containers, !r and %r show a mask."""
    for shown in (repr(TEXT), f"{TEXT!r}", "%r" % (TEXT,), repr({"a": [TEXT]}), ascii(TEXT)):  # noqa: UP031
        assert "s3cret" not in shown


def test_text_is_the_exact_text_everywhere_else():
    """It equals, hashes, formats, joins and encodes as the plain text does."""
    assert TEXT == WORD
    assert {TEXT: 1}[WORD] == 1
    assert f"{TEXT}|{TEXT:>12}|{TEXT!s}" == f"{WORD}|{WORD:>12}|{WORD!s}"
    assert "%s" % TEXT == "{}".format(TEXT) == "".join([TEXT]) == str(TEXT) == WORD  # noqa: UP031, UP032
    assert TEXT.encode() == WORD.encode()
    assert os.fsencode(TEXT) == os.fsencode(WORD)


@pytest.mark.parametrize(
    "made", [TEXT.strip(), TEXT[1:], TEXT[:], TEXT + "", f"{TEXT}", str(TEXT), TEXT.lower()]
)
def test_results_of_text_methods_are_plain_str(made):
    """Derived texts are ordinary ones, with nothing to surprise a library."""
    assert type(made) is str


def test_text_serialises_as_text():
    """JSON of both libraries, HTTP headers, queries and forms carry the exact text."""
    assert json.loads(json.dumps({"k": TEXT, TEXT: 1})) == {"k": WORD, WORD: 1}
    assert orjson.loads(orjson.dumps({"k": TEXT})) == {"k": WORD}
    token = SecretText("hf_token")
    request = httpx.Request(
        "POST", "http://test", headers={"Authorization": token}, params={"t": token}, data={"f": token}
    )
    assert request.headers["authorization"] == "hf_token"
    assert str(request.url) == "http://test?t=hf_token"
    assert request.read() == b"f=hf_token"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_text_pickles(protocol):
    """Model libraries hand it to processes that they spawn; there its repr is masked too."""
    other = pickle.loads(pickle.dumps(TEXT, protocol))
    assert other == WORD
    assert type(other) is type(copy.copy(TEXT)) is type(copy.deepcopy(TEXT)) is SecretText


def test_logging_arguments_are_masked(caplog):
    """A dict of values given to a log call shows masks."""
    logging.getLogger("test").warning("config %s %r", {"token": TEXT}, VALUE)
    assert "s3cret" not in caplog.text


def test_a_value_longer_than_the_limit_is_refused_without_being_shown():
    """The longest value passes; one byte more does not."""
    assert check_length(b"x" * MAX_BYTES) == b"x" * MAX_BYTES
    with pytest.raises(InvalidValue, match=r"more than 65,536 bytes") as caught:
        check_length(b"x" * (MAX_BYTES + 1))
    assert "xx" not in str(caught.value)
