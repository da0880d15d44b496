"""The forms in which a secret's value shows up in output: as it is, encoded, escaped, quoted, in parts.

Parts are what programs take values apart into: the value without surrounding
white space, its lines, and the strings in a value that is JSON. A form shorter
than `MIN_BYTES` is left out, since it would match innocent text.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator
from functools import cache
from urllib.parse import unquote_to_bytes

MIN_BYTES = 8

_ARMOUR = re.compile(rb"\s*-{4,5}(BEGIN|END)[ A-Z0-9]*-{4,5}\s*")
_TELLING = re.compile(rb"[A-Za-z0-9\x80-\xff]")
_URL_ALWAYS_SAFE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~"
_URL_SAFE = ("", "/", "!'()*", "/:;,?@&=+$!*'()#")  # quote(), its default, encodeURIComponent, encodeURI
_URLSAFE_ALPHABET = bytes.maketrans(b"+/", b"-_")
_PASSWORD = re.compile(rb"[a-z]://[^\s:/@]{0,256}:([^\s/@]+)@")
_DOUBLE_QUOTED = re.compile(rb'(["\\$`])')
_BACKSLASHED = re.compile(rb"([^A-Za-z0-9_@%+=:,./-])")


def maskable(value: bytes) -> bool:
    """Whether `value` is long enough, and more than white space, so that masking it spares innocent text."""
    return len(value) >= MIN_BYTES and not value.isspace()


def forms(value: bytes) -> set[bytes]:
    """All forms of `value` that have at least `MIN_BYTES` bytes; none when it is not `maskable` itself."""
    if not maskable(value):
        return set()
    found: set[bytes] = set()
    for part in filter(maskable, {value, value.strip(), *_passwords(value), *_json_strings(value)}):
        found.update(_base64(part), _hex(part), _url(part), _escaped(part), _quoted(part))
        found.update(_lines(part))
    return {form for form in found if maskable(form) and not _ARMOUR.fullmatch(form)}


def _base64(value: bytes) -> Iterator[bytes]:
    """Whole, padded and not, and the middle that is the same wherever in a longer text it stands."""
    whole = b64encode(value)
    found = [whole, whole.rstrip(b"=")]
    for shift in range(3):
        first = -(-shift * 8 // 6)  # the characters before it hold bits of the neighbour
        last = (shift + len(value)) * 8 // 6
        found.append(b64encode(bytes(shift) + value)[first:last])
    for form in found:
        yield form
        yield form.translate(_URLSAFE_ALPHABET)


def _hex(value: bytes) -> Iterator[bytes]:
    digits = value.hex()
    yield digits.encode()
    yield digits.upper().encode()


def _url(value: bytes) -> Iterator[bytes]:
    for safe in _URL_SAFE:
        for digits in ("%%%02X", "%%%02x"):
            quoted = b"".join(map(_quoting(safe, digits).__getitem__, value))
            yield quoted
            yield quoted.replace(b"%20", b"+")


@cache
def _quoting(safe: str, digits: str) -> tuple[bytes, ...]:
    """What stands for each byte in a URL."""
    bare = frozenset((_URL_ALWAYS_SAFE + safe).encode())
    return tuple(bytes([byte]) if byte in bare else (digits % byte).encode() for byte in range(256))


def _escaped(value: bytes) -> Iterator[bytes]:
    """As in JSON and as in Python's `repr`, without the quotes around."""
    yield repr(b'"' + value)[3:-1].encode()  # the " makes repr quote with ' and escape every '
    if b'"' not in value:
        yield repr(b"'" + value)[3:-1].encode()  # the ' makes it quote with ", so that each ' stays bare
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
    """As in a shell: within single quotes (two ways), within double quotes, with backslashes."""
    yield value
    yield value.replace(b"'", b"'\"'\"'")
    yield value.replace(b"'", rb"'\''")
    yield _DOUBLE_QUOTED.sub(rb"\\\1", value)
    yield _BACKSLASHED.sub(rb"\\\1", value)


def _lines(value: bytes) -> Iterator[bytes]:
    for line in re.split(rb"[\r\n]+", value):
        if _TELLING.search(line):  # else a mere rule or blank line, as in any text
            yield line
            yield line.strip()


def _passwords(value: bytes) -> Iterator[bytes]:
    """The passwords in URLs, as in a database's address: clients take them out and decode them."""
    for match in _PASSWORD.finditer(value):
        yield match[1]
        yield unquote_to_bytes(match[1])


def _json_strings(value: bytes) -> Iterator[bytes]:
    """The strings in a JSON object or array; never its keys."""
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
