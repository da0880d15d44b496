"""The patterns by which a secret's value is found in output: as it is, encoded, escaped, quoted, in parts.

Parts are what programs split values into: the value without surrounding white
space, its lines, the passwords in URLs, and the strings in a value that is JSON.
A pattern shorter than `MIN_MASKED` is left out, since it would match other text.
"""

from __future__ import annotations

import contextlib
import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Final
from urllib.parse import unquote_to_bytes

from gusset.secrets.fragments import base64_parts
from gusset.secrets.value import MIN_MASKED

LONG: Final = 1_024  # bytes
_MAX_PERIOD: Final = 256  # bytes
_FOLDS = (76, 64)  # columns: MIME, and PEM
_MIN_FOLDED = 16  # bytes of a line by itself: the last line of many files is the same
_MAX_ESCAPED_TWICE = 8_192  # bytes: the patterns of longer values would take too much memory
_NEVER_ESCAPED = re.compile(rb"[A-Za-z0-9_.:=+,@-]*")
_HTML_ESCAPES = {
    b"&": rb"\u0026",
    b"<": rb"\u003c",
    b">": rb"\u003e",
    "\u2028".encode(): rb"\u2028",
    "\u2029".encode(): rb"\u2029",
}
_PEM_LINE = re.compile(rb"\s*-{4,5}(BEGIN|END)[ A-Z0-9]*-{4,5}\s*")
_LETTER_OR_DIGIT = re.compile(rb"[A-Za-z0-9\x80-\xff]")
_URL_ALWAYS_SAFE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~"
# quote(), its default, encodeURIComponent, encodeURI, a redirect of Starlette
_URL_SAFE = ("", "/", "!'()*", "/:;,?@&=+$!*'()#", "/:;,?@&=+$!*'()#[]%")
_URLSAFE_ALPHABET = bytes.maketrans(b"+/", b"-_")
_PASSWORD = re.compile(rb"[a-z]://[^\s:/@]{0,256}:([^\s/@]+)@")
_NEEDS_BACKSLASH_IN_QUOTES = re.compile(rb'(["\\$`])')
_NEEDS_ESCAPE_IN_COOKIE = re.compile(r"[\x00-\x1f\",;\\\x7f-\xff]")
_NEEDS_BACKSLASH = re.compile(rb"([^A-Za-z0-9_@%+=:,./-])")


def maskable(value: bytes) -> bool:
    """Whether masking `value` leaves other text alone: it is long enough, and not only white space."""
    return len(value) >= MIN_MASKED and not value.isspace()


def patterns_of(value: bytes) -> dict[bytes, str]:
    """All patterns of `value` with the form that each has, as in "base64"; none if it is not `maskable`.

    Each is at least `MIN_MASKED` long.
    """
    found: dict[bytes, str] = {}
    for part in parts_of(value):
        for form, encode in _ENCODERS.items():
            for pattern in encode(part):
                for piece in _without_repetition(pattern):
                    found.setdefault(piece, form)
    return {
        pattern: form
        for pattern, form in found.items()
        if maskable(pattern) and not _PEM_LINE.fullmatch(pattern)
    }


def parts_of(value: bytes) -> list[bytes]:
    """The value, and what programs extract from it; nothing if it is not `maskable`."""
    if not maskable(value):
        return []
    parts = dict.fromkeys((value, value.strip(), *_passwords(value), *_json_strings(value)))
    return [part for part in parts if maskable(part)]


def texts_of(value: bytes) -> list[bytes]:
    """The parts that may contain text that looks random: of JSON, its strings, without its keys."""
    return [part for part in parts_of(value) if not any(_json_strings(part))]


def repeated_bytes(pattern: bytes) -> int:
    """After how many bytes a pattern that repeats its beginning does so; 0 if it does not.

    Only patterns of `LONG` bytes can be such: see `_without_repetition`.
    """
    if len(pattern) < LONG:
        return 0
    period = pattern.find(pattern[: LONG // 2], 1, LONG // 2 + _MAX_PERIOD)
    return period if period > 0 and pattern[period:LONG] == pattern[: LONG - period] else 0


def _without_repetition(pattern: bytes) -> Iterator[bytes]:
    """The pattern, cut after the bytes that it repeats at its beginning.

    They would match at each of their repetitions in a long text, and each match
    would be compared up to its end: time would grow with the square of the length.
    Cut to `LONG` bytes, they match everywhere that the longer run did.
    """
    while len(pattern) > LONG and (period := repeated_bytes(pattern)):
        yield pattern[:LONG]
        end = period + common_length(pattern, period, pattern, 0)
        pattern = pattern[end - MIN_MASKED + 1 :]  # overlaps the run, so that one mask covers both
    yield pattern


def common_length(first: bytes, start: int, second: bytes, other: int) -> int:
    """How many bytes of `first` from `start` on equal those of `second` from `other` on."""
    size, low, step = min(len(first) - start, len(second) - other), 0, 64
    while low < size and _equal(first, start + low, second, other + low, min(step, size - low)):
        low = min(low + step, size)
        step *= 2
    high = min(low + step, size)  # they differ somewhere in these bytes
    while low < high:
        middle = (low + high + 1) // 2
        if _equal(first, start + low, second, other + low, middle - low):
            low = middle
        else:
            high = middle - 1
    return low


def _equal(first: bytes, start: int, second: bytes, other: int, length: int) -> bool:
    return first[start : start + length] == second[other : other + length]


def _base64(value: bytes) -> Iterator[bytes]:
    """The whole value, with and without padding, and the part that stays the same within a longer text."""
    whole = b64encode(value)
    for pattern in (whole, whole.rstrip(b"="), *base64_parts(value)):
        yield pattern
        yield pattern.translate(_URLSAFE_ALPHABET)


def _folded_base64(value: bytes) -> Iterator[bytes]:
    """As `base64 FILE` and `encodebytes` fold it, and PEM: together, and line by line."""
    first = 1 if value.startswith(b"-----BEGIN") else 0  # the same line for all keys of a kind
    for pattern in (b64encode(value), next(base64_parts(value))):
        for columns in _FOLDS:
            if len(pattern) > columns:
                lines = [pattern[start : start + columns] for start in range(0, len(pattern), columns)]
                yield b"\n".join(lines)
                yield b"\r\n".join(lines)
                yield from (line for line in lines[first:] if len(line) >= _MIN_FOLDED)


def _hex(value: bytes) -> Iterator[bytes]:
    digits = value.hex()
    yield digits.encode()
    yield digits.upper().encode()


def _url(value: bytes) -> Iterator[bytes]:
    for safe in _URL_SAFE:
        for digits in ("%%%02X", "%%%02x"):
            quoted = b"".join(map(_url_table(safe, digits).__getitem__, value))
            yield quoted
            yield quoted.replace(b"%20", b"+")


@cache
def _url_table(safe: str, digits: str) -> tuple[bytes, ...]:
    """The encoding of each byte in a URL."""
    bare = frozenset((_URL_ALWAYS_SAFE + safe).encode())
    return tuple(bytes([byte]) if byte in bare else (digits % byte).encode() for byte in range(256))


def _represented(value: bytes) -> Iterator[bytes]:
    """As Python's `repr` shows it, without the surrounding quotes."""
    if _NEVER_ESCAPED.fullmatch(value):
        return
    yield repr(b'"' + value)[3:-1].encode()  # the " makes repr use ' as its quote, and escape every '
    if b'"' not in value:
        yield repr(b"'" + value)[3:-1].encode()  # the ' makes it use ", so that every ' stays as it is
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return
    yield from _both_quotes(text, repr)
    if not text.isascii():  # `ascii`, an encoding that cannot express the text, and bytes of an older one
        yield from _both_quotes(text, ascii)
        yield text.encode("ascii", "backslashreplace")
        with contextlib.suppress(UnicodeEncodeError):
            yield text.encode("latin-1")


def _both_quotes(text: str, represent: Callable[[str], str]) -> Iterator[bytes]:
    yield represent('"' + text)[2:-1].encode()
    if '"' not in text:
        yield represent("'" + text)[2:-1].encode()


def _json(value: bytes) -> Iterator[bytes]:
    """As in JSON, without the surrounding quotes, and as in a label of Prometheus's text format."""
    if _NEVER_ESCAPED.fullmatch(value):
        return
    yield value.replace(b"\\", rb"\\").replace(b"\n", rb"\n").replace(b'"', rb"\"")
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return
    for ascii_only in (True, False):
        escaped = json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode()
        yield from _variants(escaped)
        yield from _variants(escaped.replace(b"\x7f", rb"\u007f"))
        for_html = escaped
        for character, escape in _HTML_ESCAPES.items():
            for_html = for_html.replace(character, escape)
        yield from _variants(for_html)
        yield from _variants(for_html.replace(b"'", rb"\u0027"))


def _variants(escaped: bytes) -> Iterator[bytes]:
    """JSON text with each escape that encoders write in several ways."""
    yield escaped
    yield escaped.replace(b"/", rb"\/")
    yield re.sub(rb"\\u[0-9a-f]{4}", lambda match: b"\\u" + match[0][2:].upper(), escaped)
    yield escaped.replace(rb"\b", rb"\u0008").replace(rb"\f", rb"\u000c")


def _escaped_twice(value: bytes) -> Iterator[bytes]:
    """JSON within JSON, and what `repr` shows within JSON or `repr`, as in a log of an error message."""
    if len(value) > _MAX_ESCAPED_TWICE:
        return
    for once in {*_represented(value), *_json(value)}:
        if once != value:
            yield from _json(once)
            yield from _represented(once)


def _quoted(value: bytes) -> Iterator[bytes]:
    """As quoted for a shell: in single quotes (two ways), in double quotes, or by backslashes."""
    yield value.replace(b"'", b"'\"'\"'")
    yield value.replace(b"'", rb"'\''")
    yield _NEEDS_BACKSLASH_IN_QUOTES.sub(rb"\\\1", value)
    yield _NEEDS_BACKSLASH.sub(rb"\\\1", value)


def _cookie(value: bytes) -> Iterator[bytes]:
    """As `http.cookies` quotes it, without the surrounding quotes."""
    with contextlib.suppress(UnicodeDecodeError):
        yield _NEEDS_ESCAPE_IN_COOKIE.sub(_cookie_escape, value.decode()).encode()


def _cookie_escape(match: re.Match[str]) -> str:
    return "\\" + match[0] if match[0] in '"\\' else f"\\{ord(match[0]):03o}"


def _lines(value: bytes) -> Iterator[bytes]:
    for line in re.split(rb"[\r\n]+", value):
        if _LETTER_OR_DIGIT.search(line):  # otherwise a blank line or a row of dashes, as in any text
            yield line
            yield line.strip()


def _passwords(value: bytes) -> Iterator[bytes]:
    """The passwords in URLs, such as a database's address: clients extract and decode them."""
    for match in _PASSWORD.finditer(value):
        yield match[1]
        yield unquote_to_bytes(match[1])


def _json_strings(value: bytes) -> Iterator[bytes]:
    """The strings in a JSON object or array, without its keys."""
    if not value.lstrip().startswith((b"{", b"[")):
        return
    try:
        rest = [json.loads(value, object_pairs_hook=lambda pairs: [item for _, item in pairs])]
    except (ValueError, RecursionError):
        return
    while rest:
        item = rest.pop()
        if isinstance(item, list):
            rest.extend(item)
        elif isinstance(item, str) and len(item) >= MIN_MASKED:
            yield item.encode("utf-8", "surrogatepass")


# In the order in which a pattern that has several forms is reported.
_ENCODERS: dict[str, Callable[[bytes], Iterable[bytes]]] = {
    "plain": lambda value: (value,),
    "line": _lines,
    "base64": _base64,
    "folded base64": _folded_base64,
    "hex": _hex,
    "URL": _url,
    "JSON": _json,
    "repr": _represented,
    "shell": _quoted,
    "cookie": _cookie,
    "escaped twice": _escaped_twice,
}

PART = "part"  # the form of a part of a value
FORMS = frozenset((*_ENCODERS, PART))
