"""Connections to the application: one client's requests share one, and no other client's use it."""

from __future__ import annotations

import threading

import pytest

from tests.containers.wire import OK, ConnectionHandler, RunningProxy, Wire, get, post, respond_with
from tests.serving.conftest import PATIENCE


def test_the_requests_of_a_client_share_one_connection(proxy: RunningProxy) -> None:
    """The application accepts one connection for each client, not one for each request."""
    proxy.handle_with(respond_with(OK))
    before = proxy.application.connections
    for _ in range(3):
        requests = [get("/a")] * 10 + [get("/b", "Connection: close")]
        assert proxy.exchange(*requests).count(b"200 OK") == 11
    assert proxy.application.connections == before + 3


def test_an_idle_connection_to_the_application_is_closed(proxy: RunningProxy) -> None:
    """The proxy closes it first: the application might close it just when a request arrives.

    The client's own connection stays open.
    """
    closed = threading.Event()

    def handle(wire: Wire) -> None:
        respond_with(OK)(wire)
        closed.set()

    proxy.handle_with(handle)
    with proxy.connect() as client:
        client.send(post(b"") + get())
        assert client.exactly(2 * len(OK)) == 2 * OK
        assert closed.wait(PATIENCE)
        client.send(get())
        assert client.exactly(len(OK)) == OK


def test_a_response_to_a_smuggled_request_reaches_no_other_client(proxy: RunningProxy) -> None:
    """Some servers do not read the body of a request that they refuse, and take it for further requests."""
    smuggled = threading.Semaphore(0)
    may_respond = threading.Event()

    def handle(wire: Wire) -> None:
        while head := wire.head():
            path = head.split(b" ")[1]
            if path == b"/smuggled":
                smuggled.release()
                may_respond.wait(PATIENCE)
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))

    proxy.handle_with(handle)
    with proxy.connect() as attacker:
        attacker.send(post(get("/smuggled"), path="/unknown"))
        assert attacker.response()[2] == b"/unknown"
        assert smuggled.acquire(timeout=PATIENCE)
        with proxy.connect() as other:
            other.send(get("/mine"))
            assert other.response()[2] == b"/mine"
            may_respond.set()
            other.send(get("/again"))
            assert other.response()[2] == b"/again"


def test_pipelined_requests_get_their_responses_in_order(proxy: RunningProxy) -> None:
    """Also when many arrive at once, with and without bodies."""

    def handle(wire: Wire) -> None:
        while head := wire.head():
            path = head.split(b" ")[1]
            body = wire.exactly(3) if head.startswith(b"POST") else b""
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(path + body) + path + body)

    proxy.handle_with(handle)
    requests = b"".join(get(f"/{n:04}") + b"\r\n" + post(b"abc", path=f"/{n:04}") for n in range(300))
    responses = proxy.exchange(requests, get("/last", "Connection: close"))
    bodies = [part.partition(b"\r\n\r\n")[2] for part in responses.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert bodies == [b"/%04d%b" % (n, body) for n in range(300) for body in (b"", b"abc")] + [b"/last"]


def close_on_the_second_request(heads: list[bytes]) -> ConnectionHandler:
    """Respond once on each connection; on the first, close when another request arrives. Records all heads."""
    is_in_use = threading.Event()

    def handle(wire: Wire) -> None:
        is_first = not is_in_use.is_set()
        is_in_use.set()
        heads.append(wire.head())
        wire.send(OK)
        if is_first:
            heads.append(wire.head())

    return handle


@pytest.mark.parametrize("request_", [get(), get(method="DELETE")])
def test_an_idempotent_request_is_sent_again_if_its_connection_was_closed(
    proxy: RunningProxy, request_: bytes
) -> None:
    """It was sent on a connection that the application closed meanwhile."""
    heads: list[bytes] = []
    proxy.handle_with(close_on_the_second_request(heads))
    with proxy.connect() as client:
        client.send(get("/first"))
        assert client.response()[0] == 200
        client.send(request_)
        assert client.response()[0] == 200
    assert heads == [get("/first"), request_, request_]


@pytest.mark.parametrize("request_", [post(b"a"), get(method="POST")])
def test_a_post_is_not_sent_again_if_its_connection_was_closed(proxy: RunningProxy, request_: bytes) -> None:
    """The application may have acted on it already, so the client gets 502."""
    heads: list[bytes] = []
    proxy.handle_with(close_on_the_second_request(heads))
    with proxy.connect() as client:
        client.send(get("/first"))
        assert client.response()[0] == 200
        client.send(request_)
        assert client.response()[0] == 502
    assert len(heads) == 2


def close_after_the_head(wire: Wire) -> None:
    """Read a request's head, and close without a response."""
    wire.head()


def test_a_request_is_not_sent_again_if_its_connection_was_new(proxy: RunningProxy) -> None:
    """An application that closes every connection gets each request once."""
    proxy.handle_with(close_after_the_head)
    before = proxy.application.connections
    assert proxy.exchange(get("/x", "Connection: close")).startswith(b"HTTP/1.1 502 ")
    assert proxy.application.connections == before + 1
