"""The routes of `gusset serve` behind Ray's proxy: the same folder gives the same responses on both servers."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.cli.test_serve import served
from tests.conftest import Cli
from tests.ray.conftest import Cluster, clean_environ, eventually, write_folder

VALUE = b"canary-of-the-http-tests-57"
KEY = b"key-of-a-caller-0123456789"
CONFIG = "model_name: {name}\nsecrets:\n  token: null\n"
MODEL = """\
import asyncio
import time
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse


class Model:
    def __init__(self, **kwargs):
        self.secrets = kwargs["secrets"]

    def predict(self, inputs, request: Request):
        action = inputs.pop("do", "") if isinstance(inputs, dict) else ""
        if action == "raise":
            raise ValueError("no: " + self.secrets["token"])
        if action == "exit":
            raise SystemExit(self.secrets["token"])
        if action == "stream":
            return (f"part {number}\\n" for number in range(5))
        if action == "cut":
            return self.cut()
        if action == "teapot":
            return JSONResponse({"short": "stout"}, 418, {"x-own": "1"})
        return {"inputs": inputs, "query": str(request.query_params), "path": request.url.path}

    def cut(self):
        yield "first"
        raise RuntimeError(self.secrets["token"])

    async def hang(self, file):
        try:
            yield "begun"
            await asyncio.sleep(60)
        finally:
            Path(file).write_text("closed")

    async def wait(self, file):
        try:
            Path(file).write_text("begun")
            await asyncio.sleep(60)
        finally:
            Path(file).write_text("cancelled")

    async def chat_completions(self, inputs):
        if "wait" in inputs:
            return await self.wait(inputs["wait"])
        if "hang" in inputs:
            return self.hang(inputs["hang"])

        async def chunks():
            for number in range(3):
                yield f"data: {number}\\n\\n"

        return chunks() if inputs.get("stream") else {"object": "chat.completion"}

    def is_healthy(self):
        return True
"""
ECHO = """\
class Model:
    def __init__(self, **kwargs):
        self.secrets = kwargs["secrets"]

    async def websocket(self, websocket):
        async for text in websocket.iter_text():
            if text == "raise":
                raise ValueError(self.secrets["token"])
            await websocket.send_text(text.upper())
"""


class Pair:
    """The same folders, served by gusset alone and by Ray."""

    def __init__(self, alone: dict[str, str], by_ray: dict[str, str]) -> None:
        self.alone = alone
        self.by_ray = by_ray


@pytest.fixture(scope="module")
def pair(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    from gusset.ray import application

    folder = tmp_path_factory.mktemp("pair")
    values = folder / "values"
    values.mkdir()
    (values / "token").write_bytes(VALUE)
    (values / "caller").write_bytes(KEY)
    callers = "model_metadata:\n  gusset:\n    callers: [caller]\n"
    folders = {
        "model": write_folder(folder / "model", CONFIG.format(name="model"), MODEL),
        "echo": write_folder(folder / "echo", CONFIG.format(name="echo"), ECHO),
        "guarded": write_folder(folder / "guarded", CONFIG.format(name="guarded") + callers, MODEL),
        "guarded_echo": write_folder(
            folder / "guarded_echo", CONFIG.format(name="guarded_echo") + callers, ECHO
        ),
    }
    gusset = Cli(folder / "home", clean_environ(folder / "home", folder / "settings.toml"))
    with ExitStack() as stack:
        alone = {}
        for name, each in folders.items():
            options = (str(each), "--secrets-dir", str(values))
            alone[name], _ = stack.enter_context(served(gusset, *options, errors=folder / f"{name}.err"))
        made = {
            name: application(each, secrets_dir=str(values), ray_actor_options={"num_cpus": 0.5})
            for name, each in folders.items()
        }
        cluster.run(**made)
        yield Pair(alone, {name: f"{cluster.url}/{name}" for name in folders})


def seen(response: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    """What a client sees of a response, but for what the servers add of their own."""
    names = ("content-type", "content-length", "x-own", "allow", "www-authenticate", "retry-after")
    names += ("x-baseten-error-source", "x-baseten-error-code")
    headers = {name: response.headers[name] for name in names if name in response.headers}
    return response.status_code, response.content, headers


PREDICT = "/v1/models/model:predict"
CHAT = "/v1/chat/completions"
REQUESTS = [
    ("POST", PREDICT, {"json": {"a": [1, 2.5, None, "ü"]}}),
    ("POST", "/predict", {"json": {"a": 1}, "headers": {"x-baseten-request-id": "given"}}),
    ("POST", "/v1/models/model%3Apredict", {"json": {}}),
    ("POST", PREDICT, {"content": b"{not json"}),
    ("POST", PREDICT, {"content": b"\xff\xfe", "headers": {"content-type": "application/octet-stream"}}),
    ("POST", PREDICT, {"content": b"\x81\xa1a\x01", "headers": {"content-type": "application/octet-stream"}}),
    ("POST", PREDICT, {"json": {"do": "raise"}}),
    ("POST", PREDICT, {"json": {"do": "exit"}}),
    ("POST", PREDICT, {"json": {"do": "teapot"}}),
    ("POST", PREDICT, {"json": {"do": "stream"}}),
    ("POST", PREDICT, {"json": {"do": "stream"}, "headers": {"accept": "application/json"}}),
    ("POST", PREDICT, {"content": b"[" + b"1," * 300_000 + b"1]"}),
    ("POST", CHAT, {"json": {"stream": True}}),
    ("POST", CHAT, {"json": {}}),
    ("POST", "/v1/embeddings", {"json": {}}),
    ("GET", "/", {}),
    ("HEAD", "/", {}),
    ("GET", "/ping", {}),
    ("GET", "/v1/models/model", {}),
    ("GET", "/v1/models/model/loaded", {}),
    ("GET", "/v1/models/model/schema", {}),
    ("GET", PREDICT, {}),
    ("GET", "/nowhere", {}),
    ("GET", "/v1/websocket", {}),
    ("POST", "/async_predict", {"json": {}}),
    ("POST", "/production/predict", {"json": {"a": 1}}),
]


@pytest.mark.parametrize(
    ("method", "path", "options"), REQUESTS, ids=lambda value: str(value)[:40].replace("/", "_")
)
def test_a_request_gets_the_same_response(
    pair: Pair, method: str, path: str, options: dict[str, object]
) -> None:
    """Status, body and headers; no value in it."""
    responses = [
        httpx.request(method, address + path, timeout=30, trust_env=False, **options)  # type: ignore[arg-type]
        for address in (pair.alone["model"], pair.by_ray["model"])
    ]
    assert seen(responses[0]) == seen(responses[1])
    assert VALUE not in responses[1].content


def test_the_query_and_the_request_id_reach_the_model_and_the_client(pair: Pair) -> None:
    """The path that the model sees is the one below the application's prefix."""
    headers = {"x-baseten-request-id": "from-the-client"}
    url = f"{pair.by_ray['model']}/predict?a=1&b=%20"
    response = httpx.post(url, json={}, headers=headers, trust_env=False)
    assert response.json() == {"inputs": {}, "query": "a=1&b=+", "path": "/predict"}
    assert response.headers["x-baseten-request-id"] == "from-the-client"


def test_a_stream_that_fails_is_cut_on_both(pair: Pair) -> None:
    """The client sees that it is incomplete."""
    for address in (pair.alone["model"], pair.by_ray["model"]):
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(address + PREDICT, json={"do": "cut"}, trust_env=False)


def test_a_client_that_leaves_ends_its_stream(pair: Pair, tmp_path: Path) -> None:
    """The model's generator is closed."""
    file = tmp_path / "closed"
    with (
        httpx.Client(trust_env=False, timeout=30) as client,
        client.stream("POST", pair.by_ray["model"] + CHAT, json={"hang": str(file)}) as response,
    ):
        assert next(response.iter_raw()) == b"begun"
    eventually(file.exists, "the end of the generator", 20)


def test_a_client_that_leaves_cancels_its_request(pair: Pair, tmp_path: Path) -> None:
    """The model's coroutine is cancelled before it has returned anything."""
    file = tmp_path / "cancelled"
    url = httpx.URL(pair.by_ray["model"] + CHAT)
    body = json.dumps({"wait": str(file)}).encode()
    with socket.create_connection((url.host, url.port or 80)) as client:
        head = (
            f"POST {url.raw_path.decode()} HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: application/json\r\n"
        )
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        eventually(file.exists, "the start of the coroutine", 60)
    eventually(lambda: file.read_text() == "cancelled", "the end of the coroutine", 60)


def test_websockets_behave_alike(pair: Pair) -> None:
    """Messages, an error of the method, and a model without websockets."""
    for address in (pair.alone, pair.by_ray):
        urls = {name: each.replace("http", "ws") + "/v1/websocket" for name, each in address.items()}
        with connect(urls["echo"]) as websocket:
            websocket.send("hello")
            assert websocket.recv() == "HELLO"
            websocket.send("raise")
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv()
            assert closed.value.rcvd and closed.value.rcvd.code == 1011
            assert VALUE.decode() not in closed.value.rcvd.reason
        with connect(urls["model"]) as websocket, pytest.raises(ConnectionClosed) as closed:
            websocket.recv()
        assert closed.value.rcvd and closed.value.rcvd.code == 1003


def test_only_callers_are_served(pair: Pair) -> None:
    """Without a key 401 on both, for websockets too; probes are open."""
    for address in (pair.alone, pair.by_ray):
        guarded, good = address["guarded"], {"authorization": f"Api-Key {KEY.decode()}"}
        assert httpx.post(guarded + PREDICT, json={}, trust_env=False).status_code == 401
        assert httpx.post(guarded + PREDICT, json={}, headers=good, trust_env=False).status_code == 200
        assert httpx.get(guarded + "/v1/models/model", trust_env=False).status_code == 200
        socket = address["guarded_echo"].replace("http", "ws") + "/v1/websocket"
        with pytest.raises(InvalidStatus) as refused:
            connect(socket)
        assert refused.value.response.status_code == 401
        with connect(socket, additional_headers=good) as websocket:
            websocket.send("a")
            assert websocket.recv() == "A"


def test_metrics_count_the_requests_of_the_replica(pair: Pair) -> None:
    """By route and status, as on one machine."""
    httpx.post(pair.by_ray["model"] + PREDICT, json={}, trust_env=False)
    text = httpx.get(pair.by_ray["model"] + "/metrics", trust_env=False).text
    assert 'gusset_requests_total{route="predict",status="200"}' in text
