"""What the proxy refuses: requests that two parsers may read differently, and what is too large."""

from __future__ import annotations

import contextlib

import pytest

from gusset.runtime.browser_rules import BrowserRules
from gusset.runtime.limits import Limits
from tests.containers.wire import (
    CHUNKED,
    HOST,
    OK,
    RunningProxy,
    Wire,
    cut,
    get,
    never_respond,
    running_proxy,
)
from tests.serving.conftest import eventually


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
        (["GET http://a/x HTTP/1.1"], 400),
        (["GET http://b@a/x HTTP/1.1", HOST], 400),
        (["GET http:///x HTTP/1.1", HOST], 400),
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
def test_an_ambiguous_request_is_refused(proxy: RunningProxy, lines: list[str], status: int) -> None:
    """None of it reaches the application, and the connection is closed."""
    heads = proxy.record_heads()
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    response = proxy.exchange(head, b"1\r\na\r\n0\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close\r\n" in response and b"x-baseten-error-code: 700\r\n" in response
    assert b'{"error":"' in response and response.count(b"HTTP/1.1") == 1
    assert heads == []


@pytest.mark.parametrize("lines", [[], ["A: " + "a" * 70_000], [HOST, "Content-Length: 999999999999"]])
def test_the_refusal_of_a_head_request_has_no_body(proxy: RunningProxy, lines: list[str]) -> None:
    """Its client would take the body for the next response."""
    head = "\r\n".join(["HEAD /x HTTP/1.1", *lines, "", ""]).encode()
    response = proxy.exchange(head)
    assert response.startswith(b"HTTP/1.1 4")
    assert response.endswith(b"\r\n\r\n") and response.count(b"\r\n\r\n") == 1


def test_a_tls_handshake_gets_400_at_once(proxy: RunningProxy) -> None:
    """The proxy does not wait for the end of a line that will never come."""
    assert proxy.exchange(b"\x16\x03\x01\x02\x00\x01").startswith(b"HTTP/1.1 400 ")


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
@pytest.mark.parametrize("at_once", [True, False])
def test_an_ambiguous_chunk_is_refused(proxy: RunningProxy, body: bytes, at_once: bool) -> None:
    """The application gets a request that breaks off before the ambiguous place."""
    received: list[bytes] = []
    following = get("/following")

    def handle(wire: Wire) -> None:
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while part := wire.sock.recv(65_536):
                data += part
                if data == following:
                    wire.send(OK)
        received.append(data)

    proxy.handle_with(handle)
    before = proxy.application.connections
    head = get("/x", CHUNKED, method="POST") + b"2\r\nok\r\n"
    smuggled = b"\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    pieces = [head + body + smuggled] if at_once else [head, *cut(body, range(60)), smuggled]
    response = proxy.exchange(*pieces)
    assert response.startswith(b"HTTP/1.1 4") and response.count(b"HTTP/1.1") == 1
    # A connection for the refused request, if there was one, is accepted before that of the next.
    assert proxy.exchange(get("/following", "Connection: close")).startswith(OK[:15])
    connections = proxy.application.connections - before
    eventually(lambda: len(received) == connections, "the application has read the refused request")
    received.remove(following)
    assert all((head + body).startswith(part) for part in received)
    assert not any(part.endswith(b"\n0\r\n\r\n") for part in received)


def test_an_announced_body_over_the_limit_gets_413(proxy: RunningProxy) -> None:
    """Nothing of the request reaches the application."""
    heads = proxy.record_heads()
    response = proxy.exchange(get("/x", f"Content-Length: {100 * 1024 * 1024 + 1}", method="POST"))
    assert response.startswith(b"HTTP/1.1 413 ")
    assert heads == []


@pytest.mark.parametrize(
    "pieces",
    [
        [b"3e8\r\n" + b"x" * 1000 + b"\r\n", b"1\r\nx\r\n"],
        [b"3e9\r\n" + b"x" * 1001 + b"\r\n"],
    ],
)
def test_a_chunked_body_over_the_limit_gets_413(pieces: list[bytes]) -> None:
    """As soon as the limit is exceeded: its length is not known before."""
    with running_proxy(never_respond, Limits(body=1000)) as proxy:
        response = proxy.exchange(get("/x", CHUNKED, method="POST"), *pieces)
    assert response.startswith(b"HTTP/1.1 413 ")


def test_web_pages_of_other_sites_are_refused_and_allowed_ones_may_read_the_response() -> None:
    """By the rules that hold for Python models; nothing of a refused request reaches the application."""
    rules = BrowserRules.make("127.0.0.1", hosts=("models.example",), origins=("https://app.example",))
    with running_proxy(browser_rules=rules) as proxy:
        for fields, status in (
            ((), 200),
            (("Origin: https://evil.example",), 403),
            (("oRIGIN:null",), 403),
            (("Sec-Fetch-Site: cross-site",), 403),
            (("Origin: https://app.example", "Sec-Fetch-Site: cross-site"), 200),
        ):
            with proxy.connect() as client:
                lines = ["GET /x HTTP/1.1", "Host: localhost", *fields, "", ""]
                client.send("\r\n".join(lines).encode())
                got, head, _ = client.response()
                assert (fields, got) == (fields, status)
                assert (b"access-control-allow-origin: https://app.example" in head) == (
                    "app" in "".join(fields)
                )
        for target, host, status in (
            ("/x", "models.example", 200),
            ("/x", "evil.example", 421),
            ("http://models.example/x", "evil.example", 200),  # the target's host counts
            ("http://evil.example/x", "models.example", 421),
        ):
            with proxy.connect() as client:
                client.send(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert (target, host, client.response()[0]) == (target, host, status)
