"""The proxy between usual clients and a usual server: httpx and websockets in front, uvicorn behind."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
import websockets.sync.client as websocket_client
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.exceptions import InvalidStatus

from tests.containers.wire import running_proxy
from tests.serving.conftest import PATIENCE


async def stream_back(request: Request) -> StreamingResponse:
    """Respond with the request's body, in parts of another size."""
    body = await request.body()
    return StreamingResponse((body[n : n + 999] for n in range(0, len(body), 999)), headers={"x-seen": "é"})


async def send_back_twice(websocket: WebSocket) -> None:
    """Send each message back, repeated."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text * 2)


APP = Starlette(
    routes=[Route("/infer", stream_back, methods=["POST"]), WebSocketRoute("/infer", send_back_twice)]
)


@pytest.fixture(scope="module", params=["h11", "httptools"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """The host and port of a proxy in front of uvicorn, which parses HTTP with the given library."""
    sock = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(APP, http=request.param, ws="websockets-sansio", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        with running_proxy() as proxy:
            proxy.application.close()
            proxy.application.port = sock.getsockname()[1]
            yield f"127.0.0.1:{proxy.port}"
    finally:
        server.should_exit = True
        thread.join()
        sock.close()


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 3, 3_000_000])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_httpx_gets_what_it_uploads(address: str, size: int, is_streamed: bool) -> None:
    """The request's body has a length or is chunked; the response is streamed."""
    body = b"x" * size
    with httpx.Client(base_url=f"http://{address}", trust_env=False) as client:
        content = iter([body[:10], body[10:]]) if is_streamed else body
        response = client.post("/v1/models/model:predict", content=content)
        assert (response.status_code, response.content) == (200, body)
        assert response.headers["x-seen"] == "é"
        assert client.get("/predict").status_code == 405  # on the same connection


@pytest.mark.parametrize("text", ["a", "é" * 70_000])
def test_a_websocket_gets_its_messages(address: str, text: str) -> None:
    """Short and long ones."""
    with websocket_client.connect(f"ws://{address}/v1/websocket", proxy=None) as websocket:
        for _ in range(2):
            websocket.send(text)
            assert websocket.recv(PATIENCE) == text * 2


def test_a_websocket_without_a_route_is_refused(address: str) -> None:
    """The client gets the server's refusal."""
    with pytest.raises(InvalidStatus):
        websocket_client.connect(f"ws://{address}/nothing", proxy=None)
