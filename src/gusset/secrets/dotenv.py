"""A parser of `.env` files that keeps the exact bytes of values.

`NAME=value`, one per line, with or without `export`. Values are bare (without
surrounding white space and a trailing ` # comment`), 'single-quoted' (everything
is literal) or "double-quoted" (with backslash escapes). Quoted values may span
lines. Nothing is interpolated: `$` is an ordinary character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gusset.errors import CredentialAsName, InvalidName, InvalidValue, UsageError
from gusset.secrets.name import check_name
from gusset.secrets.value import SecretValue, check_length

_BLANK = re.compile(rb"[ \t]*(?:#[^\n]*)?\r?(?:\n|\Z)")
_KEY = re.compile(rb"[ \t]*(?:export[ \t]+)?([^\s=#]*)[ \t]*=")
_SINGLE = re.compile(rb"[ \t]*'([^']*)'")
_DOUBLE = re.compile(rb'[ \t]*"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
_OPEN_QUOTE = re.compile(rb"[ \t]*['\"]")
_COMMENT = re.compile(rb"(?<![ \t])[ \t]+#.*", re.DOTALL)
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_SPECIAL = re.compile(rb'[\\"$`]')  # special within double quotes, for a shell as for `_ESCAPES`
_SHELL_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_ESCAPES = {
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
    b"b": b"\b",
    b"f": b"\f",
    b"v": b"\v",
    b"a": b"\a",
    **{char: char for char in (b"\\", b'"', b"'", b"$", b"`")},
}


@dataclass(frozen=True, slots=True)
class DotenvEntry:
    """One `NAME=value` of a file; `line` is its first line, counted from 1."""

    name: str
    value: SecretValue
    line: int


def parse_dotenv(data: bytes, *, file: str = ".env") -> list[DotenvEntry]:
    """The entries of a file in their order.

    Raises:
        UsageError: the file is UTF-16, or a line cannot be parsed or sets a name again. The message
            starts with `file` and the line, and contains nothing of the file except a repeated name.
        InvalidName, InvalidValue: likewise, for an invalid name or a value that is too long.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:2]:
        raise UsageError(
            f"{file} is UTF-16 text",
            hint="save it as UTF-8, in PowerShell with: -Encoding utf8NoBOM",
        )
    first: dict[str, int] = {}
    entries = []
    for entry in _entries(data.removeprefix(b"\xef\xbb\xbf"), file):
        if entry.name in first:
            raise UsageError(
                f"{file}:{entry.line}: {entry.name} is set a second time",
                hint=f"keep this one or the one on line {first[entry.name]}",
            )
        first[entry.name] = entry.line
        entries.append(entry)
    return entries


def dotenv_line(name: str, value: SecretValue) -> bytes:
    """`NAME='value'` as a line that `parse_dotenv` and a POSIX shell read back exactly.

    Raises:
        InvalidName: a shell has no variable of that name.
        InvalidValue: the value is binary: not UTF-8, or it has a NUL byte.
    """
    if not _SHELL_NAME.fullmatch(name):
        raise InvalidName(
            f"{name} cannot be the name of a variable",
            hint=f"leave it out, and pass it as a file: `gusset exec --secret {name} -- COMMAND`",
        )
    data = value.reveal()
    if b"\0" in data or not _is_text(data):
        raise InvalidValue(
            f"the value of {name} is binary, which an .env file cannot contain",
            hint=f"leave it out, and pass it as a file: `gusset exec --secret {name} -- COMMAND`",
        )
    if b"'" not in data:
        return name.encode() + b"='" + data + b"'\n"
    return name.encode() + b'="' + _SPECIAL.sub(rb"\\\g<0>", data) + b'"\n'


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _entries(data: bytes, file: str) -> Iterator[DotenvEntry]:
    offset, counted, line = 0, 0, 1
    while offset < len(data):
        line += data.count(b"\n", counted, offset)
        counted = offset
        if blank := _BLANK.match(data, offset):
            offset = blank.end()
            continue
        where = f"{file}:{line}"
        key = _KEY.match(data, offset)
        if key is None:
            raise UsageError(
                f"{where}: this line is not NAME=value",
                hint="quote a value of several lines, and start a comment with '#'",
            )
        name = _name(key[1], where)
        value, offset = _value(data, key.end(), where)
        yield DotenvEntry(name, SecretValue(value), line)


def _name(raw: bytes, where: str) -> str:
    try:
        return check_name(raw.decode("ascii", "replace"))
    except CredentialAsName as wrong:
        raise CredentialAsName(f"{where}: {wrong.message}", hint=wrong.hint) from None
    except InvalidName as wrong:  # its message shows characters, which may be part of a value here
        raise InvalidName(
            f"{where}: the text before '=' is not a valid name for a secret", hint=wrong.hint
        ) from None


def _value(data: bytes, start: int, where: str) -> tuple[bytes, int]:
    """The value that starts at `start`, and the offset of the next line."""
    if quoted := _SINGLE.match(data, start):
        value = quoted[1]
    elif quoted := _DOUBLE.match(data, start):
        value = _ESCAPE.sub(lambda match: _ESCAPES.get(match[1], match[0]), quoted[1])
    elif _OPEN_QUOTE.match(data, start):
        raise UsageError(f"{where}: the quote that starts here is not closed")
    else:
        newline = data.find(b"\n", start)
        stop = len(data) if newline < 0 else newline
        return _checked(_COMMENT.sub(b"", data[start:stop]).strip(), where), stop + 1
    end = _BLANK.match(data, quoted.end())
    if end is None:
        raise UsageError(
            f"{where}: there is more text after the closing quote",
            hint="""write a ' within "double quotes", and a " within them as \\\"""",
        )
    return _checked(value, where), end.end()


def _checked(value: bytes, where: str) -> bytes:
    try:
        return check_length(value)
    except InvalidValue as wrong:
        raise InvalidValue(f"{where}: {wrong.message}", hint=wrong.hint) from None
