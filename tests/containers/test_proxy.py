"""The proxy of custom images: what goes through is the same on both sides; what should not, does not."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
import websockets.sync.client as ws
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.exceptions import InvalidStatus

from gusset.containers.proxy.proxy import Routes
from gusset.containers.proxy.upstream import probe
from gusset.runtime.connections import Limits
from tests.containers.wire import OK, PATIENCE, Proxied, Wire, eventually, get, post, proxied, responding


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxied]:
    """One proxy for tests that set their own `handle`."""
    with proxied() as running:
        yield running


# What goes through is the same.

TOKEN = st.text("!#$%&'*+-.^_`|~0123456789abcXYZ", min_size=1, max_size=12).map(lambda t: "x-" + t)
VALUE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=30).map(
    lambda t: t.replace("\x7f", "").replace("\x80", "")
)
FIELDS = st.lists(st.tuples(TOKEN, st.sampled_from([": ", ":", ":\t "]), VALUE).map("".join), max_size=8)
CONTENT = st.binary(max_size=300) | st.binary(min_size=1, max_size=9).map(lambda b: b * 40_000)
EXTENSION = st.sampled_from([b"", b"", b"", b";a", b";a=b", b' ; q="x y"'])
CUTS = st.lists(st.integers(0, 2_000), max_size=5)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[list[str], bytes]:
    """The fields that frame a body, and the body as it is on the wire."""
    if draw(st.booleans()):
        body = draw(CONTENT)
        return [draw(st.sampled_from(["Content-Length", "CONTENT-length"])) + f": {len(body)}"], body
    raw = b""
    for part in draw(st.lists(CONTENT.filter(bool), max_size=4)):
        raw += (
            draw(st.sampled_from([b"%x", b"%X", b"0%x"])) % len(part)
            + draw(EXTENSION)
            + b"\r\n"
            + part
            + b"\r\n"
        )
    trailers = "".join(f"{line}\r\n" for line in draw(FIELDS)).encode("latin-1")
    coding = draw(st.sampled_from(["Transfer-Encoding: chunked", "transfer-encoding:Chunked"]))
    return [coding], raw + b"0" + draw(EXTENSION) + b"\r\n" + trailers + b"\r\n"


@st.composite
def messages(draw: st.DrawFn, first_line: str, *fields: str) -> bytes:
    """A message with its fields in any order."""
    framing, body = draw(bodies())
    lines = draw(st.permutations([*fields, *framing, *draw(FIELDS)]))
    return "\r\n".join([first_line, *lines, "", ""]).encode("latin-1") + body


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data, cut there."""
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[a:b] for a, b in itertools.pairwise(places)]


REQUESTS = messages("POST /some/where?a=%20b&a HTTP/1.1", "Host: example.com:80")
RESPONSES = messages("HTTP/1.1 203 Something else", "Server: x")


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(REQUESTS, CUTS, RESPONSES, CUTS), min_size=1, max_size=3))
def test_messages_arrive_as_they_were_sent(
    proxy: Proxied, exchanges: list[tuple[bytes, list[int], bytes, list[int]]]
) -> None:
    """Fields in their order, case and spaces, duplicates, chunks, extensions, trailers: byte for byte."""
    arrived: list[bytes] = []

    def handle(wire: Wire) -> None:
        for request, _, response, cuts in exchanges:
            arrived.append(wire.exactly(len(request)))
            wire.send(*pieces(response, cuts))
        wire.rest()

    proxy.handle(handle)
    with proxy.connect() as client:
        for request, cuts, response, _ in exchanges:
            client.send(*pieces(request, cuts))
            assert client.exactly(len(response)) == response
    assert arrived == [request for request, *_ in exchanges]


OPENING = get(
    "/v1/websocket?token=1", "Upgrade: websocket", "Connection: keep-alive, Upgrade", "Sec-WebSocket-Key: k"
)
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-a: b\r\n\r\n"


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.booleans(), CONTENT), max_size=6), st.binary(max_size=50), st.binary(max_size=50)
)
def test_what_a_websocket_says_arrives_as_it_was_sent(
    proxy: Proxied, said: list[tuple[bool, bytes]], early: bytes, first: bytes
) -> None:
    """Frames of both sides, those too that follow a head at once."""
    heard: list[bytes] = []
    over = threading.Event()

    def handle(wire: Wire) -> None:
        heard.append(wire.head())
        wire.send(SWITCHING + first)
        heard.append(wire.exactly(len(early)))
        for by_client, frame in said:
            if by_client:
                heard.append(wire.exactly(len(frame)))
            else:
                wire.send(frame)
        wire.end()
        heard.append(wire.rest())
        over.set()

    proxy.handle(handle)
    with proxy.connect() as client:
        client.send(OPENING + early)
        assert client.exactly(len(SWITCHING + first)) == SWITCHING + first
        for by_client, frame in said:
            if by_client:
                client.send(frame)
            else:
                assert client.exactly(len(frame)) == frame
        assert client.rest() == b""
        client.send(b"the last")
        client.end()
        assert client.rest() == b""
    assert over.wait(PATIENCE)
    head, *rest = heard
    assert head.startswith(b"GET /infer?token=1 HTTP/1.1\r\n")
    assert b"Sec-WebSocket-Key: k\r\n" in head and b"Upgrade: websocket\r\n" in head
    assert rest == [early, *(frame for by_client, frame in said if by_client), b"the last"]


# Where requests go, and what is for one hop alone.


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("/", "/is/alive"),
        ("/?a=%20&b", "/is/alive?a=%20&b"),
        ("/v1/models/model", "/is/ready"),
        ("/v1/models/model/loaded?x", "/is/ready?x"),
        ("/v1/models/model:predict", "/infer"),
        ("/v1/models/model%3Apredict", "/infer"),
        ("/predict?q=1?2", "/infer?q=1?2"),
        ("/v1/websocket", "/infer"),
        ("/v1/models/model:predict/", "/v1/models/model:predict/"),
        ("//predict", "//predict"),
        ("/v1/chat/completions?", "/v1/chat/completions?"),
        ("http://a/predict?x", "/infer?x"),
        ("http://A", "/is/alive"),
        ("https://a?x=1", "/is/alive?x=1"),
    ],
)
def test_routes(proxy: Proxied, asked: str, got: str) -> None:
    """Truss's paths become the application's, with their query; all others are its own."""
    arrived = heads_that_arrive(proxy)
    proxy.talk(get(asked, "Connection: close"))
    assert arrived == [get(got)]


def test_an_endpoint_may_have_a_query_of_its_own() -> None:
    """Both queries arrive."""
    with proxied(routes=Routes("/infer?v=2", "/r", "/l")) as proxy:
        arrived = heads_that_arrive(proxy)
        proxy.talk(get("/predict?a=1"), get("/predict", "Connection: close"))
    assert arrived == [get("/infer?v=2&a=1"), get("/infer?v=2")]


def heads_that_arrive(proxy: Proxied, *answer: bytes) -> list[bytes]:
    """A list to which each request's head is added, as the application reads it."""
    arrived: list[bytes] = []

    def handle(wire: Wire) -> None:
        while head := wire.head():
            arrived.append(head)
            wire.send(*(answer or [OK]))

    proxy.handle(handle)
    return arrived


@pytest.mark.parametrize(
    ("sent", "passed_on"),
    [
        (["Connection: keep-alive"], []),
        (["A: 1", "Connection: close", "Keep-Alive: 5", "B: 2"], ["A: 1", "B: 2"]),
        (["TE: trailers", "Proxy-Connection: close", "Proxy-Authorization: x", "Te-a: 1"], ["Te-a: 1"]),
        (["Hop: 1", "hop: 2", "Connection: HOP , close", "Hops: 3"], ["Hops: 3"]),
        (["Connection: a, Host, content-length,transfer-encoding", "A: 1"], []),
        (["Connection: a", "A: 1", "Connection: b", "B: 2", "C: 3"], ["C: 3"]),
        (["Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: x"], []),
        (["Upgrade: websocket"], []),
        (["Upgrade: websocket, h2c", "Connection: upgrade"], []),
    ],
)
def test_what_a_client_says_to_this_hop(proxy: Proxied, sent: list[str], passed_on: list[str]) -> None:
    """It is not passed on, nor is what `Connection` lists, unless the message could not do without."""
    arrived = heads_that_arrive(proxy)
    with proxy.connect() as client:
        client.send(get("/x", *sent))
        assert client.response()[0] == 200
    assert arrived == [get("/x", *passed_on)]


def test_what_an_application_says_to_this_hop(proxy: Proxied) -> None:
    """It is not passed on either; its close does not close the client's connection."""
    said = b"Connection: close, X-a\r\nKeep-Alive: 3\r\nX-A: 1\r\nUpgrade: h2c\r\n"
    proxy.handle(responding(OK[:17] + said + OK[17:]))
    before = proxy.application.connections
    with proxy.connect() as client:
        for _ in range(2):
            client.send(get())
            assert client.exactly(len(OK)) == OK
    assert proxy.application.connections == before + 2


def test_a_connection_serves_many_requests_of_one_client(proxy: Proxied) -> None:
    """For each connection of a client the application sees one, not one for each request."""
    proxy.handle(responding(OK))
    before = proxy.application.connections
    for _ in range(3):
        many = [get("/a")] * 10 + [get("/b", "Connection: close")]
        assert proxy.talk(*many).count(b"200 OK") == 11
    assert proxy.application.connections == before + 3


def test_a_connection_that_waits_is_given_up(proxy: Proxied) -> None:
    """Before the application would: it may close it just when a request is on its way. The client's own stays."""
    given_up = threading.Event()

    def handle(wire: Wire) -> None:
        responding(OK)(wire)
        given_up.set()

    proxy.handle(handle)
    with proxy.connect() as client:
        client.send(post(b"") + get())
        assert client.exactly(2 * len(OK)) == 2 * OK
        assert given_up.wait(PATIENCE)
        client.send(get())
        assert client.exactly(len(OK)) == OK


def test_an_application_that_takes_a_body_for_requests(proxy: Proxied) -> None:
    """The answers to what one client smuggled so never reach another client."""
    smuggled = threading.Semaphore(0)

    def handle(wire: Wire) -> None:  # does not read bodies, as some servers do not where they answer 404
        while head := wire.head():
            name = head.split(b" ")[1]
            if name == b"/smuggled":
                smuggled.release()
                go.wait(PATIENCE)
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(name), name))

    go = threading.Event()
    proxy.handle(handle)
    with proxy.connect() as attacker:
        attacker.send(post(get("/smuggled"), path="/unknown"))
        assert attacker.response()[2] == b"/unknown"
        assert smuggled.acquire(timeout=PATIENCE)
        with proxy.connect() as other:
            other.send(get("/mine"))
            assert other.response()[2] == b"/mine"
            go.set()
            other.send(get("/again"))
            assert other.response()[2] == b"/again"


def test_pipelined_requests_are_answered_in_order(proxy: Proxied) -> None:
    """Many in one write, with bodies and without."""

    def handle(wire: Wire) -> None:
        while head := wire.head():
            name = head.split(b" ")[1]
            body = wire.exactly(3) if head.startswith(b"POST") else b""
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(name + body) + name + body)

    proxy.handle(handle)
    many = b"".join(get(f"/{n:04}") + b"\r\n" + post(b"abc", path=f"/{n:04}") for n in range(300))
    answer = proxy.talk(many, get("/last", "Connection: close"))
    names = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert names == [b"/%04d%b" % (n, body) for n in range(300) for body in (b"", b"abc")] + [b"/last"]


# Responses of every shape.


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"),
        ("GET", b"HTTP/1.1 999 \xff\r\nContent-Length: 0\r\n\r\n"),
        ("GET", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 \r\n\r\n" + OK),
        ("OPTIONS", OK),
    ],
)
def test_responses_whose_end_is_not_where_their_length_says(
    proxy: Proxied, method: str, answer: bytes
) -> None:
    """What has no body has none, and the connection goes on."""
    proxy.handle(responding(answer))
    with proxy.connect() as client:
        for _ in range(3):
            client.send(get(method=method))
            assert client.exactly(len(answer)) == answer


def test_a_response_that_ends_with_its_connection(proxy: Proxied) -> None:
    """Its end is the end for the client as well."""

    def handle(wire: Wire) -> None:
        wire.head()
        wire.send(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n", b"x" * 200_000)

    proxy.handle(handle)
    head, _, body = proxy.talk(get()).partition(b"\r\n\r\n")
    assert head == b"HTTP/1.1 200 OK\r\nA: b\r\nConnection: close"
    assert body == b"x" * 200_000


def test_an_application_that_breaks_off(proxy: Proxied) -> None:
    """A response that is not whole does not look whole: not by its length, its chunks or its end."""
    for framing in (b"Content-Length: 9\r\n\r\nab", b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"):
        part = b"HTTP/1.1 200 OK\r\n" + framing

        def handle(wire: Wire, part: bytes = part) -> None:
            wire.head()
            wire.send(part)

        proxy.handle(handle)
        assert proxy.talk(get()) == part

    def reset(wire: Wire) -> None:
        wire.head()
        wire.send(b"HTTP/1.1 200 OK\r\n\r\nab")
        wire.exactly(1)
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    proxy.handle(reset)
    with proxy.connect() as client, pytest.raises(ConnectionResetError):
        client.send(post(b"a"))
        assert client.rest() == b"never"


def test_expect_continue(proxy: Proxied) -> None:
    """It is the application that says whether the body is wanted."""

    def handle(wire: Wire) -> None:
        assert b"Expect: 100-continue\r\n" in wire.head()
        wire.send(b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n")
        assert wire.exactly(4) == b"body"
        wire.send(OK)

    proxy.handle(handle)
    with proxy.connect() as client:
        client.send(get("/x", "Content-Length: 4", "Expect: 100-continue", method="POST"))
        assert client.head() == b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n"
        client.send(b"body")
        assert client.exactly(len(OK)) == OK


def test_an_answer_before_the_request_is_whole(proxy: Proxied) -> None:
    """It reaches the client at once; the rest of the request still arrives; both connections live on."""
    rest: list[bytes] = []

    def handle(wire: Wire) -> None:
        for _ in range(2):
            wire.head()
            wire.send(OK)
            rest.append(wire.exactly(6))

    proxy.handle(handle)
    before = proxy.application.connections
    with proxy.connect() as client:
        for _ in range(2):
            client.send(get("/x", "Content-Length: 6", method="POST"), b"abc")
            assert client.exactly(len(OK)) == OK
            client.send(b"def")
        client.end()
        client.rest()
    eventually(lambda: rest == [b"abcdef"] * 2, "the whole bodies arrived")
    assert proxy.application.connections == before + 1


def test_an_application_that_refuses_a_body_and_leaves(proxy: Proxied) -> None:
    """The client hears the refusal, may finish, and go on."""

    def handle(wire: Wire) -> None:
        wire.head()
        wire.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")

    proxy.handle(handle)
    with proxy.connect() as client:
        client.send(get("/x", "Content-Length: 600000", method="POST"))
        assert client.response()[0] == 413
        client.send(b"x" * 600_000, get())
        assert client.response()[0] == 413


def test_clients_of_http_1_0(proxy: Proxied) -> None:
    """They get no chunks and no interim responses, and the end of the connection as the end of the body."""
    chunked = (
        b"Content-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: 1\r\n\r\n"
    )
    arrived = heads_that_arrive(proxy, b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n" + chunked)
    answer = proxy.talk(b"GET /predict HTTP/1.0\r\nA: b\r\nConnection: keep-alive\r\n\r\n")
    assert answer == b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nConnection: close\r\n\r\nabcde"
    assert arrived == [b"GET /infer HTTP/1.1\r\nHost: localhost\r\nA: b\r\n\r\n"]


def test_an_application_of_http_1_0(proxy: Proxied) -> None:
    """Its clients need not know."""
    proxy.handle(responding(OK.replace(b"1.1", b"1.0")))
    before = proxy.application.connections
    with proxy.connect() as client:
        for _ in range(2):
            client.send(get())
            assert client.exactly(len(OK)) == OK
    assert proxy.application.connections == before + 2


# Websockets that do not come about.


def test_an_upgrade_that_is_refused(proxy: Proxied) -> None:
    """The refusal arrives as it is, and what the client said too early is a request like any other."""
    refusal = b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nno"
    answers = iter([refusal, OK])

    def handle(wire: Wire) -> None:
        while head := wire.head():
            arrived.append(head)
            wire.send(next(answers))

    arrived: list[bytes] = []
    proxy.handle(handle)
    with proxy.connect() as client:
        client.send(OPENING, get("/predict"))
        assert client.exactly(len(refusal)) == refusal
        assert client.exactly(len(OK)) == OK
    assert arrived[1:] == [get("/infer")]


def test_either_side_may_end_a_websocket(proxy: Proxied) -> None:
    """A side that is gone is gone for the other one, too."""
    seen = threading.Event()

    def handle(wire: Wire) -> None:
        wire.head()
        wire.send(SWITCHING)
        if wire.exactly(1) == b"a":
            wire.rest()
            seen.set()

    proxy.handle(handle)
    with proxy.connect() as client:
        client.send(OPENING)
        assert client.head() == SWITCHING
        client.send(b"a")
    assert seen.wait(PATIENCE)
    with proxy.connect() as client:
        client.send(OPENING)
        assert client.head() == SWITCHING
        client.send(b"b")
        assert client.rest() == b""


# What is refused.

HOST = "Host: a"
CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["POST /x HTTP/1.1", HOST, "Content-Length: 1", CHUNKED], 400),
        (["POST /x HTTP/1.1", HOST, CHUNKED, "Content-Length: 1"], 400),
        (["POST /x HTTP/1.1", HOST, "Content-Length: 1", "Content-Length: 1"], 400),
        (["POST /x HTTP/1.1", HOST, "Content-Length: 1, 1"], 400),
        (["POST /x HTTP/1.1", HOST, "Content-Length: +1"], 400),
        (["POST /x HTTP/1.1", HOST, "Content-Length: -1"], 400),
        (["POST /x HTTP/1.1", HOST, "Content-Length: 0x1"], 400),
        (["POST /x HTTP/1.1", HOST, "Content-Length: 1_0"], 400),
        (["POST /x HTTP/1.1", HOST, "Content-Length: \xb2"], 400),
        (["POST /x HTTP/1.1", HOST, "Content-Length:"], 400),
        (["POST /x HTTP/1.1", HOST, "Content-Length: " + "1" * 400], 400),
        (["POST /x HTTP/1.1", HOST, "Content-Length : 1"], 400),
        (["POST /x HTTP/1.1", HOST, "Content_Length: 1"], 400),
        (["POST /x HTTP/1.1", HOST, "Transfer_Encoding: chunked"], 400),
        (["POST /x HTTP/1.1", HOST, "Transfer-Encoding : chunked"], 400),
        (["POST /x HTTP/1.1", HOST, "Transfer-Encoding:\x0bchunked"], 400),
        (["POST /x HTTP/1.1", HOST, "Transfer-Encoding: chunked, identity"], 501),
        (["POST /x HTTP/1.1", HOST, "Transfer-Encoding: gzip, chunked"], 501),
        (["POST /x HTTP/1.1", HOST, "Transfer-Encoding: identity"], 501),
        (["POST /x HTTP/1.1", HOST, "Transfer-Encoding: xchunked"], 501),
        (["POST /x HTTP/1.1", HOST, "Transfer-Encoding:"], 501),
        (["POST /x HTTP/1.1", HOST, CHUNKED, CHUNKED], 400),
        (["POST /x HTTP/1.0", HOST, CHUNKED], 400),
        (["GET /x HTTP/1.1", HOST, "A: 1", " folded"], 400),
        (["GET /x HTTP/1.1", HOST, "A: 1\rB: 2"], 400),
        (["GET /x HTTP/1.1", HOST, "A: 1\nB: 2"], 400),
        (["GET /x HTTP/1.1", HOST, "A: \0"], 400),
        (["GET /x HTTP/1.1", HOST, "A"], 400),
        (["GET /x HTTP/1.1", HOST, ": a"], 400),
        (["GET /x HTTP/1.1", " A: 1", HOST], 400),
        (["GET /x HTTP/1.1", HOST, "Host: b"], 400),
        (["GET /x HTTP/1.1"], 400),
        (["GET /x"], 400),
        (["GET  /x HTTP/1.1", HOST], 400),
        (["GET /x y HTTP/1.1", HOST], 400),
        (["GET\t/x HTTP/1.1", HOST], 400),
        (["GET /x HTTP/1.1 ", HOST], 400),
        (["GET /x HTTP/1.2", HOST], 400),
        (["PRI * HTTP/2.0"], 400),
        (["G(T /x HTTP/1.1", HOST], 400),
        (["GET x HTTP/1.1", HOST], 400),
        (["GET * HTTP/1.1", HOST], 400),
        (["GET http://b/x HTTP/1.1", HOST], 400),
        (["GET ftp://a/x HTTP/1.1", HOST], 400),
        (["CONNECT a:1 HTTP/1.1", HOST], 405),
        (
            [
                "POST /v1/websocket HTTP/1.1",
                HOST,
                "Connection: Upgrade",
                "Upgrade: websocket",
                "Content-Length: 1",
            ],
            400,
        ),
        (["GET /v1/websocket HTTP/1.1", HOST, "Connection: Upgrade", "Upgrade: websocket", CHUNKED], 400),
        (["GET /x HTTP/1.1", HOST, "A: " + "a" * 70_000], 431),
        (["GET /" + "a" * 70_000], 431),
        (["\x16\x03\x01\x02\x00\x01\n"], 400),
    ],
)
def test_requests_that_two_readers_might_read_differently(
    proxy: Proxied, lines: list[str], status: int
) -> None:
    """They are refused, and nothing of them reaches the application."""
    arrived = heads_that_arrive(proxy)
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    answer = proxy.talk(head, b"1\r\na\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close\r\n" in answer and b"x-baseten-error-code: 700\r\n" in answer
    assert b'{"error":"' in answer and answer.count(b"HTTP/1.1") == 1
    assert arrived == []


@pytest.mark.parametrize(
    "body",
    [
        b"g\r\n",
        b"-1\r\na",
        b"0x1\r\na\r\n",
        b"1 \r\na\r\n",
        b" 1\r\na\r\n",
        b"\r\n",
        b"1\na\r\n",
        b"1\ra\r\n",
        b"1;a\nb\r\na\r\n",
        b"1;a\rb\r\na\r\n",
        b"1;a\0\r\na\r\n",
        b"1\r\na\n",
        b"1\r\nab\r\n",
        b"1\r\na\r\r\n",
        b"f" * 16 + b"\r\n",
        b"0" * 2000,
        b"1;" + b"a" * 2000,
        b"1;" + b"a" * 2000 + b"\r\n",
        b"0\r\nContent-Length: 5\r\n\r\n",
        b"0\r\nTransfer_Encoding: chunked\r\n\r\n",
        b"0\r\nA : 1\r\n\r\n",
        b"0\r\nA: 1\n\r\n",
        b"0\r\n folded\r\n",
        b"0\n\r\n",
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_chunks_that_two_readers_might_read_differently(proxy: Proxied, body: bytes, together: bool) -> None:
    """400; the application sees a request that breaks off before the place in question."""
    seen: list[bytes] = []
    proxy.handle(lambda wire: seen.append(wire.rest()))
    head = get("/x", CHUNKED, method="POST") + b"2\r\nok\r\n"
    smuggled = b"\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    answer = (
        proxy.talk(head + body + smuggled)
        if together
        else proxy.talk(head, *pieces(body, [*range(60)]), smuggled)
    )
    assert answer.startswith(b"HTTP/1.1 4") and answer.count(b"HTTP/1.1") == 1
    proxy.handle(responding(OK))
    proxy.talk(get("/x", "Connection: close"))  # whatever went before has reached the application by now
    assert all((head + body).startswith(part) for part in seen)
    assert not any(part.endswith(b"\n0\r\n\r\n") for part in seen)


def test_bodies_over_the_limit(proxy: Proxied) -> None:
    """413, before anything is sent if the length is known, else in the midst."""
    arrived = heads_that_arrive(proxy)
    answer = proxy.talk(get("/x", f"Content-Length: {100 * 1024 * 1024 + 1}", method="POST"))
    assert answer.startswith(b"HTTP/1.1 413 ") and arrived == []
    with proxied(lambda wire: void(wire.rest()), Limits(body=1000)) as small:
        answer = small.talk(
            get("/x", CHUNKED, method="POST"), b"3e8\r\n" + b"x" * 1000 + b"\r\n", b"1\r\nx\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 413 ")
        answer = small.talk(get("/x", CHUNKED, method="POST") + b"3e9\r\n" + b"x" * 1001 + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 413 ")


def void(_: object) -> None:
    """Nothing."""


# What the application does wrong.


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"hello\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\rSet-Cookie: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"a" * 70_000,
        b"HTTP/1.1 200 OK\r\nA: " + b"a" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
    ],
)
def test_answers_that_are_not_http(proxy: Proxied, answer: bytes) -> None:
    """502, without a byte of it; the client's connection lives on."""

    def handle(wire: Wire) -> None:
        wire.head()
        wire.send(answer)

    proxy.handle(handle)
    with proxy.connect() as client:
        for _ in range(2):
            client.send(post(b"abc"))
            status, head, body = client.response()
            assert (status, body.startswith(b'{"error":"The application did not respond. It')) == (502, True)
            assert b"x-baseten-error-code: 600\r\n" in head


def test_more_than_was_asked_for(proxy: Proxied) -> None:
    """A second response to one request reaches nobody: not this client, not the next."""
    forged = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
    sent = threading.Semaphore(0)

    def at_once(wire: Wire) -> None:
        wire.head()
        wire.send(OK + forged)
        wire.rest()

    def later(wire: Wire) -> None:
        wire.head()
        wire.send(OK)
        go.wait(PATIENCE)
        wire.send(forged)
        wire.rest()
        sent.release()

    for handle in (at_once, later):
        go = threading.Event()
        proxy.handle(handle)
        with proxy.connect() as client, proxy.connect() as other:
            client.send(get())
            assert client.exactly(len(OK)) == OK
            if handle is later:
                go.set()
                assert sent.acquire(timeout=PATIENCE)  # its connection was ended
            proxy.application.handle = responding(OK)
            for wire in (client, other):
                wire.send(get())
                assert wire.exactly(len(OK)) == OK


def test_an_application_that_is_not_there(proxy: Proxied) -> None:
    """502, with what the machine says; a look at it by `probe` is an OSError."""
    with proxied() as running:
        running.application.close()
        with running.connect() as client:
            for _ in range(2):
                client.send(post(b"abc"))
                status, _, body = client.response()
                assert (status, b"Connection refused" in body) == (502, True)
            client.send(get(method="HEAD"))
            assert client.head().startswith(b"HTTP/1.1 502 ")
            client.send(get())
            assert client.response()[0] == 502
        with pytest.raises(ConnectionRefusedError):
            running.call(probe(running.connect_to_application, "/"))


def test_an_application_that_is_silent() -> None:
    """504 before the response has begun; a response that has begun is cut."""

    def handle(wire: Wire) -> None:
        if b"begin" in wire.head():
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab")
        wire.rest()

    with proxied(handle, read_seconds=0.2) as proxy:
        with proxy.connect() as client:
            client.send(post(b"abc"))
            status, head, _ = client.response()
            assert (status, b"x-baseten-error-code: 600\r\n" in head) == (504, True)
        assert proxy.talk(get("/begin")).endswith(b"\r\n\r\nab")


def test_a_connection_that_was_closed_meanwhile(proxy: Proxied) -> None:
    """A request that may be sent twice is; any other one is not, since nobody knows whether it was carried out."""
    arrived: list[bytes] = []

    def handle(wire: Wire) -> None:
        arrived.append(wire.head())
        if first:
            first.clear()
            wire.send(OK)
            arrived.append(wire.head())  # and closes, as if it had been too late
        else:
            wire.send(OK)

    for request, status in [
        (get(), 200),
        (post(b"a"), 502),
        (get(method="POST"), 502),
        (get(method="DELETE"), 200),
    ]:
        first = [True]
        arrived.clear()
        proxy.handle(handle)
        with proxy.connect() as client:
            client.send(get("/first"))
            assert client.response()[0] == 200
            client.send(request)
            assert client.response()[0] == status
        assert len(arrived) == (3 if status == 200 else 2)


def test_a_request_is_not_sent_for_ever(proxy: Proxied) -> None:
    """An application that always closes is asked once on a new connection."""
    proxy.handle(lambda wire: void(wire.head()))
    before = proxy.application.connections
    assert proxy.talk(get("/x", "Connection: close")).startswith(b"HTTP/1.1 502 ")
    assert proxy.application.connections == before + 1


# Not ready, slow, gone.


def test_nothing_passes_while_the_application_is_not_ready(proxy: Proxied) -> None:
    """503 with the reason and the headers of a model that is not ready; the proxy itself is alive."""
    arrived = heads_that_arrive(proxy)
    proxy.not_ready = "Its container is starting."
    try:
        with proxy.connect() as client:
            for path in ("/predict", "/v1/models/model", "/other"):
                client.send(post(b"abc", path=path))
                status, head, body = client.response()
                text = b'{"error":"Model with name model is not ready. Its container is starting."}'
                assert (status, body) == (503, text)
                assert b"x-baseten-error-code: 600\r\n" in head and b"retry-after: 1\r\n" in head
            client.send(get("/"))
            assert client.response()[::2] == (200, b"true")
            client.send(get("/other", method="HEAD"))
            assert client.head().startswith(b"HTTP/1.1 503 ")
            client.send(get("/other", "Content-Length: 5", "Expect: 100-continue", method="POST"))
            assert client.rest().startswith(b"HTTP/1.1 503 ")  # then it ends: the body may or may not come
        assert arrived == []
    finally:
        proxy.not_ready = None
    with proxy.connect() as client:
        client.send(get())
        assert client.response()[0] == 200


QUICK = Limits(head_seconds=0.3, body_seconds=0.3, idle_seconds=0.3, stall_seconds=0.3)


def test_clients_that_keep_others_waiting() -> None:
    """408 for a head or a body that does not come, an end for a connection that asks nothing."""
    late = b"HTTP/1.1 408 "
    with proxied(lambda wire: void(wire.rest()), QUICK) as proxy:
        assert proxy.talk(b"") == b""
        assert proxy.talk(b"GET /x HTT").startswith(late)
        assert proxy.talk(b"\r\n\r\n") == b""
        assert proxy.talk(get("/x", "Content-Length: 2", method="POST") + b"a").startswith(late)
        assert proxy.talk(get("/x", CHUNKED, method="POST") + b"1\r").startswith(late)
        proxy.handle(responding(OK))
        assert proxy.talk(get()) == OK


def test_a_head_that_trickles_in() -> None:
    """The time for a head does not begin anew with each byte of it, nor with empty lines before it."""
    with proxied(limits=Limits(head_seconds=0.5)) as proxy:
        for drop in (b"a", b"\r\n"):
            with proxy.connect() as client, pytest.raises(OSError):
                client.send(b"GET /" if drop == b"a" else drop)
                client.sock.settimeout(0.02)
                for _ in range(int(PATIENCE * 50)):
                    client.send(drop)
                    try:
                        if not client.sock.recv(1000):
                            break
                    except TimeoutError:
                        continue
                raise OSError("it ended, one way or the other")


def test_a_body_that_trickles_in() -> None:
    """Each byte of it buys a little time only."""
    with (
        proxied(lambda wire: void(wire.rest()), Limits(body_seconds=0.5)) as proxy,
        proxy.connect() as client,
        pytest.raises(OSError),
    ):
        client.send(get("/x", "Content-Length: 100000", method="POST"))
        client.sock.settimeout(0.02)
        for _ in range(int(PATIENCE * 50)):
            client.send(b"a")
            try:
                if not client.sock.recv(1000):
                    break
            except TimeoutError:
                continue
        raise OSError("it ended, one way or the other")


def test_an_application_that_says_something_else_and_waits(proxy: Proxied) -> None:
    """Nobody waits for the end of its line."""

    def handle(wire: Wire) -> None:
        wire.head()
        wire.send(b"hello")
        wire.rest()

    proxy.handle(handle)
    with proxy.connect() as client:
        client.send(get())
        assert client.response()[0] == 502


def test_a_client_that_speaks_tls(proxy: Proxied) -> None:
    """It is told at once, and not waited for."""
    assert proxy.talk(b"\x16\x03\x01\x02\x00\x01").startswith(b"HTTP/1.1 400 ")


def much(kilobytes: int) -> Iterator[bytes]:
    """So many kilobytes, each different from the one before."""
    return (b"%1024x" % n for n in range(kilobytes))


def taken(wire: Wire, data: Iterator[bytes]) -> int:
    """How many kilobytes go out until nobody has taken any for a second."""
    wire.sock.settimeout(1)
    count = 0
    with contextlib.suppress(TimeoutError):
        for part in data:
            wire.sock.sendall(part)
            count += 1
    wire.sock.settimeout(PATIENCE)
    return count


def test_a_slow_client_slows_the_application_down(proxy: Proxied) -> None:
    """What is not read waits where it came from, not in the proxy's memory."""
    counts: list[int] = []

    def handle(wire: Wire) -> None:
        wire.head()
        wire.send(b"HTTP/1.1 200 OK\r\n\r\n")
        counts.append(taken(wire, much(200_000)))

    proxy.handle(handle)
    with proxy.connect() as client:
        client.send(get())
        client.head()
        eventually(lambda: counts, "the application was held up")
        # As much as the kernel's buffers take, on both sides of the proxy; those for sending grow to 4 MB each.
        assert counts[0] < 20_000
        assert held_by(proxy) < 1_000_000
        assert len(client.rest()) >= counts[0] * 1024


def held_by(proxy: Proxied) -> int:
    """Bytes that the proxy holds for clients and application."""

    async def count() -> int:
        clients = proxy.proxy.connections
        return sum(
            len(c._input)
            + c.transport.get_write_buffer_size()
            + (c._upstream.transport.get_write_buffer_size() if c._upstream else 0)
            for c in clients
        )

    return int(proxy.call(count()))


@pytest.mark.parametrize("in_tunnel", [False, True])
def test_a_slow_application_slows_its_client_down(proxy: Proxied, in_tunnel: bool) -> None:
    """Uploads and websockets, too; everything arrives when it reads on."""
    go = threading.Event()
    size = 90_000

    def handle(wire: Wire) -> None:
        wire.head()
        if in_tunnel:
            wire.send(SWITCHING)
        go.wait(PATIENCE)
        whole = wire.exactly(size * 1024) == b"".join(much(size))
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n%b" % str(whole).encode().ljust(5))

    proxy.handle(handle)
    with proxy.connect() as client:
        if in_tunnel:
            client.send(OPENING)
            assert client.head() == SWITCHING
        else:
            client.send(get("/x", f"Content-Length: {size * 1024}", method="POST"))
        data = b"".join(much(size))
        client.sock.settimeout(1)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < len(data):
                sent += client.sock.send(data[sent : sent + 65_536])
        client.sock.settimeout(PATIENCE)
        assert sent < 20_000 * 1024
        assert held_by(proxy) < 1_000_000
        go.set()
        client.send(data[sent:])
        assert client.response() == (200, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"True ")


def test_pipelined_requests_are_not_hoarded(proxy: Proxied) -> None:
    """A client that asks and asks is read no further until answers are there."""
    go = threading.Event()

    def handle(wire: Wire) -> None:
        while wire.head():
            go.wait(PATIENCE)
            wire.send(OK)

    proxy.handle(handle)
    with proxy.connect() as client:
        count = taken(client, (get("/" + "a" * 1000) for _ in range(100_000)))
        assert count < 20_000
        assert held_by(proxy) < 1_000_000
        go.set()
        client.send(b"x" * 1024 + b"\r\n\r\n")  # ends the one that was cut, if one was
        client.end()


def test_a_client_that_takes_nothing_is_cut() -> None:
    """Its connection ends, and the application hears of it."""
    gone = threading.Event()

    def handle(wire: Wire) -> None:
        wire.head()
        try:
            wire.send(b"HTTP/1.1 200 OK\r\n\r\n", *much(100_000))
        finally:
            gone.set()

    with proxied(handle, QUICK) as proxy, proxy.connect() as client:
        client.send(get())
        assert gone.wait(PATIENCE)


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\n\r\nab"])
@pytest.mark.parametrize("request_", [get(), get("/x", "Content-Length: 9", method="POST")])
def test_a_client_that_leaves(proxy: Proxied, begun: bytes, request_: bytes) -> None:
    """The application hears of it, whatever it is doing."""
    gone = threading.Event()
    there = threading.Event()

    def handle(wire: Wire) -> None:
        wire.head()
        wire.send(begun)
        there.set()
        with contextlib.suppress(OSError):
            wire.rest()
        gone.set()

    proxy.handle(handle)
    with proxy.connect() as client:
        client.send(request_)
        assert there.wait(PATIENCE)
    assert gone.wait(PATIENCE)


def test_draining() -> None:
    """Requests under way are answered, idle connections end, what takes too long is cut."""
    go, there = threading.Event(), threading.Semaphore(0)

    def handle(wire: Wire) -> None:
        while head := wire.head():
            if b"slow" in head:
                there.release()
                go.wait(PATIENCE)
            if b"for-ever" in head:
                there.release()
                wire.rest()
            wire.send(OK)

    with (
        proxied(handle) as proxy,
        proxy.connect() as idle,
        proxy.connect() as slow,
        proxy.connect() as stuck,
        proxy.connect() as half,
    ):
        idle.send(get())
        assert idle.exactly(len(OK)) == OK
        slow.send(get("/slow"))
        stuck.send(get("/for-ever"))
        half.send(get("/half")[:-2])
        assert there.acquire(timeout=PATIENCE) and there.acquire(timeout=PATIENCE)
        draining = threading.Thread(target=proxy.call, args=(proxy.proxy.drain(3),))
        draining.start()
        assert idle.rest() == b""
        with pytest.raises(ConnectionRefusedError):
            eventually(lambda: proxy.connect().sock.close(), "it accepts no more")
        go.set()
        half.send(b"\r\n")
        for wire in (slow, half):
            head, _, body = wire.rest().partition(b"\r\n\r\n")
            assert (head.endswith(b"\r\nConnection: close"), body) == (True, b"ok")
        with contextlib.suppress(ConnectionResetError):
            assert stuck.rest() == b""
        draining.join(PATIENCE)
        assert not draining.is_alive()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (OK, 200),
        (b"HTTP/1.1 503 No\r\n\r\n", 503),
        (b"HTTP/1.0 404 Not Found\r\nContent-Length: 100000000\r\n\r\n", 404),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK, 200),
    ],
)
def test_a_probe_sees_the_status(proxy: Proxied, answer: bytes, status: int) -> None:
    """Of the final response, without waiting for its body."""
    arrived = heads_that_arrive(proxy, *pieces(answer, [10, 20, 30]))
    assert proxy.call(probe(proxy.connect_to_application, "/healthy?a")) == status
    assert arrived == [b"GET /healthy?a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n", b"hello\r\n\r\n", b"x" * 200_000])
def test_a_probe_wants_http(proxy: Proxied, answer: bytes) -> None:
    """Anything else is an OSError."""

    def handle(wire: Wire) -> None:
        wire.head()
        wire.send(answer)

    proxy.handle(handle)
    with pytest.raises(ConnectionError):
        proxy.call(probe(proxy.connect_to_application, "/"))


# Servers and clients as people use them.


async def infer(request: Request) -> StreamingResponse:
    """The body, in parts of another size."""
    body = await request.body()
    return StreamingResponse((body[n : n + 999] for n in range(0, len(body), 999)), headers={"x-seen": "é"})


async def converse(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text * 2)


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_uvicorn_behind_and_usual_clients_before(http: str) -> None:
    """Streams, uploads and websockets of real libraries."""
    app = Starlette(
        routes=[Route("/infer", infer, methods=["POST"]), WebSocketRoute("/infer", converse)],
    )
    sock = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=http, ws="websockets-sansio", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        with proxied() as proxy:
            proxy.application.close()
            proxy.application.port = sock.getsockname()[1]
            address = f"127.0.0.1:{proxy.port}"
            with httpx.Client(base_url=f"http://{address}", trust_env=False) as client:
                for body in (b"", b"abc", b"x" * 3_000_000):
                    for content in (body, iter([body[:10], body[10:]])):
                        response = client.post("/v1/models/model:predict", content=content)
                        assert (response.status_code, response.content) == (200, body)
                assert client.get("/predict").status_code == 405
            with ws.connect(f"ws://{address}/v1/websocket", proxy=None) as websocket:
                for text in ("a", "é" * 70_000):
                    websocket.send(text)
                    assert websocket.recv(PATIENCE) == text * 2
            with pytest.raises(InvalidStatus):
                ws.connect(f"ws://{address}/nothing", proxy=None)
    finally:
        server.should_exit = True
        thread.join()
        sock.close()
