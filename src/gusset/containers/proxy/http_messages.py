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
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]++)([/?].*)?")
_BARE_NEWLINE = re.compile(rb"(?<!\r)\n")

# The fields that this hop looks at. The two spelt with `_` are the same as the true ones to a server that
# hands fields on as variables (CGI, WSGI), so they would be a second opinion on where the body ends.
_LOOKED_AT = re.compile(
    rb"\r\n(host|connection|content[-_]length|transfer[-_]encoding|upgrade|keep-alive|te|proxy-[a-z-]++)"
    rb":([^\r]*+)",
    re.IGNORECASE,
)
_HOP_BY_HOP = re.compile(rb"\r\n(?:connection|keep-alive|te|upgrade|proxy-[a-z-]++):[^\r]*+", re.IGNORECASE)
_BUT_UPGRADE = re.compile(rb"\r\n(?:keep-alive|te|proxy-[a-z-]++):[^\r]*+", re.IGNORECASE)
_CODING = re.compile(rb"\r\ntransfer-encoding:[^\r]*+", re.IGNORECASE)
_ANY = re.compile(rb"\r\n([^:\r]++):[^\r]*+")
_USUALLY_LISTED = frozenset(
    {b"", b"close", b"connection", b"keep-alive", b"te", b"upgrade", b"proxy-connection"}
)
_NEVER_DROPPED = frozenset({b"content-length", b"transfer-encoding", b"host"})
_DIGITS = 18  # of a length
_SLASH = 0x2F
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
        elif line.partition(b":")[0].lower().replace(b"_", b"-") in _NEVER_DROPPED:
            raise Invalid("a trailer cannot say where the message ends")
        elif self._trailers > _TRAILERS:
            raise Invalid("the trailers are too long", 431)


@dataclass(slots=True, kw_only=True)
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
class ResponseHead:
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
    start = found.end(3)
    host, length, is_chunked, listed, protocol, is_hop = _look(head, start)
    if host is None and not is_old:
        raise Invalid("The request has no Host.")
    if target[0] != _SLASH:
        target = _origin_form(method, target, host)
    if is_chunked and is_old:
        raise Invalid("HTTP/1.0 has no chunks.")
    upgrade = protocol == b"websocket" and b"upgrade" in listed and not is_old
    if upgrade and (length or is_chunked):
        # Whoever speaks the other protocol at once would take the body for its own.
        raise Invalid("A request with a body cannot ask for another protocol.")
    fields = head[start:]
    if is_hop:
        fields = _without(fields, listed, _HOP_BY_HOP)
        if upgrade:
            fields = b"\r\nConnection: Upgrade\r\nUpgrade: websocket" + fields
    if host is None:
        fields = b"\r\nHost: localhost" + fields
    body: Body = Chunked() if is_chunked else Counted(length or 0)
    return Request(
        method=method,
        target=target,
        fields=fields,
        is_old=is_old,
        close=is_old or b"close" in listed,
        upgrade=upgrade,
        length=length,
        body=body,
    )


def read_response(head: bytes, request: Request) -> ResponseHead:
    """Take in the head of a response to `request`, whole, interim ones too.

    Raises:
        Invalid: it is malformed, or says in two ways where its body ends.
    """
    found = _RESPONSE.fullmatch(head)
    if found is None:
        raise Invalid("Its head is malformed.")
    is_old = found[1] == b"0"
    status = int(found[2])
    start = found.end(2)
    _, length, is_chunked, listed, _, is_hop = _look(head, start)
    if is_chunked and is_old:
        raise Invalid("HTTP/1.0 has no chunks.")
    passed_on = head[start:-2]
    if is_hop:  # 101, or a refusal, says what it speaks or would rather speak
        passed_on = _without(passed_on, listed, _BUT_UPGRADE if request.upgrade else _HOP_BY_HOP)
    if is_chunked and request.is_old:
        passed_on = _CODING.sub(b"", passed_on)
    body: Body
    close = b"close" in listed or (is_old and b"keep-alive" not in listed)
    if request.method == b"HEAD" or status < 200 or status in (204, 304):
        body = Counted(0)
    elif is_chunked:
        body = Chunked(unwrap=request.is_old)
    elif length is not None:
        body = Counted(length)
    else:
        body = Unbounded()
        close = True
    return ResponseHead(status, b"HTTP/1.1 %d%b" % (status, passed_on), close, body)


def _look(head: bytes, start: int) -> tuple[bytes | None, int | None, bool, Collection[bytes], bytes, bool]:
    """What the fields from `start` say to this hop.

    The host, the body's length, whether the body comes in chunks, what
    `Connection` lists, the protocol that is asked for, and whether anything of
    this is for this hop alone.

    Raises:
        Invalid: they do not say it plainly.
    """
    host: bytes | None = None
    length: int | None = None
    is_chunked = is_hop = False
    connection = protocol = b""
    for name, value in _LOOKED_AT.findall(head, start):
        name = name.lower()
        value = value.strip(b"\t ")
        if name == b"host":
            if host is not None:
                raise Invalid("There is more than one Host.")
            host = value
        elif name == b"content-length":
            if length is not None or not value.isdigit() or len(value) > _DIGITS:
                raise Invalid("The content-length is not one number.")
            length = int(value)
        elif name == b"transfer-encoding":
            if is_chunked:
                raise Invalid("There is more than one transfer-encoding.")
            if value.lower() != b"chunked":
                raise Invalid("The only transfer-encoding known here is chunked.", 501)
            is_chunked = True
        elif b"_" in name:
            raise Invalid("A field's name has an underscore where it must have a hyphen.")
        else:
            is_hop = True
            if name == b"connection":
                connection = connection + b"," + value if connection else value
            elif name == b"upgrade":
                protocol = protocol + b"," + value if protocol else value
    if is_chunked and length is not None:
        raise Invalid("There is a content-length and a transfer-encoding.")
    listed: Collection[bytes] = ()
    if connection:
        listed = {part.strip(b"\t ") for part in connection.lower().split(b",")}
    return host, length, is_chunked, listed, protocol.lower(), is_hop


def _without(fields: bytes, listed: Collection[bytes], dropped: re.Pattern[bytes]) -> bytes:
    """The fields but for those that are for one hop alone: they always are, or `Connection` lists them."""
    fields = dropped.sub(b"", fields)
    if _USUALLY_LISTED.issuperset(listed):
        return fields
    others = set(listed) - _NEVER_DROPPED - _USUALLY_LISTED
    return _ANY.sub(lambda field: b"" if field[1].lower() in others else field[0], fields)


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
