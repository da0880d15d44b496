"""Faults of the application: it is not ready, unreachable, silent, or does not respond in valid HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.containers.wire import (
    OK,
    RunningProxy,
    Wire,
    get,
    never_respond,
    post,
    respond_once_with,
    respond_with,
    running_proxy,
)
from tests.serving.conftest import PATIENCE


@pytest.mark.parametrize(
    "response",
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
def test_an_invalid_response_gives_502(proxy: RunningProxy, response: bytes) -> None:
    """The client gets none of it, and its connection stays open."""
    proxy.handle_with(respond_once_with(response))
    with proxy.connect() as client:
        for _ in range(2):
            client.send(post(b"abc"))
            status, head, body = client.response()
            assert (status, body.startswith(b'{"error":"The application did not respond. It')) == (502, True)
            assert b"x-baseten-error-code: 600\r\n" in head


def test_a_response_in_another_protocol_gives_502_at_once(proxy: RunningProxy) -> None:
    """The proxy does not wait for the end of its first line."""

    def handle(wire: Wire) -> None:
        wire.head()
        wire.send(b"hello")
        wire.rest()

    proxy.handle_with(handle)
    with proxy.connect() as client:
        client.send(get())
        assert client.response()[0] == 502


FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"


def assert_get_ok(proxy: RunningProxy, *clients: Wire) -> None:
    """Assert that these clients get the responses to their next requests."""
    proxy.handle_with(respond_with(OK))
    for client in clients:
        client.send(get())
        assert client.exactly(len(OK)) == OK


def test_a_second_response_sent_with_the_first_is_dropped(proxy: RunningProxy) -> None:
    """It reaches neither this client nor another."""

    def handle(wire: Wire) -> None:
        wire.head()
        wire.send(OK + FORGED)
        wire.rest()

    proxy.handle_with(handle)
    with proxy.connect() as client, proxy.connect() as other:
        client.send(get())
        assert client.exactly(len(OK)) == OK
        assert_get_ok(proxy, client, other)


def test_a_second_response_sent_later_is_dropped(proxy: RunningProxy) -> None:
    """It reaches neither this client nor another, and ends the application's connection."""
    may_send, has_ended = threading.Event(), threading.Event()

    def handle(wire: Wire) -> None:
        wire.head()
        wire.send(OK)
        may_send.wait(PATIENCE)
        wire.send(FORGED)
        wire.rest()
        has_ended.set()

    proxy.handle_with(handle)
    with proxy.connect() as client, proxy.connect() as other:
        client.send(get())
        assert client.exactly(len(OK)) == OK
        may_send.set()
        assert has_ended.wait(PATIENCE)
        assert_get_ok(proxy, client, other)


def test_an_unreachable_application_gives_502() -> None:
    """With the system's reason; the client's connection stays open."""
    with running_proxy() as proxy:
        proxy.application.close()
        with proxy.connect() as client:
            for _ in range(2):
                client.send(post(b"abc"))
                status, _, body = client.response()
                assert (status, b"Connection refused" in body) == (502, True)
            client.send(get(method="HEAD"))
            assert client.head().startswith(b"HTTP/1.1 502 ")
            client.send(get())
            assert client.response()[0] == 502


def test_a_silent_application_gives_504() -> None:
    """When it has sent nothing for `read_seconds`."""
    with running_proxy(never_respond, read_seconds=0.2) as proxy, proxy.connect() as client:
        client.send(post(b"abc"))
        status, head, _ = client.response()
        assert (status, b"x-baseten-error-code: 600\r\n" in head) == (504, True)


@pytest.mark.slow
def test_a_response_is_cut_off_when_the_application_falls_silent() -> None:
    """Its status has been sent already, so the connection ends before the announced length."""

    def handle(wire: Wire) -> None:
        wire.head()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab")
        wire.rest()

    with running_proxy(handle, read_seconds=2.0) as proxy:
        assert proxy.exchange(get()).endswith(b"\r\n\r\nab")


@pytest.fixture
def starting() -> Iterator[RunningProxy]:
    """A proxy whose container is still starting. Fails if a request reaches the application."""
    with running_proxy() as proxy:
        proxy.not_ready = "Its container is starting."
        yield proxy
        assert proxy.not_ready is None or proxy.application.connections == 0


def test_requests_get_503_while_the_application_is_not_ready(starting: RunningProxy) -> None:
    """With the reason, and with the headers of a model that is not ready. The connection stays open."""
    with starting.connect() as client:
        for path in ("/predict", "/v1/models/model", "/other"):
            client.send(post(b"abc", path=path))
            status, head, body = client.response()
            text = b'{"error":"Model with name model is not ready. Its container is starting."}'
            assert (status, body) == (503, text)
            assert b"x-baseten-error-code: 600\r\n" in head and b"retry-after: 1\r\n" in head
        client.send(get("/other", method="HEAD"))
        assert client.head().startswith(b"HTTP/1.1 503 ")
        client.send(get())
        assert client.response()[0] == 503


def test_the_proxy_is_alive_while_the_application_is_not_ready(starting: RunningProxy) -> None:
    """`/` then is not forwarded: the proxy itself responds."""
    with starting.connect() as client:
        client.send(get("/"))
        assert client.response()[::2] == (200, b"true")


def test_a_refusal_closes_the_connection_if_the_body_may_not_follow(starting: RunningProxy) -> None:
    """With `Expect: 100-continue` a client need not send the body after a 503."""
    request = get("/other", "Content-Length: 5", "Expect: 100-continue", method="POST")
    assert starting.exchange(request).startswith(b"HTTP/1.1 503 ")


def test_requests_pass_once_the_application_is_ready(starting: RunningProxy) -> None:
    """Also on a connection that got a 503 before."""
    with starting.connect() as client:
        client.send(get())
        assert client.response()[0] == 503
        starting.not_ready = None
        client.send(get())
        assert client.response()[0] == 200
