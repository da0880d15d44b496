"""The proxy's parser compared with h11 and llhttp: all must find the same end of a message."""

from __future__ import annotations

import contextlib

import h11
import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gusset.containers.proxy.http_messages import (
    ChunkedBody,
    FixedLengthBody,
    InvalidMessage,
    end_of_head,
    read_request,
    read_response,
)

NAMES = [
    "Content-Length",
    "Transfer-Encoding",
    "Host",
    "Connection",
    "Upgrade",
    "TE",
    "A",
    "content_length",
    "",
]
VALUES = [
    "0",
    "3",
    "+3",
    "3, 3",
    "chunked",
    "Chunked",
    "chunked, chunked",
    "identity",
    "a",
    "close",
    "upgrade",
    "websocket",
    "",
]
ODD = [
    "",
    "",
    "",
    "",
    " ",
    "\t",
    "\r",
    "\n",
    "\0",
    "\x0b",
    "\x0c",
    "\x85",
    "\xa0",
    "\r\n",
    "\r\n ",
    ";",
    ":",
    ",",
]
FIELD = st.tuples(
    *map(
        st.sampled_from,
        (ODD, NAMES, ODD, [":", ":", ": "], ODD, VALUES, ODD, ["\r\n", "\r\n", "\r\n", "\n", "\r"]),
    )
).map("".join)
LINE = st.sampled_from(
    ["POST /x HTTP/1.1", "GET /x HTTP/1.1", "GET /x HTTP/1.0", "GET  /x HTTP/1.1", "GET /x\tHTTP/1.1"]
)
BODY = st.lists(
    st.sampled_from(
        [b"0", b"3", b"a", b"abc", b"\r\n", b"\r\n", b"\n", b"\r", b";", b"=", b'"', b" ", b"A:b", b"\0"]
    ),
    max_size=14,
).map(b"".join)


def read(data: bytes) -> tuple[bytes, bytes, bytes] | None:
    """The head and the body that the proxy forwards, and the bytes after them; None if it refuses the request."""
    try:
        end = end_of_head(data)
        if end < 0:
            return None
        request = read_request(data[:end])
        body, rest = request.body.feed(data[end:])
    except InvalidMessage:
        return None
    head = b"%b %b HTTP/1.1%b" % (request.method, request.target, request.fields)
    return (head, body, rest) if request.body.done else None


class ParsedByHttptools:
    """The body of a request, and the number of requests, as httptools reads them."""

    def __init__(self, data: bytes) -> None:
        self.body = b""
        self.count = 0
        parser = httptools.HttpRequestParser(self)
        with contextlib.suppress(httptools.HttpParserUpgrade):
            parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.count += 1


def content(data: bytes) -> bytes:
    """The body of the one request, as h11 reads it."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1_000_000)
    connection.receive_data(data)
    assert isinstance(connection.next_event(), h11.Request)
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    assert connection.trailing_data[0] == b""
    return body


@pytest.mark.slow
@settings(deadline=None, max_examples=1_500)
@given(LINE, st.lists(FIELD, max_size=4), BODY)
@example(
    "POST /x HTTP/1.1",
    ["Host: a\r\n", "Transfer-Encoding: chunked\r\n"],
    b"3;a\r\nabc\r\n0\r\nA:b\r\n\r\nrest",
)
@example("POST /x HTTP/1.1", ["Host: a\r\n", "Content-Length: 3\r\n"], b"abcrest")
def test_a_forwarded_request_is_one_request_to_other_parsers(
    line: str, fields: list[str], body: bytes
) -> None:
    """h11 and llhttp find one request in it, with the same body, and nothing after it."""
    sent = "".join([line, "\r\n", *fields, "\r\n"]).encode("latin-1") + body
    forwarded = read(sent)
    if forwarded is None:
        return
    head, raw, rest = forwarded
    assert sent.endswith(raw + rest)
    assert head.lower().count(b"\r\nhost:") == 1
    parsed = ParsedByHttptools(head + raw)
    assert parsed.count == 1
    assert parsed.body == content(head + raw)


@pytest.mark.parametrize("cut", range(1, 40))
def test_chunks_may_be_cut_anywhere(cut: int) -> None:
    """What is forwarded never ends within a line of framing."""
    raw = b"3;a=b\r\nabc\r\n00a\r\n0123456789\r\n0;x\r\nA: b\r\n\r\n"
    body = ChunkedBody()
    forwarded, rest = body.feed(raw[:cut])
    assert raw.startswith(forwarded) and not rest
    assert len(forwarded) in {0, 7, 8, 9, 10, 12, *range(17, 28), 29, 34, 40, 42}
    assert forwarded + body.feed(raw[cut:] + b"next")[0] == raw
    assert body.done and body.size == 13


def test_an_empty_body_is_complete_at_once() -> None:
    """Without a wait for more bytes."""
    assert FixedLengthBody(0).done


@pytest.mark.parametrize("status", [100, 101, 103, 199, 204, 304])
def test_responses_with_these_statuses_have_no_body(status: int) -> None:
    """Even with a Content-Length."""
    request = read_request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    head = b"HTTP/1.1 %d x\r\nContent-Length: 5\r\n\r\n" % status
    assert read_response(head, request).body.done
