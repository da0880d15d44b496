"""A request whose head is known is taken without the parser. Whatever a client sends, that makes no difference."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gusset.runtime.exchange import Exchange
from gusset.runtime.limits import Limits, RequestMemory
from gusset.runtime.repeated_head import RepeatedHead
from gusset.runtime.request_parser import RequestParser, RequestRules
from gusset.runtime.responses import Response, caller_error

BODY = b'{"text": "x"}'
POST = b"POST /predict?a=1 HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(BODY)
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


SMALL = Limits(head=2_000, body=500)
LARGE = Limits(head=8_000, body=6_000)  # beyond 4 KiB, what a request takes is counted

Case = tuple[Limits, list[tuple[bytes, bool]]]
"""Reads, and whether a request is handled after each."""


class Connection:
    """Stands for the connection of a parser, and notes what that asks for."""

    transport: Any = None
    accepted = None

    def __init__(self) -> None:
        self.peer = ("127.0.0.1", 1)
        self.events: list[object] = []

    def send_continue(self) -> None:
        self.events.append("continue")

    def hold_body(self, exchange: Exchange, is_skipped: Awaitable[bool]) -> None:
        self.events.append(("hold", exchange.path))


class Loop:
    def time(self) -> float:
        return 0.0


class Rules:
    """Those of a server that changes its mind: a key may be revoked, and a limit reached."""

    def __init__(self, body_limit: int) -> None:
        self.requests = 0
        self._body_limit = body_limit

    def gate(self, exchange: Exchange) -> Response | None:
        """Hides a header from the handler, as that with a caller's key."""
        self.requests += 1
        key = exchange.fields.pop(b"authorization", None)
        if key is not None:
            exchange.headers[:] = [each for each in exchange.headers if each[0].lower() != b"authorization"]
        exchange.response_headers += ((b"x-request", b"%d %b" % (self.requests, key or b"-")),)
        refuses = exchange.fields.get(b"x-refused") and self.requests > 2
        return caller_error(403, "no") if refuses else None

    def skips(self, exchange: Exchange) -> bool | Awaitable[bool]:
        later: Any = object()  # an awaitable that the connection would wait for
        return later if exchange.path == b"/later" else exchange.path == b"/skipped" and self.requests > 2

    def body_limit(self, exchange: Exchange) -> int:
        return 20 if exchange.path == b"/small" and self.requests > 2 else self._body_limit


class Client:
    """One connection's parser, and all that it has found."""

    def __init__(self, limits: Limits = SMALL) -> None:
        connection: Any = Connection()
        self.connection = connection
        server = Rules(limits.body)
        loop: Any = Loop()
        rules = RequestRules(
            limits=limits,
            memory=RequestMemory(12_000),
            gates=(server.gate,),
            skips_body=server.skips,
            body_limit=server.body_limit,
            takes_over=lambda exchange: exchange.path == b"/websocket",
            render_refusal=lambda exchange, status, text: caller_error(status, text),
        )
        self.parser = RequestParser(rules, connection, loop)

    def feed(self, data: bytes) -> None:
        if self.parser.refusal is None and not self.parser.is_closed and not self.parser.rest:
            self.parser.feed(data)

    def forget(self) -> None:
        """Forget heads, so that the next request is parsed.

        Nothing is replaced for that: a compiled parser would go on to call what it was compiled with.
        """
        self.parser._repeated = None
        self.parser._last = b""

    def state(self) -> object:
        parser = self.parser
        return (
            [_contents(each) for each in parser.requests],
            _contents(parser.unfinished) if parser.unfinished else None,
            (parser.refusal, parser.is_head_refused, parser.is_closed, parser.in_message, parser.has_begun),
            (parser.rest, parser.memory.unfinished, parser.body_deadline(), self.connection.events),
        )

    def handle_one(self) -> None:
        if self.parser.requests:
            self.parser.memory.release(self.parser.requests.popleft())


def _contents(exchange: Exchange) -> object:
    line = (exchange.method, exchange.path, exchange.query, exchange.is_http_1_0, exchange.keep_alive)
    given = (exchange.headers, exchange.fields, exchange.body, exchange.counted_bytes)
    return (*line, *given, exchange.response_headers)


NAMES = st.sampled_from(
    [
        *(b"Accept", b"accept", b"Authorization", b"Connection", b"connection", b"Content-Length", b"Cookie"),
        *(b"Expect", b"Host", b"HTTP2-Settings", b"Transfer-Encoding", b"Trailer", b"Upgrade", b"X-Refused"),
    ]
)
VALUES = st.sampled_from(
    [
        *(b"", b"a", b" a ", b"0", b"3", b"13", b"close", b"keep-alive", b"keep-alive, upgrade", b"Upgrade"),
        *(b"100-continue", b"chunked", b"gzip, chunked", b"h2c", b"websocket", b"\xff\xfe", b"a\tb"),
    ]
)
METHODS = st.sampled_from([b"POST", b"GET", b"HEAD", b"OPTIONS", b"CONNECT", b"PUT", b"post", b"PRI"])
TARGETS = st.sampled_from(
    [
        *(b"/", b"/predict", b"/a?b=c", b"/a#b", b"*", b"http://b/c?d", b"a:80", b"/websocket", b"/skipped"),
        *(b"/later", b"/small", b"//", b"/\xff"),
    ]
)
VERSIONS = st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.2", b"HTTP/1."])
BODIES = st.sampled_from(
    [b"", b"abc", BODY, b"x" * 25, b"\r\n\r\n", b"\r\n" * 3, b"0\r\n\r\n", GET, POST + BODY]
)
BYTES = st.sampled_from([b"\r", b"\n", b" ", b":", b"a", b"0", b"\0", b"\xff"])
AROUND = st.sampled_from([b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"G"])
CHUNKED = b"3\r\nabc\r\n0\r\n\r\n"
BIG = b"x" * 4_200  # alone more than is not counted


@st.composite
def _message(draw: st.DrawFn) -> bytes:
    """A request: usually a plain one, else whatever the lists above have."""
    plain = draw(st.sampled_from([True, True, False]))
    method = draw(st.sampled_from([b"POST", b"GET", b"HEAD"]) if plain else METHODS)
    target = draw(
        st.sampled_from([b"/predict", b"/a?b=c", b"/a#b", b"/small", b"/later", b"/skipped"])
        if plain
        else TARGETS
    )
    version = b"HTTP/1.1" if plain else draw(VERSIONS)
    large = draw(st.sampled_from([b""] * 10 + [b"head", b"body"]))
    body = BIG if large == b"body" else draw(BODIES)
    headers = [(b"Host", b"a")] if plain or draw(st.booleans()) else []
    if plain or draw(st.booleans()):
        headers.append((b"Content-Length", b"%d" % len(body)))
    headers += draw(st.lists(st.tuples(NAMES, VALUES), max_size=1 if plain else 3))
    if large == b"head":
        headers.append((b"X-Big", BIG))
    if any(name == b"Transfer-Encoding" for name, _ in headers) and draw(st.booleans()):
        body = CHUNKED
    end = b"\r\n" if plain else draw(st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r", b"\r\n "]))
    lines = [b"%b %b %b" % (method, target, version), *(b"%b: %b" % header for header in headers)]
    return end.join(lines) + end + end + body


@st.composite
def _read(draw: st.DrawFn) -> bytes:
    """What arrives in one read: usually one message, sometimes changed, cut, or with something around it."""
    message = draw(_message())
    match draw(st.integers(0, 11)):
        case 0:  # one byte is another
            position = draw(st.integers(0, len(message) - 1))
            return message[:position] + draw(BYTES) + message[position + 1 :]
        case 1:
            return message[: draw(st.integers(1, len(message)))]
        case 2:
            return message + draw(_message())
        case 3:
            return draw(AROUND) + message
        case 4:
            return message + draw(AROUND)
    return message


@st.composite
def _reads(draw: st.DrawFn) -> list[bytes]:
    """Reads of which most are like the one before, up to some byte."""
    reads: list[bytes] = []
    for _ in range(draw(st.integers(1, 2))):
        read = draw(_read())
        reads += [read] * draw(st.integers(1, 4))
        for _ in range(draw(st.integers(0, 3))):
            start = draw(st.sampled_from([read.find(b"\r\n\r\n") + 4, *range(len(read))]))
            rest = draw(st.sampled_from([read[start:], BODY, GET, b"\r\n", b"G", b"\0", POST + BODY]))
            reads.append(read[:start] + (rest * len(read))[: len(read) - start])
            reads += [read] if draw(st.booleans()) else [draw(AROUND), read]
    return reads


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    limits = draw(st.sampled_from([SMALL, LARGE]))
    return limits, [(read, draw(st.booleans())) for read in draw(_reads())]


def _states(case: Case, *, forgets: bool) -> Iterator[object]:
    limits, reads = case
    client = Client(limits)
    for data, is_handled in reads:
        client.feed(data)
        if forgets:
            client.forget()
        yield client.state()
        if is_handled:
            client.handle_one()


def _each(reads: list[bytes], *, handled: bool, limits: Limits = SMALL) -> Case:
    return limits, [(read, handled) for read in reads]


@pytest.mark.slow
@settings(max_examples=500)
@given(_cases())
@example(_each([POST + BODY] * 4, handled=True))
@example(_each([POST + BODY] * 2 + [POST.replace(b"POST", b"HEAD") + BODY, POST + BODY], handled=False))
@example(_each([POST[:-2] + b"Authorization: a\r\n\r\n" + BODY] * 5, handled=True))
@example(_each([POST[:-2] + b"Connection: keep-alive\r\n\r\n" + BODY] * 4, handled=True))
@example(_each([POST[:-2] + b"Connection: close\r\n\r\n" + BODY, *[POST + BODY] * 3], handled=False))
@example(_each([GET[:-2] + b"X-Big: %b\r\n\r\n" % BIG] * 4, handled=True, limits=LARGE))
@example(
    _each(
        [b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4200\r\n\r\n" + BIG] * 4, handled=True, limits=LARGE
    )
)
def test_known_heads_make_no_difference(case: Case) -> None:
    """The same requests, refusals and states after each read as with the parser alone."""
    assert list(_states(case, forgets=False)) == list(_states(case, forgets=True))


def test_a_parser_that_forgets_parses_each_request() -> None:
    """Else the test above would compare known heads with known heads."""

    def headers_of_last(*, forgets: bool) -> set[int]:
        client = Client()
        kept = []
        for _ in range(6):
            client.feed(POST + BODY)
            if forgets:
                client.forget()
            kept.append(client.parser.requests[0].headers[0])
            client.handle_one()
        return {id(header) for header in kept}

    assert len(headers_of_last(forgets=True)) == 6  # an object from each parse
    assert len(headers_of_last(forgets=False)) == 3  # those that were parsed, and that of the known head


def test_a_repeated_head_is_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the third request on, however different the bodies are."""
    parsed = []
    bodies = [BODY, BODY[::-1]] * 3
    on_header = RequestParser.on_header

    def count(parser: RequestParser, name: bytes, value: bytes) -> None:
        parsed.append(name)
        on_header(parser, name, value)

    monkeypatch.setattr(RequestParser, "on_header", count)
    client = Client()
    for body in bodies:
        client.feed(POST + body)
        assert client.parser.requests[0].body == body
        client.handle_one()
    assert parsed == [b"Host", b"Content-Length"] * 2


def test_only_plain_heads_are_learned() -> None:
    """None that concerns the connection or how the body arrives, and none that repeats a header."""
    for request in (GET, GET[:-2] + b"Connection: Keep-Alive\r\n\r\n"):
        assert RepeatedHead.learn(request, request) is not None
    for header in (
        b"Connection: close",
        b"Connection: keep-alive, upgrade",
        b"Expect: 100-continue",
        b"Upgrade: h2c",
        b"Host: b",
        b"Content-Length: 0\r\nContent-Length: 0",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: identity",
        b"A: 1\r\n 2",
        b"A : 1",
    ):
        request = GET[:-2] + header + b"\r\n\r\n"
        assert RepeatedHead.learn(request, request) is None, header


@pytest.mark.parametrize(
    ("of_get", "other"),
    [
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"GET /", b"GET http://a/"),
        (b"GET /", b"GET /#"),
        (b"GET /", b"GET /\xc3\xa9"),
        (b"host: a\r\n", b""),
        (b"\r\n", b"\n"),
    ],
)
def test_a_head_that_is_not_quite_ordinary_is_not_learned(of_get: bytes, other: bytes) -> None:
    request = GET.replace(of_get, other, 1)
    assert request != GET and RepeatedHead.learn(request, request) is None


def test_a_request_with_something_after_it_is_not_learned() -> None:
    """The rest may be another request."""
    for rest in (b"x", GET):
        assert RepeatedHead.learn(GET + rest, GET + rest) is None
        assert RepeatedHead.learn(POST + BODY + rest, POST + BODY + rest) is None
