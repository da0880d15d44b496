"""HTTP/1.1 messages as bytes: parses heads, and finds the ends of bodies. No I/O.

Strict where parsers of HTTP disagree: a proxy and the server behind it must find
the same end of every message, or a client could smuggle a request into another's
connection. What could be read in two ways is refused. Everything else is passed
on byte for byte, so a parser that returns names and values without their
positions would not do.
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
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#@]++)([/?].*)?")
_BARE_NEWLINE = re.compile(rb"(?<!\r)\n")

# The fields that concern this hop. A server that passes fields on as variables (CGI, WSGI) cannot tell the
# two that are spelt with `_` from the real ones: they would be a second statement of where the body ends.
_OF_THIS_HOP = re.compile(
    rb"\r\n(host|connection|content[-_]length|transfer[-_]encoding|upgrade|keep-alive|te|proxy-[a-z-]++)"
    rb":([^\r]*+)",
    re.IGNORECASE,
)
_HOP_BY_HOP = re.compile(rb"\r\n(?:connection|keep-alive|te|upgrade|proxy-[a-z-]++):[^\r]*+", re.IGNORECASE)
_BUT_UPGRADE = re.compile(rb"\r\n(?:keep-alive|te|proxy-[a-z-]++):[^\r]*+", re.IGNORECASE)
_CODING = re.compile(rb"\r\ntransfer-encoding:[^\r]*+", re.IGNORECASE)
_HOST = re.compile(rb"(\r\nhost:)[^\r]*+", re.IGNORECASE)
_AUTHORIZATION = re.compile(rb"\r\nauthorization:([^\r]*+)", re.IGNORECASE)
_ANY = re.compile(rb"\r\n([^:\r]++):[^\r]*+")
_USUALLY_LISTED = frozenset(
    {b"", b"close", b"connection", b"keep-alive", b"te", b"upgrade", b"proxy-connection"}
)
_NEVER_DROPPED = frozenset({b"content-length", b"transfer-encoding", b"host"})
_DIGITS = 18  # of a length
_SLASH = 0x2F
_CHUNK_HEAD = 1024  # bytes of one chunk's size and extensions
_TRAILERS = 64 * 1024  # bytes of all fields after a body


class InvalidMessage(Exception):
    """Bytes that are not valid HTTP; `status` is that of the response to a client that sent them."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.text = text
        self.status = status


class Body(Protocol):
    """Finds the end of a body while it passes."""

    done: bool
    size: int  # bytes of the content so far

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """What may be passed on now, and what follows the body.

        Raises:
            InvalidMessage: `data` does not continue such a body.
        """


class FixedLengthBody:
    """A body with a content length."""

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


class UntilCloseBody:
    """A body that ends with its connection."""

    __slots__ = ("done", "size")

    def __init__(self) -> None:
        self.done = False
        self.size = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        self.size += len(data)
        return data, b""


class ChunkedBody:
    """A body in chunks, with their extensions and trailers; `unwrap` passes on only the content.

    A line of the framing is held back until it is complete and valid: the server
    behind must not receive the start of a line that it might read differently.
    """

    __slots__ = ("_held", "_left", "_trailers", "_unwrap", "done", "size")

    def __init__(self, *, unwrap: bool = False) -> None:
        self._unwrap = unwrap
        self._held = b""
        self._left = 0  # bytes of the current chunk, with the two that end it
        self._trailers = -1  # bytes of trailers so far; negative before they begin
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
                    raise InvalidMessage("a chunk does not end where its size says")
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
        """Parse the line of framing at `at`. Returns its length; 0 while it is incomplete."""
        in_trailers = self._trailers >= 0
        found = (_FIELD_OR_END if in_trailers else _CHUNK).match(data, at)
        if found is None:
            longest = _TRAILERS if in_trailers else _CHUNK_HEAD
            if data.find(b"\n", at) >= 0 or len(data) - at > longest:
                raise InvalidMessage(
                    "a trailer is malformed" if in_trailers else "the size of a chunk is malformed"
                )
            return 0
        length = found.end() - at
        if in_trailers:
            self._take_trailer(found[0])
        elif length > _CHUNK_HEAD:
            raise InvalidMessage("the extensions of a chunk are too long")
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
            raise InvalidMessage("a trailer cannot set the length of the message")
        elif self._trailers > _TRAILERS:
            raise InvalidMessage("the trailers are too long", 431)


@dataclass(slots=True, kw_only=True)
class Request:
    """The head of a request: the parts to pass on, and what this hop has to know."""

    method: bytes
    target: bytes
    host: bytes | None  # that of the target if it has one, else of the Host field
    fields: bytes  # from the end of the request line to the empty line
    is_http_1_0: bool  # HTTP/1.0
    close: bool  # the client will send no further request on this connection
    upgrade: bool  # a websocket is requested
    length: int | None
    body: Body

    def take_authorization(self) -> bytes | None:
        """Remove the `Authorization` field, so that it is not passed on, and return its value."""
        found = _AUTHORIZATION.search(self.fields)
        if found is None:
            return None
        self.fields = _AUTHORIZATION.sub(b"", self.fields)
        return found[1].strip()


@dataclass(slots=True)
class ResponseHead:
    """The head of a response: the parts to pass on, and what this hop has to know."""

    status: int
    head: bytes  # without the empty line at its end
    close: bool  # the server will accept no further request on this connection
    body: Body

    @property
    def ends_with_connection(self) -> bool:
        return isinstance(self.body, UntilCloseBody)


def find_field(head: bytes, name: bytes) -> bytes | None:
    """The value of the first field of that name in a complete head, None if there is none."""
    found = re.search(rb"(?i:\r\n" + re.escape(name) + rb":)[\t ]*([^\r]*)", head)
    return found[1].rstrip(b"\t ") if found else None


def end_of_head(data: bytes | bytearray, searched: int = 0) -> int:
    """The offset after the head at the start of `data`, or -1; `searched` bytes were searched before.

    Raises:
        InvalidMessage: a line ends with a bare newline, which not all parsers accept as an end.
    """
    found = data.find(b"\r\n\r\n", max(0, searched - 3))
    if found >= 0:
        return found + 4
    if _BARE_NEWLINE.search(data, max(0, searched - 1)):
        raise InvalidMessage("a line of the head does not end with CRLF")
    return -1


HTTP2_HEAD = b"PRI * HTTP/2.0\r\n\r\n"
"""What HTTP/2 without TLS begins with, made to look like the head of a request (RFC 9113, 3.4)."""


def http2_request() -> Request:
    """The request whose head is `HTTP2_HEAD`: the rest of the connection belongs to it."""
    return Request(
        method=b"PRI",
        target=b"*",
        host=None,
        fields=b"",
        is_http_1_0=False,
        close=True,
        upgrade=True,
        length=None,
        body=FixedLengthBody(0),
    )


def read_request(head: bytes) -> Request:
    """Parse the complete head of a request.

    Raises:
        InvalidMessage: it is malformed, or the end of its body is ambiguous.
    """
    found = _REQUEST.fullmatch(head)
    if found is None:
        raise InvalidMessage("Invalid HTTP request received.")
    method, target, minor = found.groups()
    if method == b"CONNECT":
        raise InvalidMessage("This proxy does not support CONNECT.", 405)
    is_http_1_0 = minor == b"0"
    start = found.end(3)
    hop = _read_hop_fields(head, start)
    host, length, is_chunked, listed = hop.host, hop.length, hop.is_chunked, hop.listed
    if host is None and not is_http_1_0:
        raise InvalidMessage("The request has no Host.")
    fields = head[start:]
    if target[0] != _SLASH:
        target, named = _origin_form(method, target)
        if named is not None:  # it replaces that of the field: RFC 9112, 3.2.2
            fields = _HOST.sub(lambda field: field[1] + b" " + named, fields)
            host = named
    if is_chunked and is_http_1_0:
        raise InvalidMessage("HTTP/1.0 has no chunks.")
    upgrade = b"websocket" in hop.protocols and b"upgrade" in listed and not is_http_1_0
    if upgrade and (length or is_chunked):
        # A server that switches at once would read the body as part of the other protocol.
        raise InvalidMessage("A request with a body cannot ask for another protocol.")
    if hop.is_hop:
        fields = _without(fields, listed, _HOP_BY_HOP)
        if upgrade:
            fields = b"\r\nConnection: Upgrade\r\nUpgrade: websocket" + fields
    if hop.host is None:
        fields = b"\r\nHost: " + (host or b"localhost") + fields
    body: Body = ChunkedBody() if is_chunked else FixedLengthBody(length or 0)
    return Request(
        method=method,
        target=target,
        host=host,
        fields=fields,
        is_http_1_0=is_http_1_0,
        close=is_http_1_0 or b"close" in listed,
        upgrade=upgrade,
        length=length,
        body=body,
    )


def read_response(head: bytes, request: Request) -> ResponseHead:
    """Parse the complete head of a response to `request`, also of an interim one.

    Raises:
        InvalidMessage: it is malformed, or the end of its body is ambiguous.
    """
    found = _RESPONSE.fullmatch(head)
    if found is None:
        raise InvalidMessage("Its head is malformed.")
    is_http_1_0 = found[1] == b"0"
    status = int(found[2])
    start = found.end(2)
    hop = _read_hop_fields(head, start)
    length, is_chunked, listed = hop.length, hop.is_chunked, hop.listed
    if is_chunked and is_http_1_0:
        raise InvalidMessage("HTTP/1.0 has no chunks.")
    passed_on = head[start:-2]
    if hop.is_hop:  # a response to an upgrade names the protocol that it switches to, or wants
        passed_on = _without(passed_on, listed, _BUT_UPGRADE if request.upgrade else _HOP_BY_HOP)
    if is_chunked and request.is_http_1_0:
        passed_on = _CODING.sub(b"", passed_on)
    body: Body
    close = b"close" in listed or (is_http_1_0 and b"keep-alive" not in listed)
    if request.method == b"HEAD" or status < 200 or status in (204, 304):
        body = FixedLengthBody(0)
    elif is_chunked:
        body = ChunkedBody(unwrap=request.is_http_1_0)
    elif length is not None:
        body = FixedLengthBody(length)
    else:
        body = UntilCloseBody()
        close = True
    return ResponseHead(status, b"HTTP/1.1 %d%b" % (status, passed_on), close, body)


@dataclass(slots=True, kw_only=True)
class _HopFields:
    """What the fields of a head mean to this hop."""

    host: bytes | None = None
    length: int | None = None
    is_chunked: bool = False
    listed: Collection[bytes] = ()  # by `Connection`, in lower case
    protocols: Collection[bytes] = ()  # that `Upgrade` offers, in lower case
    is_hop: bool = False  # there are fields for this hop only


def _read_hop_fields(head: bytes, start: int) -> _HopFields:
    """The fields of a head, from `start` on.

    Raises:
        InvalidMessage: they are ambiguous.
    """
    found = _HopFields()
    connection = upgrade = b""
    for name, value in _OF_THIS_HOP.findall(head, start):
        name = name.lower()
        value = value.strip(b"\t ")
        if name == b"host":
            if found.host is not None:
                raise InvalidMessage("There is more than one Host.")
            found.host = value
        elif name == b"content-length":
            if found.length is not None or not value.isdigit() or len(value) > _DIGITS:
                raise InvalidMessage("The content-length is not one number.")
            found.length = int(value)
        elif name == b"transfer-encoding":
            if found.is_chunked:
                raise InvalidMessage("There is more than one transfer-encoding.")
            if value.lower() != b"chunked":
                raise InvalidMessage("The only supported transfer-encoding is chunked.", 501)
            found.is_chunked = True
        elif b"_" in name:
            raise InvalidMessage("A field's name has an underscore in place of a hyphen.")
        else:
            found.is_hop = True
            if name == b"connection":
                connection = connection + b"," + value if connection else value
            elif name == b"upgrade":
                upgrade = upgrade + b"," + value if upgrade else value
    if found.is_chunked and found.length is not None:
        raise InvalidMessage("There is a content-length and a transfer-encoding.")
    if connection:
        found.listed = _elements(connection)
    if upgrade:
        found.protocols = _elements(upgrade)
    return found


def _elements(value: bytes) -> Collection[bytes]:
    """The elements of a field whose value is a list, in lower case."""
    return {part.strip(b"\t ") for part in value.lower().split(b",")}


def _without(fields: bytes, listed: Collection[bytes], dropped: re.Pattern[bytes]) -> bytes:
    """The fields without those for a single hop: some always are, others are listed by `Connection`."""
    fields = dropped.sub(b"", fields)
    if _USUALLY_LISTED.issuperset(listed):
        return fields
    others = set(listed) - _NEVER_DROPPED - _USUALLY_LISTED
    return _ANY.sub(lambda field: b"" if field[1].lower() in others else field[0], fields)


def _origin_form(method: bytes, target: bytes) -> tuple[bytes, bytes | None]:
    """The path and query of a target in absolute form, as clients send it to a proxy, and its host.

    Raises:
        InvalidMessage: it is no valid target for a server.
    """
    if target == b"*" and method == b"OPTIONS":
        return target, None
    found = _ABSOLUTE.fullmatch(target)
    if found is None:
        raise InvalidMessage("The request's target is not a path.")
    path = found[2] or b"/"
    return path if path.startswith(b"/") else b"/" + path, found[1]
