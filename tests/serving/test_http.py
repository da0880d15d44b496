"""The server's HTTP: routes, errors, limits, and clients that behave badly."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from gusset.runtime.connections import Limits
from gusset.runtime.exchange import Exchange
from gusset.runtime.http_server import HttpServer
from tests.serving.conftest import ModelProject, RunningServer, eventually

ECHO = """
    class Model:
        def predict(self, x):
            if x == "fail":
                raise ValueError
            return x
    """


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One echoing server for the tests that leave it as it was."""
    project = ModelProject(tmp_path_factory.mktemp("echo"))
    served = project(ECHO).ready()
    yield served
    assert served.stop() == 0


def talk(served: RunningServer, *pieces: bytes) -> bytes:
    """Send raw bytes, end the sending, and read until the server closes."""
    with served.connect() as connection:
        for piece in pieces:
            connection.sendall(piece)
        answer = b""
        while data := connection.recv(65_536):
            answer += data
    return answer


def request(body: bytes = b"1", *headers: str, last: bool = False) -> bytes:
    lines = ["POST /predict HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    if last:
        lines.append("connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.parametrize("path", ["/predict", "/v1/models/model:predict", "/v1/models/other:predict"])
def test_predict_routes(echo: RunningServer, path: str) -> None:
    """The alias, and any name in the path, are the model."""
    response = httpx.post(echo.address + path + "?q=1", json={"a": [1, None, "é"]})
    assert (response.status_code, response.json()) == (200, {"a": [1, None, "é"]})


@pytest.mark.parametrize(
    ("path", "body"), [("/", True), ("/v1/models/model", {}), ("/v1/models/model/loaded", {})]
)
def test_probes(echo: RunningServer, path: str, body: object) -> None:
    """Liveness says true, readiness an empty object; HEAD gets the head alone."""
    response = echo.get(path)
    assert (response.status_code, response.json()) == (200, body)
    assert httpx.head(echo.address + path).content == b""


def test_an_unknown_path(echo: RunningServer) -> None:
    """404 has the body and the headers of every error."""
    response = echo.get("/nothing")
    assert (response.status_code, response.json()) == (404, {"error": "Not Found"})
    assert response.headers["x-baseten-error-code"] == "700"


def test_a_wrong_method(echo: RunningServer) -> None:
    """405 says which would be right."""
    response = echo.get("/predict")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"1 2", "Extra data: line 1 column 3 (char 2)"),
        (b'"\xff"', "'utf-8' codec can't decode byte 0xff in position 1: invalid start byte"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_invalid_json(echo: RunningServer, body: bytes, text: str) -> None:
    """400 with the place of the fault."""
    response = httpx.post(f"{echo.address}/predict", content=body)
    assert response.status_code == 400
    assert response.json() == {"error": f"Invalid JSON payload: {text}"}
    assert response.headers["x-baseten-error-code"] == "700"


def test_request_ids(echo: RunningServer) -> None:
    """The client's id comes back; without one there is a new one each time."""
    given = httpx.post(f"{echo.address}/predict", json=1, headers={"X-Baseten-Request-Id": "mine"})
    assert given.headers["x-baseten-request-id"] == "mine"
    made = {echo.predict(1).headers["x-baseten-request-id"] for _ in range(3)}
    assert len(made) == 3


def test_keep_alive(echo: RunningServer) -> None:
    """One connection serves many requests, failed ones among them."""
    with httpx.Client(base_url=echo.address) as client:
        for n in range(20):
            assert client.post("/predict", json=n).json() == n
            assert client.post("/predict", content=b"{").status_code == 400
            assert client.post("/predict", json="fail").status_code == 500


def test_pipelined_requests_are_answered_in_order(echo: RunningServer) -> None:
    """Many requests in one write come back one after the other."""
    many = b"".join(request(str(n).encode()) for n in range(200)) + request(b'"end"', last=True)
    answers = talk(echo, many).split(b"HTTP/1.1 ")[1:]
    bodies = [answer.partition(b"\r\n\r\n")[2] for answer in answers]
    assert bodies == [str(n).encode() for n in range(200)] + [b'"end"']


def test_a_request_in_small_pieces(echo: RunningServer) -> None:
    """It does not matter where the network cuts."""
    whole = request(b'{"a": "b"}', last=True)
    answer = talk(echo, *(whole[n : n + 1] for n in range(len(whole))))
    assert answer.endswith(b'{"a":"b"}')


def test_a_chunked_body(echo: RunningServer) -> None:
    """A body of unknown length arrives whole."""
    response = httpx.post(f"{echo.address}/predict", content=iter([b"[1,", b"2,", b"3]"]))
    assert response.json() == [1, 2, 3]


def test_expect_continue(echo: RunningServer) -> None:
    """A client that asks first is told to go on."""
    with echo.connect() as connection:
        head, _, body = request(b"[1]", "expect: 100-continue", last=True).partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("empty", ["expect:", "expect:  "])
def test_expect_nothing(echo: RunningServer, empty: str) -> None:
    """An empty header expects nothing, as if it were not there; anything unknown is refused."""
    assert talk(echo, request(b"[1]", empty, last=True)).startswith(b"HTTP/1.1 200 OK\r\n")
    assert talk(echo, request(b"[1]", "expect: tea", last=True)).startswith(b"HTTP/1.1 417 ")


def test_a_large_body(echo: RunningServer) -> None:
    """A megabyte goes both ways."""
    value = ["x" * 1000] * 1000
    assert echo.predict(value).json() == value


def test_many_at_once(echo: RunningServer) -> None:
    """A hundred clients at once each get their own answer."""
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda n: echo.predict(n).json(), range(100)))
    assert answers == list(range(100))


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"GET /\r\n bad\r\n\r\n", b"\0" * 10_000]
)
def test_garbage(echo: RunningServer, garbage: bytes) -> None:
    """What is not HTTP gets 400, and the connection ends."""
    answer = talk(echo, garbage)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert echo.get("/").status_code == 200


def test_two_lengths_are_refused(echo: RunningServer) -> None:
    """A request that two servers could read differently is not guessed at."""
    twice = b"POST /predict HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n1"
    assert talk(echo, twice).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("whole", [True, False])
def test_a_huge_head(echo: RunningServer, whole: bool) -> None:
    """431, whether the head comes to an end or not."""
    head = b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000 + (b"\r\n\r\n" if whole else b"")
    assert talk(echo, head).startswith(b"HTTP/1.1 431 ")


def test_a_huge_body_is_refused_by_its_length(echo: RunningServer) -> None:
    """413 before the body is sent."""
    head = b"POST /predict HTTP/1.1\r\ncontent-length: 200000000\r\n\r\n"
    answer = talk(echo, head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"].endswith("larger than 104857600 bytes.")


def test_a_client_that_leaves_the_queue(serve: ModelProject) -> None:
    """Whoever has gone before their turn is not computed for."""
    served = serve(
        """
        import pathlib, time
        class Model:
            seen = []
            def predict(self, x):
                self.seen.append(x)
                if isinstance(x, str):
                    pathlib.Path(f"{x}.started").touch()
                while isinstance(x, str) and not pathlib.Path(x).exists():
                    time.sleep(0.01)
                return self.seen
        """
    ).ready()
    go = serve.folder.parent / "go"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(served.predict, str(go))
        eventually(Path(f"{go}.started").exists, "the first request")
        with served.connect() as leaver:
            leaver.sendall(request(b"666"))
            assert served.get("/").status_code == 200  # by now it has been read
        assert served.get("/").status_code == 200
        go.touch()
        assert first.result().status_code == 200
    assert served.predict(2).json() == [str(go), 2]


def test_a_client_that_leaves_ends_its_coroutine(serve: ModelProject) -> None:
    """A coroutine that nobody waits for any more is cancelled, and its slot is free."""
    served = serve(
        """
        import asyncio
        class Model:
            cancelled = 0
            async def predict(self, x):
                if x == "hang":
                    try:
                        await asyncio.sleep(600)
                    except asyncio.CancelledError:
                        self.cancelled += 1
                        raise
                return self.cancelled
        """
    ).ready()
    with served.connect() as leaver:
        leaver.sendall(request(b'"hang"'))
        assert served.get("/").status_code == 200
    assert served.predict(1).json() == 1


# The limits themselves, with small numbers, on the protocol alone.


@asynccontextmanager
async def small_server(limits: Limits) -> AsyncIterator[tuple[str, int]]:
    def answer(exchange: Exchange) -> None:
        exchange.respond(200, exchange.body)

    server = HttpServer(answer, limits=limits)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    address = listener.getsockname()
    await server.start(listener)
    yield address
    await server.drain()


def exchange_with(limits: Limits, *pieces: bytes) -> bytes:
    async def run() -> bytes:
        async with small_server(limits) as (host, port):
            reader, writer = await asyncio.open_connection(host, port)
            for piece in pieces:
                writer.write(piece)
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            return answer

    return asyncio.run(run())


def test_a_slow_head_times_out() -> None:
    """A client that never finishes its head is answered 408 and cut off."""
    answer = exchange_with(Limits(head_seconds=0.2), b"GET / HTTP/1.1\r\nhost:")
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_slow_body_times_out() -> None:
    """The same for one that never finishes its body."""
    answer = exchange_with(Limits(body_seconds=0.2), b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\n12")
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_silent_connection_is_closed(sent: bytes) -> None:
    """Whoever says nothing, at first or after a response, is cut off without a word."""
    answer = exchange_with(Limits(head_seconds=0.2, idle_seconds=0.2), sent)
    assert answer.count(b"HTTP/1.1") == bool(sent)


def test_a_chunked_body_that_grows_too_large() -> None:
    """A length that nobody has told is limited as well."""
    chunk = b"a\r\n0123456789\r\n"
    head = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
    assert exchange_with(Limits(body=15), head, chunk, chunk).startswith(b"HTTP/1.1 413 ")


def test_idle_connections_do_not_delay_others(echo: RunningServer) -> None:
    """Two hundred connections that say nothing cost the others nothing."""
    idle = [echo.connect() for _ in range(200)]
    try:
        assert echo.predict(1).json() == 1
    finally:
        for connection in idle:
            connection.close()


def test_models_folder_serves(echo: RunningServer, serve: ModelProject) -> None:
    """The folders under tests/models are served as they are."""
    serve.folder = Path(__file__).parents[1] / "models" / "echo"
    assert serve().ready().predict({"a": 1}).json() == {"a": 1}


def test_a_body_is_never_taken_for_a_request(serve: ModelProject) -> None:
    """A request with a body that asks for another protocol is refused, and what follows is not looked at."""
    inner = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: %d\r\n\r\n"
    port = serve("class Model:\n    def predict(self, x):\n        return x\n").ready().port
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(head % len(inner) + inner)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    assert answer.count(b"HTTP/1.1 ") == 1 and answer.startswith(b"HTTP/1.1 400")


def test_an_error_that_cannot_be_logged_is_still_answered(serve: ModelProject) -> None:
    """A model that closes its standard error and fails does not take the model's thread with it."""
    served = serve(
        "import sys\nclass Model:\n    def predict(self, x):\n        sys.stderr.close()\n"
        "        error = SyntaxError('odd')\n        error.text = 5\n        raise error\n"
    ).ready()
    assert [served.predict({}).status_code for _ in range(3)] == [500, 500, 500]
