"""HTTP/1.1 messages as bytes: what a head says, and how far a body goes. No I/O.

Strict where readers of HTTP disagree: a proxy and the server behind it must see
the same end of every message, or one client could slip a request into another's
connection. What is not plainly right is refused. What is right is passed on as
it came, byte for byte; a parser that tells names and values, but not where they
stood, could not do that.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_TEXT = rb"[\t\x20-\x7e\x80-\xff]*+"
_FIELD = _TOKEN + rb":" + _TEXT + rb"\r\n"
_REQUEST = re.compile(
    rb"(" + _TOKEN + rb") ([\x21-\x7e\x80-\xff]++) HTTP/1\.([01])\r\n(?:" + _FIELD + rb")*+\r\n"
)
_RESPONSE = re.compile(
    rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: " + _TEXT + rb")?+\r\n(?:" + _FIELD + rb")*+\r\n"
)
_FIELD_OR_END = re.compile(_FIELD + rb"|\r\n")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15}+)(?:[\t ]*+;" + _TEXT + rb")?+\r\n")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]++)([/?].*)?")
_BARE_NEWLINE = re.compile(rb"(?<!\r)\n")

# The fields that this hop looks at. The two spelt with `_` are the same as the true ones to a server that
# hands fields on as variables (CGI, WSGI), so they would be a second opinion on where the body ends.
_LOOKED_AT = re.compile(
    rb"\r\n(host|connection|content[-_]length|transfer[-_]encoding|upgrade|keep-alive|te|proxy-[a-z-]++)"
    rb":[\t ]*+([^\r]*+)",
    re.IGNORECASE,
)
_ANY = re.compile(rb"\r\n([^:\r]++):[^\r]*+")
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"te", b"upgrade"})
_KNOWN = _HOP_BY_HOP | {b"", b"close", b"proxy-connection"}  # what a usual `Connection` can name, or none
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"host"})
_CHUNK_HEAD = 1024  # bytes of one chunk's size and extensions
_TRAILERS = 64 * 1024  # bytes of all fields after a body


class Invalid(Exception):
    """Bytes that are not HTTP as it should be; `status` is what a client hears who sent them."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.text = text
        self.status = status


class Body(Protocol):
    """How far a body goes."""

    done: bool
    size: int  # bytes of the content so far

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """What may be passed on now, and what comes after the body.

        Raises:
            Invalid: what came is no such body.
        """


class Counted:
    """A body whose length is known."""

    __slots__ = ("_left", "done", "size")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = not length
        self.size = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        size = len(data)
        if size > self._left:
            data, rest = data[: self._left], data[self._left :]
            size = self._left
        else:
            rest = b""
        self._left -= size
        self.size += size
        self.done = not self._left
        return data, rest


class Unbounded:
    """A body that ends with its connection."""

    __slots__ = ("done", "size")

    def __init__(self) -> None:
        self.done = False
        self.size = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        self.size += len(data)
        return data, b""


class Chunked:
    """A body in chunks, with their extensions and trailers; `unwrap` passes on the content alone.

    A line of its framing is held until it is whole and found right: the server
    behind must not see the start of one that it may read otherwise.
    """

    __slots__ = ("_held", "_left", "_trailers", "_unwrap", "done", "size")

    def __init__(self, *, unwrap: bool = False) -> None:
        self._unwrap = unwrap
        self._held = b""
        self._left = 0  # bytes of the chunk under way, with the two that end it
        self._trailers = -1  # bytes of them, once they have begun
        self.done = False
        self.size = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        if self._held:
            data, self._held = self._held + data, b""
        at, end = 0, len(data)
        content: list[bytes] = []
        while at < end and not self.done:
            if self._left > 2:
                step = min(self._left - 2, end - at)
                if self._unwrap:
                    content.append(data[at : at + step])
                self._left -= step
                self.size += step
                at += step
            elif self._left:
                if not b"\r\n".startswith(data[at : at + 2]):
                    raise Invalid("a chunk does not end where it said")
                if end - at < 2:
                    break
                self._left = 0
                at += 2
            else:
                line = self._line_at(data, at)
                if not line:
                    break
                at += line
        self._held = b"" if self.done else data[at:]
        return b"".join(content) if self._unwrap else data[:at], data[at:] if self.done else b""

    def _line_at(self, data: bytes, at: int) -> int:
        """The length of the line of framing there, taken in; 0 when it is not whole yet."""
        in_trailers = self._trailers >= 0
        found = (_FIELD_OR_END if in_trailers else _CHUNK).match(data, at)
        if found is None:
            longest = _TRAILERS if in_trailers else _CHUNK_HEAD
            if data.find(b"\n", at) >= 0 or len(data) - at > longest:
                raise Invalid("a trailer is malformed" if in_trailers else "the size of a chunk is malformed")
            return 0
        length = found.end() - at
        if in_trailers:
            self._take_trailer(found[0])
        elif length > _CHUNK_HEAD:
            raise Invalid("the extensions of a chunk are too long")
        elif size := int(found[1], 16):
            self._left = size + 2
        else:
            self._trailers = 0
        return length

    def _take_trailer(self, line: bytes) -> None:
        self._trailers += len(line)
        if line == b"\r\n":
            self.done = True
        elif line.partition(b":")[0].lower().replace(b"_", b"-") in _FRAMING:
            raise Invalid("a trailer cannot say where the message ends")
        elif self._trailers > _TRAILERS:
            raise Invalid("the trailers are too long", 431)


@dataclass(slots=True)
class Request:
    """The head of a request: what is passed on of it, and what this hop has to know."""

    method: bytes
    target: bytes
    fields: bytes  # from the end of the request line to the empty line
    is_old: bool  # HTTP/1.0
    close: bool  # the client wants no further request on this connection
    upgrade: bool  # it asks for a websocket
    length: int | None
    body: Body


@dataclass(slots=True)
class Response:
    """The head of a response, likewise."""

    status: int
    head: bytes  # up to, and without, the empty line
    close: bool  # the server will take no further request on this connection
    body: Body

    @property
    def ends_with_connection(self) -> bool:
        return isinstance(self.body, Unbounded)


def end_of_head(data: bytes | bytearray, seen: int = 0) -> int:
    """Where the head that `data` begins with ends, or -1; `seen` bytes of it were looked at before.

    Raises:
        Invalid: it has lines that some would take for ended, and others not.
    """
    found = data.find(b"\r\n\r\n", max(0, seen - 3))
    if found >= 0:
        return found + 4
    if _BARE_NEWLINE.search(data, max(0, seen - 1)):
        raise Invalid("a line of the head does not end with CRLF")
    return -1


def read_request(head: bytes) -> Request:
    """Take in a request's head, whole.

    Raises:
        Invalid: it is malformed, or says in two ways where its body ends.
    """
    found = _REQUEST.fullmatch(head)
    if found is None:
        raise Invalid("Invalid HTTP request received.")
    method, target, minor = found.groups()
    if method == b"CONNECT":
        raise Invalid("CONNECT is for proxies that lead anywhere.", 405)
    is_old = minor == b"0"
    said = _Said(head, found.end(3))
    host = said.host
    if host is None and not is_old:
        raise Invalid("The request has no Host.")
    if target[0] != 0x2F:  # "/"
        target = _origin_form(method, target, host)
    length, is_chunked = said.framing()
    if is_chunked and is_old:
        raise Invalid("HTTP/1.0 has no chunks.")
    upgrade = said.is_websocket and not is_old
    if upgrade and (length or is_chunked):
        # Whoever speaks the other protocol at once would take the body for its own.
        raise Invalid("A request with a body cannot ask for another protocol.")
    dropped = said.hop_by_hop()
    kept = b""
    if upgrade:
        dropped -= {b"upgrade"}
        kept = b"\r\nConnection: Upgrade"
    fields = kept + said.without(dropped)
    if host is None:
        fields = b"\r\nHost: localhost" + fields
    body: Body = Chunked() if is_chunked else Counted(length or 0)
    close = is_old or b"close" in said.connection
    return Request(method, target, fields, is_old, close, upgrade, length, body)


def read_response(head: bytes, request: Request) -> Response:
    """Take in the head of a response to `request`, whole, interim ones too.

    Raises:
        Invalid: it is malformed, or says in two ways where its body ends.
    """
    found = _RESPONSE.fullmatch(head)
    if found is None:
        raise Invalid("its head is malformed")
    is_old = found[1] == b"0"
    status = int(found[2])
    said = _Said(head, head.index(b"\r\n"))
    length, is_chunked = said.framing()
    if is_chunked and is_old:
        raise Invalid("HTTP/1.0 has no chunks")
    dropped = said.hop_by_hop()
    if request.upgrade:  # 101, or a refusal that says what it would rather speak
        dropped -= {b"upgrade", b"connection"}
    if is_chunked and request.is_old:
        dropped |= {b"transfer-encoding"}
    body: Body
    if request.method == b"HEAD" or status < 200 or status in (204, 304):
        body = Counted(0)
    elif is_chunked:
        body = Chunked(unwrap=request.is_old)
    elif length is not None:
        body = Counted(length)
    else:
        body = Unbounded()
    wants = said.connection
    close = b"close" in wants or (is_old and b"keep-alive" not in wants) or isinstance(body, Unbounded)
    line = b"HTTP/1.1" + head[8 : said.start] if is_old else head[: said.start]
    return Response(status, line + said.without(dropped)[:-2], close, body)


class _Said:
    """What the fields of a head say to this hop."""

    __slots__ = ("_head", "_spans", "_values", "connection", "start")

    def __init__(self, head: bytes, start: int) -> None:
        """`start` is where the first line ends."""
        self._head = head
        self.start = start
        self._spans: list[tuple[bytes, int, int]] = []
        self._values: dict[bytes, bytes] = {}
        for found in _LOOKED_AT.finditer(head, start):
            name, value = found[1].lower(), found[2].rstrip(b"\t ")
            self._spans.append((name, found.start(), found.end()))
            if name not in self._values:
                self._values[name] = value
            elif name in _FRAMING:
                raise Invalid(f"{name.decode()} stands more than once.")
            else:
                self._values[name] += b"," + value
        self.connection: Collection[bytes] = ()
        if listed := self._values.get(b"connection"):
            self.connection = {part.strip(b"\t ") for part in listed.lower().split(b",")}

    @property
    def host(self) -> bytes | None:
        return self._values.get(b"host")

    @property
    def is_websocket(self) -> bool:
        return b"upgrade" in self.connection and self._values.get(b"upgrade", b"").lower() == b"websocket"

    def framing(self) -> tuple[int | None, bool]:
        """The body's length, if that is said, and whether it comes in chunks."""
        values = self._values
        if b"content_length" in values or b"transfer_encoding" in values:
            raise Invalid("A field's name has an underscore where it must have a hyphen.")
        length, coding = values.get(b"content-length"), values.get(b"transfer-encoding")
        if coding is not None:
            if length is not None:
                raise Invalid("There is a content-length and a transfer-encoding.")
            if coding.lower() != b"chunked":
                raise Invalid("The only transfer-encoding known here is chunked.", 501)
            return None, True
        if length is None:
            return None, False
        if not _LENGTH.fullmatch(length):
            raise Invalid("The content-length is not a number.")
        return int(length), False

    def hop_by_hop(self) -> set[bytes]:
        """The names of fields that are for this hop alone, those that `Connection` lists among them."""
        names = {name for name in self._values if name in _HOP_BY_HOP or name.startswith(b"proxy-")}
        names.update(self.connection)
        return names - _FRAMING

    def without(self, dropped: Collection[bytes]) -> bytes:
        """The fields but for those, from the end of the first line to the empty line."""
        head, at = self._head, self.start
        spans = self._spans
        if not _KNOWN.issuperset(dropped):  # `Connection` lists more: these have to be looked for
            spans = [(m[1].lower(), m.start(), m.end()) for m in _ANY.finditer(head, at)]
        parts = []
        for name, start, end in spans:
            if name in dropped:
                parts.append(head[at:start])
                at = end
        parts.append(head[at:])
        return b"".join(parts)


def _origin_form(method: bytes, target: bytes, host: bytes | None) -> bytes:
    """The path of a target that has more than that.

    Raises:
        Invalid: it is none that a server is asked for.
    """
    if target == b"*" and method == b"OPTIONS":
        return target
    found = _ABSOLUTE.fullmatch(target)
    if found is None:
        raise Invalid("The request's target is not a path.")
    if host is None or found[1].lower() != host.lower():
        raise Invalid("The request's target and its Host differ.")
    path = found[2] or b"/"
    return path if path.startswith(b"/") else b"/" + path
