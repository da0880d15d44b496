"""The patterns by which a secret's value is found in output: as it is, encoded, escaped, quoted, in parts.

Parts are what programs split values into: the value without surrounding white
space, its lines, the passwords in URLs, and the strings in a value that is JSON.
A pattern shorter than `MIN_BYTES` is left out, since it would match other text.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator
from functools import cache
from urllib.parse import unquote_to_bytes

MIN_BYTES = 8

_PEM_LINE = re.compile(rb"\s*-{4,5}(BEGIN|END)[ A-Z0-9]*-{4,5}\s*")
_LETTER_OR_DIGIT = re.compile(rb"[A-Za-z0-9\x80-\xff]")
_URL_ALWAYS_SAFE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~"
_URL_SAFE = ("", "/", "!'()*", "/:;,?@&=+$!*'()#")  # quote(), its default, encodeURIComponent, encodeURI
_URLSAFE_ALPHABET = bytes.maketrans(b"+/", b"-_")
_PASSWORD = re.compile(rb"[a-z]://[^\s:/@]{0,256}:([^\s/@]+)@")
_NEEDS_BACKSLASH_IN_QUOTES = re.compile(rb'(["\\$`])')
_NEEDS_BACKSLASH = re.compile(rb"([^A-Za-z0-9_@%+=:,./-])")


def maskable(value: bytes) -> bool:
    """Whether masking `value` leaves other text alone: it is long enough, and not only white space."""
    return len(value) >= MIN_BYTES and not value.isspace()


def patterns_of(value: bytes) -> set[bytes]:
    """All patterns of `value`, each at least `MIN_BYTES` long; none when the value is not `maskable`."""
    if not maskable(value):
        return set()
    found: set[bytes] = set()
    for part in filter(maskable, {value, value.strip(), *_passwords(value), *_json_strings(value)}):
        found.update(_base64(part), _hex(part), _url(part), _escaped(part), _quoted(part))
        found.update(_lines(part))
    return {pattern for pattern in found if maskable(pattern) and not _PEM_LINE.fullmatch(pattern)}


def _base64(value: bytes) -> Iterator[bytes]:
    """The whole value, with and without padding, and the part that stays the same within a longer text."""
    whole = b64encode(value)
    found = [whole, whole.rstrip(b"=")]
    for shift in range(3):
        first = -(-shift * 8 // 6)  # the characters before it also encode bits of the byte before
        last = (shift + len(value)) * 8 // 6
        found.append(b64encode(bytes(shift) + value)[first:last])
    for pattern in found:
        yield pattern
        yield pattern.translate(_URLSAFE_ALPHABET)


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


def _escaped(value: bytes) -> Iterator[bytes]:
    """As JSON and Python's `repr` escape it, without the surrounding quotes."""
    yield repr(b'"' + value)[3:-1].encode()  # the " makes repr use ' as its quote, and escape every '
    if b'"' not in value:
        yield repr(b"'" + value)[3:-1].encode()  # the ' makes it use ", so that every ' stays as it is
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return
    yield repr('"' + text)[2:-1].encode()
    if '"' not in text:
        yield repr("'" + text)[2:-1].encode()
    for ascii_only in (True, False):
        escaped = json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode()
        yield escaped
        yield escaped.replace(b"/", rb"\/")
        yield re.sub(rb"\\u[0-9a-f]{4}", lambda match: b"\\u" + match[0][2:].upper(), escaped)


def _quoted(value: bytes) -> Iterator[bytes]:
    """As quoted for a shell: in single quotes (two ways), in double quotes, or by backslashes."""
    yield value
    yield value.replace(b"'", b"'\"'\"'")
    yield value.replace(b"'", rb"'\''")
    yield _NEEDS_BACKSLASH_IN_QUOTES.sub(rb"\\\1", value)
    yield _NEEDS_BACKSLASH.sub(rb"\\\1", value)


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
        elif isinstance(item, str) and len(item) >= MIN_BYTES:
            yield item.encode("utf-8", "surrogatepass")
