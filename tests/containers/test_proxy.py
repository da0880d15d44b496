"""The proxy of custom images: what goes through is the same on both sides; what should not, does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.containers.wire import OK, PATIENCE, Proxied, Wire, answering, get, post, proxied


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
    return [data[a:b] for a, b in zip(places, places[1:], strict=False)]


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
