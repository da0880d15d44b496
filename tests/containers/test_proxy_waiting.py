"""Deadlines of clients, back-pressure in both directions, disconnected clients, and draining."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator

import pytest

from gusset.runtime.limits import Limits
from tests.containers.wire import (
    CHUNKED,
    OK,
    SWITCHING,
    WEBSOCKET_REQUEST,
    ConnectionHandler,
    RunningProxy,
    Wire,
    get,
    never_respond,
    running_proxy,
)
from tests.serving.conftest import PATIENCE, eventually

SHORT = Limits(head_seconds=0.3, body_seconds=0.3, idle_seconds=0.3, stall_seconds=0.3)

# Kilobytes that fit into the kernel's buffers on both sides of the proxy; those for sending grow to 4 MB each.
FITS_KERNEL = 20_000
MAX_BUFFERED = 1_000_000  # bytes, in the proxy


@pytest.mark.parametrize(
    "incomplete",
    [
        b"GET /x HTT",
        get("/x", "Content-Length: 2", method="POST") + b"a",
        get("/x", CHUNKED, method="POST") + b"1\r",
    ],
)
def test_a_request_that_stays_incomplete_gets_408(incomplete: bytes) -> None:
    """Whether its head or its body is late."""
    with running_proxy(never_respond, SHORT) as proxy:
        assert proxy.exchange(incomplete).startswith(b"HTTP/1.1 408 ")


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "received"), [(b"", b""), (b"\r\n\r\n", b""), (get(), OK)])
def test_an_idle_connection_is_closed(sent: bytes, received: bytes) -> None:
    """Without a response: no request is waiting for one."""
    with running_proxy(limits=Limits(idle_seconds=0.3)) as proxy:
        assert proxy.exchange(sent) == received


def trickle_until_closed(client: Wire, data: bytes) -> None:
    """Send `data` every 20 ms until the proxy closes the connection; fail if it never does."""
    client.sock.settimeout(0.02)
    for _ in range(int(PATIENCE * 50)):
        try:
            client.send(data)
            if not client.sock.recv(1000):
                return
        except TimeoutError:
            continue
        except OSError:  # reset while the client was still sending
            return
    pytest.fail("the connection was not closed")


@pytest.mark.slow
@pytest.mark.parametrize(("start", "data"), [(b"GET /", b"a"), (b"", b"\r\n")])
def test_a_head_that_trickles_in_is_cut_off(start: bytes, data: bytes) -> None:
    """Neither further bytes nor empty lines before it extend the deadline."""
    with running_proxy(limits=Limits(head_seconds=0.5)) as proxy, proxy.connect() as client:
        client.send(start)
        trickle_until_closed(client, data)


def test_a_body_that_trickles_in_is_cut_off() -> None:
    """Each byte extends the deadline by little."""
    with running_proxy(never_respond, Limits(body_seconds=0.5)) as proxy, proxy.connect() as client:
        client.send(get("/x", "Content-Length: 100000", method="POST"))
        trickle_until_closed(client, b"a")


def kilobytes(count: int) -> Iterator[bytes]:
    """`count` different kilobytes."""
    return (b"%1024x" % n for n in range(count))


def send_until_blocked(wire: Wire, pieces: Iterable[bytes]) -> int:
    """Send until nothing could be sent for a second; the number of pieces that were sent whole."""
    wire.sock.settimeout(1)
    count = 0
    with contextlib.suppress(TimeoutError):
        for piece in pieces:
            wire.sock.sendall(piece)
            count += 1
    wire.sock.settimeout(PATIENCE)
    return count


def test_a_slow_client_slows_the_application_down(proxy: RunningProxy) -> None:
    """The proxy reads no more than the client takes, and holds little in memory."""
    counts: list[int] = []

    def handle(wire: Wire) -> None:
        wire.head()
        wire.send(b"HTTP/1.1 200 OK\r\n\r\n")
        counts.append(send_until_blocked(wire, kilobytes(200_000)))

    proxy.handle_with(handle)
    with proxy.connect() as client:
        client.send(get())
        client.head()
        eventually(lambda: counts, "the application is blocked")
        assert counts[0] < FITS_KERNEL
        assert proxy.buffered() < MAX_BUFFERED
        assert len(client.rest()) >= counts[0] * 1024


@pytest.mark.slow
@pytest.mark.parametrize("in_tunnel", [False, True])
def test_a_slow_application_slows_its_client_down(proxy: RunningProxy, in_tunnel: bool) -> None:
    """In uploads and in websockets; everything arrives when the application reads on."""
    may_read = threading.Event()
    data = b"".join(kilobytes(90_000))

    def handle(wire: Wire) -> None:
        wire.head()
        if in_tunnel:
            wire.send(SWITCHING)
        may_read.wait(PATIENCE)
        is_equal = wire.exactly(len(data)) == data
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n%b" % str(is_equal).encode().ljust(5))

    proxy.handle_with(handle)
    with proxy.connect() as client:
        if in_tunnel:
            client.send(WEBSOCKET_REQUEST)
            assert client.head() == SWITCHING
        else:
            client.send(get("/x", f"Content-Length: {len(data)}", method="POST"))
        client.sock.settimeout(1)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < len(data):
                sent += client.sock.send(data[sent : sent + 65_536])
        client.sock.settimeout(PATIENCE)
        assert sent < FITS_KERNEL * 1024
        assert proxy.buffered() < MAX_BUFFERED
        may_read.set()
        client.send(data[sent:])
        assert client.response() == (200, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"True ")


def test_pipelined_requests_are_read_no_faster_than_they_are_served(proxy: RunningProxy) -> None:
    """A client that sends many requests fills only the kernel's buffers."""
    may_respond = threading.Event()

    def handle(wire: Wire) -> None:
        while wire.head():
            may_respond.wait(PATIENCE)
            wire.send(OK)

    proxy.handle_with(handle)
    with proxy.connect() as client:
        count = send_until_blocked(client, (get("/" + "a" * 1000) for _ in range(100_000)))
        assert count < FITS_KERNEL
        assert proxy.buffered() < MAX_BUFFERED
        may_respond.set()


def test_a_client_that_reads_nothing_is_disconnected() -> None:
    """The application's connection ends, too."""
    has_ended = threading.Event()

    def handle(wire: Wire) -> None:
        wire.head()
        try:
            wire.send(b"HTTP/1.1 200 OK\r\n\r\n", *kilobytes(100_000))
        except OSError:
            has_ended.set()

    with running_proxy(handle, SHORT) as proxy, proxy.connect() as client:
        client.send(get())
        assert has_ended.wait(PATIENCE)


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\n\r\nab"])
@pytest.mark.parametrize("request_", [get(), get("/x", "Content-Length: 9", method="POST")])
def test_the_application_notices_that_a_client_disconnects(
    proxy: RunningProxy, begun: bytes, request_: bytes
) -> None:
    """Whether or not the request is complete and the response has begun."""
    has_request, has_ended = threading.Event(), threading.Event()

    def handle(wire: Wire) -> None:
        wire.head()
        wire.send(begun)
        has_request.set()
        with contextlib.suppress(OSError):
            wire.rest()
        has_ended.set()

    proxy.handle_with(handle)
    with proxy.connect() as client:
        client.send(request_)
        assert has_request.wait(PATIENCE)
    assert has_ended.wait(PATIENCE)


def is_accepting(proxy: RunningProxy) -> bool:
    """Whether the proxy accepts connections."""
    try:
        proxy.connect().sock.close()
    except ConnectionRefusedError:
        return False
    return True


def respond_to_slow_when(may_respond: threading.Event, has_request: threading.Event) -> ConnectionHandler:
    """Respond to each request with `OK`; to `/slow` only when `may_respond` is set."""

    def handle(wire: Wire) -> None:
        while head := wire.head():
            if b"/slow" in head:
                has_request.set()
                may_respond.wait(PATIENCE)
            wire.send(OK)

    return handle


def test_draining_finishes_requests_in_flight() -> None:
    """Also one whose head is incomplete. Idle connections end at once, and no new ones are accepted."""
    may_respond, has_request = threading.Event(), threading.Event()
    with (
        running_proxy(respond_to_slow_when(may_respond, has_request)) as proxy,
        proxy.connect() as idle,
        proxy.connect() as slow,
        proxy.connect() as incomplete,
    ):
        idle.send(get())
        assert idle.exactly(len(OK)) == OK
        incomplete.send(get("/incomplete")[:-2])
        slow.send(get("/slow"))
        assert has_request.wait(PATIENCE)
        drained = proxy.submit(proxy.proxy.drain(PATIENCE))
        assert idle.rest() == b""
        eventually(lambda: not is_accepting(proxy), "the proxy accepts no more")
        assert not drained.done()
        may_respond.set()
        incomplete.send(b"\r\n")
        for client in (slow, incomplete):
            head, _, body = client.rest().partition(b"\r\n\r\n")
            assert (head.endswith(b"\r\nConnection: close"), body) == (True, b"ok")
        drained.result(PATIENCE)


def test_draining_aborts_what_takes_too_long() -> None:
    """A request that is still in flight after the grace period gets no response."""
    may_respond, has_request = threading.Event(), threading.Event()
    with (
        running_proxy(respond_to_slow_when(may_respond, has_request)) as proxy,
        proxy.connect() as stuck,
    ):
        stuck.send(get("/slow"))
        assert has_request.wait(PATIENCE)
        proxy.call(proxy.proxy.drain(0.3))
        with contextlib.suppress(ConnectionResetError):
            assert stuck.rest() == b""
        may_respond.set()
