"""Responses reach the client whole, and an incomplete one is recognisable as such."""

from __future__ import annotations

import socket
import struct

import pytest

from tests.containers.wire import (
    OK,
    RunningProxy,
    Wire,
    get,
    post,
    respond_once_with,
    respond_with,
)
from tests.serving.conftest import eventually


@pytest.mark.parametrize(
    ("method", "response"),
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
def test_an_unusual_response_arrives_whole_and_the_connection_stays_open(
    proxy: RunningProxy, method: str, response: bytes
) -> None:
    """The proxy waits for a body only if the method and the status allow one."""
    proxy.handle_with(respond_with(response))
    with proxy.connect() as client:
        for _ in range(3):
            client.send(get(method=method))
            assert client.exactly(len(response)) == response


def test_a_response_that_ends_with_its_connection_ends_the_clients(proxy: RunningProxy) -> None:
    """The client reads the whole body, and `Connection: close` in the head."""
    proxy.handle_with(respond_once_with(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n" + b"x" * 200_000))
    head, _, body = proxy.exchange(get()).partition(b"\r\n\r\n")
    assert head == b"HTTP/1.1 200 OK\r\nA: b\r\nConnection: close"
    assert body == b"x" * 200_000


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 9\r\n\r\nab", b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"]
)
def test_a_response_that_breaks_off_is_not_completed(proxy: RunningProxy, framing: bytes) -> None:
    """The client gets what there was: fewer bytes than announced, or no last chunk."""
    incomplete = b"HTTP/1.1 200 OK\r\n" + framing
    proxy.handle_with(respond_once_with(incomplete))
    assert proxy.exchange(get()) == incomplete


def test_a_response_without_a_length_that_is_reset_ends_with_a_reset(proxy: RunningProxy) -> None:
    """An ordinary end would make it look complete."""

    def handle(wire: Wire) -> None:
        wire.head()
        wire.send(b"HTTP/1.1 200 OK\r\n\r\nab")
        wire.exactly(1)
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    proxy.handle_with(handle)
    with proxy.connect() as client:
        client.send(post(b"a"))
        with pytest.raises(ConnectionResetError):
            client.rest()


def test_the_application_decides_whether_a_client_may_continue(proxy: RunningProxy) -> None:
    """`Expect: 100-continue` and the interim response are forwarded; the body follows."""

    def handle(wire: Wire) -> None:
        assert b"Expect: 100-continue\r\n" in wire.head()
        wire.send(b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n")
        assert wire.exactly(4) == b"body"
        wire.send(OK)

    proxy.handle_with(handle)
    with proxy.connect() as client:
        client.send(get("/x", "Content-Length: 4", "Expect: 100-continue", method="POST"))
        assert client.head() == b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n"
        client.send(b"body")
        assert client.exactly(len(OK)) == OK


def test_a_response_may_come_before_the_request_is_complete(proxy: RunningProxy) -> None:
    """The client gets it at once, the rest of the request is forwarded, and both connections stay open."""
    bodies: list[bytes] = []

    def handle(wire: Wire) -> None:
        for _ in range(2):
            wire.head()
            wire.send(OK)
            bodies.append(wire.exactly(6))

    proxy.handle_with(handle)
    before = proxy.application.connections
    with proxy.connect() as client:
        for _ in range(2):
            client.send(get("/x", "Content-Length: 6", method="POST"), b"abc")
            assert client.exactly(len(OK)) == OK
            client.send(b"def")
        client.end()
        client.rest()
    eventually(lambda: bodies == [b"abcdef"] * 2, "the application has both bodies")
    assert proxy.application.connections == before + 1


def test_a_client_may_go_on_after_the_application_refuses_its_body(proxy: RunningProxy) -> None:
    """The application responds and closes. The rest of the body is discarded, then the next request is served."""
    proxy.handle_with(respond_once_with(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"))
    with proxy.connect() as client:
        client.send(get("/x", "Content-Length: 600000", method="POST"))
        assert client.response()[0] == 413
        client.send(b"x" * 600_000, get())
        assert client.response()[0] == 413


def test_a_client_of_http_1_0_gets_no_chunks(proxy: RunningProxy) -> None:
    """Nor interim responses; the end of the connection is the end of the body."""
    heads = proxy.record_heads(
        b"HTTP/1.1 103 Early Hints\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: 1\r\n\r\n"
    )
    response = proxy.exchange(b"GET /predict HTTP/1.0\r\nA: b\r\nConnection: keep-alive\r\n\r\n")
    assert response == b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nConnection: close\r\n\r\nabcde"
    assert heads == [b"GET /infer HTTP/1.1\r\nHost: localhost\r\nA: b\r\n\r\n"]


def test_an_application_of_http_1_0_does_not_close_the_clients_connection(proxy: RunningProxy) -> None:
    """Each request gets a new connection to it, and each response is forwarded as HTTP/1.1."""
    proxy.handle_with(respond_with(OK.replace(b"1.1", b"1.0")))
    before = proxy.application.connections
    with proxy.connect() as client:
        for _ in range(2):
            client.send(get())
            assert client.exactly(len(OK)) == OK
    assert proxy.application.connections == before + 2
