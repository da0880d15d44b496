"""`.env` files are read byte for byte, and errors never repeat them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gusset.errors import InvalidName, InvalidValue, UsageError
from gusset.secrets.dotenv import parse_dotenv
from gusset.secrets.value import MAX_BYTES


def parsed(data: bytes) -> dict[str, bytes]:
    return {entry.name: entry.value.reveal() for entry in parse_dotenv(data)}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"A=plain", b"plain"),
        (b"A=", b""),
        (b"A=''", b""),
        (b"  export A = spaced out  ", b"spaced out"),
        (b"export\tA=x", b"x"),
        (b"A=with#hash", b"with#hash"),
        (b"A=#hash", b"#hash"),
        (b"A=value # comment", b"value"),
        (b"A= # only a comment", b""),
        (b"A='it # is' # comment", b"it # is"),
        (rb"A='back\slash\n'", rb"back\slash\n"),
        (rb'A="a\nb\tc\\d\"e\$f\q"', b'a\nb\tc\\d"e$f\\q'),
        (b"A=$HOME/${B}", b"$HOME/${B}"),
        (b'A="$HOME"', b"$HOME"),
        (b"A=base64==", b"base64=="),
        (b'A=it"s', b'it"s'),
        (b"A=\xff\xfe", b"\xff\xfe"),
        (b"A='one\ntwo\n'", b"one\ntwo\n"),
        (b'A="one\r\ntwo"', b"one\r\ntwo"),
        (b"a.b-c_1=x", None),
    ],
)
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n# end\n"])
def test_values_are_parsed_exactly(line, value, end):
    """Bare, quoted, escaped, of several lines; nothing is interpolated; with any line ending."""
    assert parsed(line + end) == ({"a.b-c_1": b"x"} if value is None else {"A": value})


def test_entries_have_the_line_where_they_start():
    """They come in order; comments and blank lines are skipped."""
    data = b'\xef\xbb\xbf# head\r\n\r\nA=1\n  # more\nB="x\ny"\n\t\nexport C=3'
    assert [(entry.name, entry.value.reveal(), entry.line) for entry in parse_dotenv(data)] == [
        ("A", b"1", 3),
        ("B", b"x\ny", 5),
        ("C", b"3", 8),
    ]
    assert parse_dotenv(b"") == []


@pytest.mark.parametrize(
    ("data", "error", "line"),
    [
        (b"A=1\ns3cret", UsageError, 2),
        (b"\n\nA='s3cret", UsageError, 3),
        (b'A="s3cret\nB=2\n', UsageError, 1),
        (b"A='s3cret's3cret\n", UsageError, 1),
        (b'A="s3cret" s3cret\n', UsageError, 1),
        (b"A=s3cret\nB=2\nA=s3cret2\n", UsageError, 3),
        (b"s3cret/+s3cret==\n", InvalidName, 1),
        (b"=s3cret\n", InvalidName, 1),
        (b"..s3cret=1\n", InvalidName, 1),
        (b"A=" + b"s3cret" * MAX_BYTES, InvalidValue, 1),
    ],
)
def test_errors_give_the_line_and_never_the_text(data, error, line):
    """Each fault names the file and the line, and repeats nothing of what is there."""
    with pytest.raises(error) as caught:
        parse_dotenv(data, file="my.env")
    assert str(caught.value).startswith(f"my.env:{line}: ")
    assert "s3cret" not in f"{caught.value} {caught.value.hint}"
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_refused_with_or_without_a_byte_order_mark(encoding):
    with pytest.raises(UsageError, match=r"^\.env is UTF-16 text"):
        parse_dotenv("TOKEN=s3cret\n".encode(encoding))


def test_a_repeated_name_is_an_error_with_both_lines():
    """The message names the line, and the hint the first one."""
    with pytest.raises(UsageError, match=r"\.env:3: A is set a second time") as caught:
        parse_dotenv(b"A=1\n\nA=1\n")
    assert "line 1" in caught.value.hint


def test_entries_print_no_values():
    """An entry in a log line shows its name alone."""
    assert "s3cret" not in repr(parse_dotenv(b"A=s3cret"))


def written(value: bytes) -> bytes:
    return b'"' + value.replace(b"\\", rb"\\").replace(b'"', rb"\"") + b'"'


@given(
    st.dictionaries(st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True), st.binary(max_size=60), max_size=5)
)
@example({"A": b"\0=\0"})
def test_what_is_written_quoted_is_read_back(values):
    """Any bytes at all survive a round trip in double quotes."""
    data = b"".join(b"%s=%s\n" % (name.encode(), written(value)) for name, value in values.items())
    assert parsed(data) == values


@given(st.binary(max_size=80))
@example(b"\xff\xfea\0")
def test_any_bytes_parse_or_are_refused(data):
    """Whatever the file holds, the outcome is entries or one of gusset's errors."""
    try:
        parse_dotenv(data)
    except UsageError as error:
        assert str(error).startswith((".env:", ".env is UTF-16 text"))
