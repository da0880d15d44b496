"""After a switch of protocols bytes pass both ways unchanged, until both sides have ended."""

from __future__ import annotations

import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.containers.wire import OK, SWITCHING, WEBSOCKET_REQUEST, RunningProxy, Wire, get
from tests.serving.conftest import PATIENCE

FRAME = st.binary(max_size=300) | st.binary(min_size=1, max_size=9).map(lambda b: b * 40_000)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), FRAME), max_size=6), st.binary(max_size=50), st.binary(max_size=50))
def test_the_bytes_of_a_websocket_arrive_as_they_were_sent(
    proxy: RunningProxy, frames: list[tuple[bool, bytes]], early: bytes, first: bytes
) -> None:
    """Also those that follow a head at once: `early` the client's, `first` the application's."""
    received: list[bytes] = []
    has_ended = threading.Event()

    def handle(wire: Wire) -> None:
        received.append(wire.head())
        wire.send(SWITCHING + first)
        received.append(wire.exactly(len(early)))
        for by_client, frame in frames:
            if by_client:
                received.append(wire.exactly(len(frame)))
            else:
                wire.send(frame)
        wire.end()
        received.append(wire.rest())
        has_ended.set()

    proxy.handle_with(handle)
    with proxy.connect() as client:
        client.send(WEBSOCKET_REQUEST + early)
        assert client.exactly(len(SWITCHING + first)) == SWITCHING + first
        for by_client, frame in frames:
            if by_client:
                client.send(frame)
            else:
                assert client.exactly(len(frame)) == frame
        assert client.rest() == b""
        client.send(b"the last")
        client.end()
        assert client.rest() == b""
    assert has_ended.wait(PATIENCE)
    head, *rest = received
    assert head.startswith(b"GET /infer?token=1 HTTP/1.1\r\n")
    assert b"Sec-WebSocket-Key: k\r\n" in head and b"Upgrade: websocket\r\n" in head
    assert rest == [early, *(frame for by_client, frame in frames if by_client), b"the last"]


def test_a_refused_upgrade_leaves_an_ordinary_connection(proxy: RunningProxy) -> None:
    """The refusal arrives unchanged, and what the client sent after its request is the next request."""
    refusal = b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nno"
    responses = iter([refusal, OK])
    heads: list[bytes] = []

    def handle(wire: Wire) -> None:
        while head := wire.head():
            heads.append(head)
            wire.send(next(responses))

    proxy.handle_with(handle)
    with proxy.connect() as client:
        client.send(WEBSOCKET_REQUEST, get("/predict"))
        assert client.exactly(len(refusal)) == refusal
        assert client.exactly(len(OK)) == OK
    assert heads[1:] == [get("/infer")]


def test_a_websocket_ends_when_the_client_disconnects(proxy: RunningProxy) -> None:
    """The application reads the end of its connection."""
    has_ended = threading.Event()

    def handle(wire: Wire) -> None:
        wire.head()
        wire.send(SWITCHING)
        if wire.exactly(1) == b"a":
            wire.rest()
            has_ended.set()

    proxy.handle_with(handle)
    with proxy.connect() as client:
        client.send(WEBSOCKET_REQUEST)
        assert client.head() == SWITCHING
        client.send(b"a")
    assert has_ended.wait(PATIENCE)


def test_a_websocket_ends_when_the_application_disconnects(proxy: RunningProxy) -> None:
    """The client reads the end of its connection."""

    def handle(wire: Wire) -> None:
        wire.head()
        wire.send(SWITCHING)
        wire.exactly(1)

    proxy.handle_with(handle)
    with proxy.connect() as client:
        client.send(WEBSOCKET_REQUEST)
        assert client.head() == SWITCHING
        client.send(b"b")
        assert client.rest() == b""
