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


async def close(_: Request) -> Response:
    return Response("bye", headers={"connection": "close"})


APP = Starlette(
    routes=[
        Route("/echo/{name}", echo, methods=["GET", "POST"]),
        Route("/stream", stream),
        Route("/close", close),
    ]
)


async def serve_one(request: bytes) -> bytes:
    """What a client of `APP` gets until the server closes the connection."""
    tasks: set[asyncio.Task[None]] = set()

    def handle(exchange: Exchange) -> None:
        send = AsgiSender(exchange, ((b"x-extra", b"yes"),))
        task = asyncio.get_running_loop().create_task(run_asgi(APP, exchange, make_scope(exchange), send))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

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
