"""ASGI applications on gusset's HTTP server."""

from __future__ import annotations

import asyncio
import socket

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gusset.runtime.asgi import AsgiSender, make_scope, run_asgi
from gusset.runtime.exchange import Exchange
from gusset.runtime.http_server import HttpServer


async def echo(request: Request) -> Response:
    return JSONResponse([request.method, request.url.path, (await request.body()).decode()])


async def stream(_: Request) -> Response:
    return StreamingResponse(iter([b"one", b"two"]), media_type="text/plain")


async def views(request: Request) -> Response:
    """Bytes, seen as two numbers of two bytes each."""
    view = memoryview(b"ABCD").cast("H")
    return StreamingResponse(iter([view])) if request.url.query else Response(view)


async def close(_: Request) -> Response:
    return Response("bye", headers={"connection": "close"})


async def odd(request: Request) -> Response:
    """Responses whose end is where the head does not say."""
    what = request.path_params["what"]
    if what.startswith("stream"):
        length = "9" if what == "stream-too-short" else "2"
        return StreamingResponse(iter([b"he", b"llo"]), headers={"content-length": length})
    statuses = {"no-content": 204, "not-modified": 304, "interim": 199}
    headers = {
        "too-long": {"content-length": "2"},
        "too-short": {"content-length": "9"},
        "chunked": {"transfer-encoding": "chunked"},
        "upgrade": {"upgrade": "h2c", "connection": "upgrade"},
        "bad-name": {"a b": "1"},
        "bad-value": {"a": "b\0"},
    }.get(what, {})
    response = Response("hello", statuses.get(what, 200), headers)
    if what == "two-lengths":
        response.raw_headers += [(b"content-length", b"7")]
    return response


APP = Starlette(
    routes=[
        Route("/odd/{what}", odd),
        Route("/echo/{name}", echo, methods=["GET", "POST"]),
        Route("/stream", stream),
        Route("/views", views),
        Route("/close", close),
    ]
)


async def serve_one(request: bytes) -> bytes:
    """What a client of `APP` gets until the server closes the connection."""
    tasks: set[asyncio.Task[None]] = set()

    def handle(exchange: Exchange) -> None:
        send = AsgiSender(exchange, ((b"x-extra", b"yes"),))
        task = asyncio.get_running_loop().create_task(respond(exchange, send))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def respond(exchange: Exchange, send: AsgiSender) -> None:
        try:
            await run_asgi(APP, exchange, make_scope(exchange), send)
        except (ValueError, RuntimeError):
            if send.has_begun:
                exchange.cut()
            else:
                exchange.respond(500, b"")

    server = HttpServer(handle)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    await server.start(listener)
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(request)
    response = await reader.read()
    writer.close()
    await server.drain()
    return response


def talk(request: bytes) -> tuple[bytes, bytes]:
    """The head and the body of a response."""
    head, _, body = asyncio.run(serve_one(request)).partition(b"\r\n\r\n")
    return head, body


def test_an_application_gets_the_body_and_the_decoded_path() -> None:
    """And its response gets the additional headers."""
    head, body = talk(
        b"POST /echo/%C3%A9 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi"
    )
    assert body.decode() == '["POST","/echo/é","hi"]' and b"x-extra: yes" in head


FOLLOWED = b"GET /odd/%s HTTP/1.1\r\nHost: x\r\n\r\nGET /close HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("what", "status", "body"),
    [
        (b"too-long", b"200", b"hello"),
        (b"too-short", b"200", b"hello"),
        (b"chunked", b"200", b"hello"),
        (b"upgrade", b"200", b"hello"),
        (b"no-content", b"204", b""),
        (b"not-modified", b"304", b""),
        (b"interim", b"500", b""),
        (b"bad-name", b"500", b""),
        (b"bad-value", b"500", b""),
        (b"two-lengths", b"500", b""),
    ],
)
def test_an_application_cannot_confuse_where_its_response_ends(
    what: bytes, status: bytes, body: bytes
) -> None:
    """Not by a wrong length, other framing, or a body that there cannot be: another client may get the rest."""
    response = asyncio.run(serve_one(FOLLOWED % what))
    head, _, rest = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert head.count(b"content-length") <= 1 and b"transfer-encoding" not in head and b"upgrade" not in head
    assert rest.startswith(body + b"HTTP/1.1 200 ") and rest.endswith(b"bye")


@pytest.mark.parametrize(("what", "sent"), [(b"stream-too-long", b"he"), (b"stream-too-short", b"hello")])
def test_a_stream_of_another_length_than_declared_ends_the_connection(what: bytes, sent: bytes) -> None:
    """Nothing beyond the declared length is sent, and no other response follows."""
    response = asyncio.run(serve_one(FOLLOWED % what))
    assert response.startswith(b"HTTP/1.1 200 ") and response.endswith(b"\r\n\r\n" + sent)


def test_a_stream_is_sent_in_chunks() -> None:
    """Its length is not known in advance."""
    head, body = talk(b"GET /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b"transfer-encoding: chunked" in head and body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"


@pytest.mark.parametrize("path", [b"/echo/x", b"/stream"])
def test_head_gets_no_body(path: bytes) -> None:
    """Neither whole nor in chunks."""
    head, body = talk(b"HEAD %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path)
    assert head.startswith(b"HTTP/1.1 200 ") and body == b""


def test_an_http_1_0_client_gets_a_stream_without_chunks() -> None:
    """It would take their sizes for content."""
    head, body = talk(b"GET /stream HTTP/1.0\r\n\r\n")
    assert b"transfer-encoding" not in head and body == b"onetwo"


def test_an_application_can_close_the_connection() -> None:
    """The header is sent once, and the server closes although the client would stay."""
    head, body = talk(b"GET /close HTTP/1.1\r\nHost: x\r\n\r\n")
    assert head.count(b"connection: close") == 1 and body == b"bye"


def test_a_body_may_be_a_memoryview() -> None:
    """Which Starlette passes on as it is: an image without a copy. Its length is that of its bytes."""
    head, body = talk(b"GET /views HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b"content-length: 4" in head and body == b"ABCD"
    _, body = talk(b"GET /views?parts HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert body == b"4\r\nABCD\r\n0\r\n\r\n"
