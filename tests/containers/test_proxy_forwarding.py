"""Requests and responses are forwarded byte for byte, to the application's own paths, without hop-by-hop fields."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gusset.containers.proxy.proxy import Routes
from tests.containers.wire import (
    CHUNKED,
    OK,
    SWITCHING,
    RunningProxy,
    Wire,
    cut,
    get,
    respond_with,
    running_proxy,
)

NAME = st.text("!#$%&'*+-.^_`|~0123456789abcXYZ", min_size=1, max_size=12).map(lambda t: "x-" + t)
VALUE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=30).map(
    lambda t: t.replace("\x7f", "").replace("\x80", "")
)
FIELDS = st.lists(st.tuples(NAME, st.sampled_from([": ", ":", ":\t "]), VALUE).map("".join), max_size=8)
CONTENT = st.binary(max_size=300) | st.binary(min_size=1, max_size=9).map(lambda b: b * 40_000)
EXTENSION = st.sampled_from([b"", b"", b"", b";a", b";a=b", b' ; q="x y"'])
OFFSETS = st.lists(st.integers(0, 2_000), max_size=5)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[list[str], bytes]:
    """The fields that frame a body, and the body with its framing."""
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
    """A message with these and other fields, in any order."""
    framing, body = draw(bodies())
    lines = draw(st.permutations([*fields, *framing, *draw(FIELDS)]))
    return "\r\n".join([first_line, *lines, "", ""]).encode("latin-1") + body


REQUESTS = messages("POST /some/where?a=%20b&a HTTP/1.1", "Host: example.com:80")
RESPONSES = messages("HTTP/1.1 203 Something else", "Server: x")


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(REQUESTS, OFFSETS, RESPONSES, OFFSETS), min_size=1, max_size=3))
def test_messages_arrive_as_they_were_sent(
    proxy: RunningProxy, exchanges: list[tuple[bytes, list[int], bytes, list[int]]]
) -> None:
    """Order, case and spaces of fields, duplicates, chunks, extensions and trailers are all unchanged."""
    received: list[bytes] = []

    def handle(wire: Wire) -> None:
        for request, _, response, offsets in exchanges:
            received.append(wire.exactly(len(request)))
            wire.send(*cut(response, offsets))
        wire.rest()

    proxy.handle_with(handle)
    with proxy.connect() as client:
        for request, offsets, response, _ in exchanges:
            client.send(*cut(request, offsets))
            assert client.exactly(len(response)) == response
    assert received == [request for request, *_ in exchanges]


@pytest.mark.parametrize(
    ("path", "forwarded"),
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
        ("http://a", "/is/alive"),
        ("https://a?x=1", "/is/alive?x=1"),
    ],
)
def test_a_path_of_truss_becomes_the_applications(proxy: RunningProxy, path: str, forwarded: str) -> None:
    """The query stays, and every other path is forwarded unchanged."""
    heads = proxy.record_heads()
    proxy.exchange(get(path, "Connection: close"))
    assert heads == [get(forwarded)]


def test_the_host_of_a_target_in_absolute_form_replaces_the_field(proxy: RunningProxy) -> None:
    """As RFC 9112, 3.2.2 demands, also where HTTP/1.0 has no Host."""
    heads = proxy.record_heads()
    for sent in (get("http://b:81/x?y"), b"GET http://b:81/x?y HTTP/1.0\r\n\r\n"):
        with proxy.connect() as client:
            client.send(sent)
            assert client.response()[0] == 200
    assert heads == [b"GET /x?y HTTP/1.1\r\nHost: b:81\r\n\r\n"] * 2


def test_the_query_of_an_endpoint_comes_before_that_of_a_request() -> None:
    """The application gets both."""
    with running_proxy(routes=Routes("/infer?v=2", "/r", "/l")) as proxy:
        heads = proxy.record_heads()
        proxy.exchange(get("/predict?a=1"), get("/predict", "Connection: close"))
    assert heads == [get("/infer?v=2&a=1"), get("/infer?v=2")]


@pytest.mark.parametrize(
    ("sent", "forwarded"),
    [
        (["Connection: keep-alive"], []),
        (["A: 1", "Connection: close", "Keep-Alive: 5", "B: 2"], ["A: 1", "B: 2"]),
        (["TE: trailers", "Proxy-Connection: close", "Proxy-Authorization: x", "Te-a: 1"], ["Te-a: 1"]),
        (["Hop: 1", "hop: 2", "Connection: HOP , close", "Hops: 3"], ["Hops: 3"]),
        (["Connection: a, Host, content-length,transfer-encoding", "A: 1"], []),
        (["Connection: a", "A: 1", "Connection: b", "B: 2", "C: 3"], ["C: 3"]),
        (["Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: x"], []),
        (["Upgrade: websocket"], []),
        (["Upgrade: h2c, other", "Connection: upgrade"], []),
    ],
)
def test_hop_by_hop_fields_of_a_request_are_removed(
    proxy: RunningProxy, sent: list[str], forwarded: list[str]
) -> None:
    """So are those that `Connection` lists, except for Host and the framing of the body."""
    heads = proxy.record_heads()
    with proxy.connect() as client:
        client.send(get("/x", *sent))
        assert client.response()[0] == 200
    assert heads == [get("/x", *forwarded)]


@pytest.mark.parametrize(
    "offers", [["websocket, h2c"], ["h2c,WebSocket"], ["h2c", "websocket"], ["websocket", "h2c"]]
)
def test_a_websocket_is_chosen_among_the_protocols_that_a_client_offers(
    proxy: RunningProxy, offers: list[str]
) -> None:
    """The application gets that offer alone: RFC 9110, 7.8."""
    heads = proxy.record_heads(SWITCHING)
    with proxy.connect() as client:
        client.send(get("/x", *(f"Upgrade: {offer}" for offer in offers), "Connection: upgrade"))
        assert client.head() == SWITCHING
    assert heads == [b"GET /x HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nHost: a\r\n\r\n"]


@pytest.mark.parametrize(
    ("framing", "body"), [("Content-Length: 4", b"body"), (CHUNKED, b"4\r\nbody\r\n0\r\n\r\n")]
)
def test_a_post_that_offers_h2c_is_forwarded_as_http_1_1(
    proxy: RunningProxy, framing: str, body: bytes
) -> None:
    """Clients such as Java's send this offer by default. The body arrives, the offer does not."""
    forwarded = get("/x", framing, "A: b", method="POST") + body
    received: list[bytes] = []

    def handle(wire: Wire) -> None:
        for _ in range(2):
            received.append(wire.exactly(len(forwarded)))
            wire.send(OK)

    proxy.handle_with(handle)
    offer = ["Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAB", "Connection: Upgrade, HTTP2-Settings"]
    with proxy.connect() as client:
        for _ in range(2):
            client.send(get("/x", framing, *offer, "A: b", method="POST"), body)
            assert client.exactly(len(OK)) == OK
    assert received == [forwarded] * 2


def test_hop_by_hop_fields_of_a_response_are_removed(proxy: RunningProxy) -> None:
    """An application that closes its connection does not close the client's."""
    fields = b"Connection: close, X-a\r\nKeep-Alive: 3\r\nX-A: 1\r\nUpgrade: h2c\r\n"
    proxy.handle_with(respond_with(OK[:17] + fields + OK[17:]))
    before = proxy.application.connections
    with proxy.connect() as client:
        for _ in range(2):
            client.send(get())
            assert client.exactly(len(OK)) == OK
    assert proxy.application.connections == before + 2
