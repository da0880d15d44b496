"""The server's HTTP: routes, errors, limits, and clients that behave badly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop

from gusset.runtime.exchange import Exchange
from gusset.runtime.http_server import HttpServer, http_date
from gusset.runtime.limits import Limits
from gusset.runtime.responses import Response
from gusset.runtime.tls import ServerTls, TlsFiles
from tests.serving.conftest import PATIENCE, ModelProject, RunningServer, eventually
from tests.serving.test_callers import make_certificate, trusting

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
        response = b""
        while data := connection.recv(65_536):
            response += data
    return response


def request(body: bytes = b"1", *headers: str, last: bool = False) -> bytes:
    lines = ["POST /predict HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    if last:
        lines.append("connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.parametrize("path", ["/predict", "/v1/models/model:predict", "/v1/models/other:predict"])
def test_predict_responds_on_its_routes(echo: RunningServer, path: str) -> None:
    """The short path works, and so does any model name in the long one."""
    response = httpx.post(echo.address + path + "?q=1", json={"a": [1, None, "é"]})
    assert (response.status_code, response.json()) == (200, {"a": [1, None, "é"]})


@pytest.mark.parametrize(
    ("path", "body"), [("/", True), ("/v1/models/model", {}), ("/v1/models/model/loaded", {})]
)
def test_probes_respond_when_the_model_is_ready(echo: RunningServer, path: str, body: object) -> None:
    """Liveness is `true`, readiness an empty object; HEAD gets no body."""
    response = echo.get(path)
    assert (response.status_code, response.json()) == (200, body)
    assert httpx.head(echo.address + path).content == b""


def test_an_unknown_path_gets_404(echo: RunningServer) -> None:
    """With the body and the headers of every error."""
    response = echo.get("/nothing")
    assert (response.status_code, response.json()) == (404, {"error": "Not Found"})
    assert response.headers["x-baseten-error-code"] == "700"


def test_an_unsupported_method_gets_405(echo: RunningServer) -> None:
    """With the supported methods in Allow."""
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
def test_invalid_json_gets_400_with_the_position(echo: RunningServer, body: bytes, text: str) -> None:
    """The message is that of Python's json module."""
    response = httpx.post(f"{echo.address}/predict", content=body)
    assert response.status_code == 400
    assert response.json() == {"error": f"Invalid JSON payload: {text}"}
    assert response.headers["x-baseten-error-code"] == "700"


def test_a_response_carries_the_request_id(echo: RunningServer) -> None:
    """The client's own if it sends one, otherwise a new one each time."""
    given = httpx.post(f"{echo.address}/predict", json=1, headers={"X-Baseten-Request-Id": "mine"})
    assert given.headers["x-baseten-request-id"] == "mine"
    made = {echo.predict(1).headers["x-baseten-request-id"] for _ in range(3)}
    assert len(made) == 3


def test_a_connection_is_kept_open(echo: RunningServer) -> None:
    """One connection carries many requests, including failed ones."""
    with httpx.Client(base_url=echo.address) as client:
        for n in range(20):
            assert client.post("/predict", json=n).json() == n
            assert client.post("/predict", content=b"{").status_code == 400
            assert client.post("/predict", json="fail").status_code == 500


def test_responses_to_pipelined_requests_come_in_order(echo: RunningServer) -> None:
    """200 requests in one write."""
    many = b"".join(request(str(n).encode()) for n in range(200)) + request(b'"end"', last=True)
    responses = talk(echo, many).split(b"HTTP/1.1 ")[1:]
    bodies = [response.partition(b"\r\n\r\n")[2] for response in responses]
    assert bodies == [str(n).encode() for n in range(200)] + [b'"end"']


def test_a_request_may_arrive_byte_by_byte(echo: RunningServer) -> None:
    """It does not matter where the network splits it."""
    whole = request(b'{"a": "b"}', last=True)
    response = talk(echo, *(whole[n : n + 1] for n in range(len(whole))))
    assert response.endswith(b'{"a":"b"}')


def test_a_chunked_body_arrives_whole(echo: RunningServer) -> None:
    """The client does not know its length in advance."""
    response = httpx.post(f"{echo.address}/predict", content=iter([b"[1,", b"2,", b"3]"]))
    assert response.json() == [1, 2, 3]


def test_a_client_that_expects_100_continue_gets_it(echo: RunningServer) -> None:
    """It then sends the body and gets the response."""
    with echo.connect() as connection:
        head, _, body = request(b"[1]", "expect: 100-continue", last=True).partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("empty", ["expect:", "expect:  "])
def test_an_empty_expect_is_ignored_and_an_unknown_one_refused(echo: RunningServer, empty: str) -> None:
    """417 for an expectation that no server knows."""
    assert talk(echo, request(b"[1]", empty, last=True)).startswith(b"HTTP/1.1 200 OK\r\n")
    assert talk(echo, request(b"[1]", "expect: tea", last=True)).startswith(b"HTTP/1.1 417 ")


def test_a_large_body_goes_both_ways(echo: RunningServer) -> None:
    """One megabyte."""
    value = ["x" * 1000] * 1000
    assert echo.predict(value).json() == value


def test_a_hundred_concurrent_clients_get_their_own_responses(echo: RunningServer) -> None:
    """No response goes to another client."""
    with ThreadPoolExecutor(100) as pool:
        responses = list(pool.map(lambda n: echo.predict(n).json(), range(100)))
    assert responses == list(range(100))


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"GET /\r\n bad\r\n\r\n", b"\0" * 10_000]
)
def test_what_is_not_http_gets_400(echo: RunningServer, garbage: bytes) -> None:
    """And the connection is closed; the server goes on."""
    response = talk(echo, garbage)
    assert response.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert echo.get("/").status_code == 200


def test_two_lengths_are_refused(echo: RunningServer) -> None:
    """A request whose end two servers could see in different places is refused."""
    twice = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n1"
    assert talk(echo, twice).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("whole", [True, False])
def test_a_head_that_is_too_large_gets_431(echo: RunningServer, whole: bool) -> None:
    """Whether it ends or not."""
    head = b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 70_000 + (b"\r\n\r\n" if whole else b"")
    assert talk(echo, head).startswith(b"HTTP/1.1 431 ")


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(echo: RunningServer) -> None:
    """413, from its Content-Length."""
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 200000000\r\n\r\n"
    response = talk(echo, head)
    assert response.startswith(b"HTTP/1.1 413 ")
    assert json.loads(response.partition(b"\r\n\r\n")[2])["error"].endswith("larger than 104857600 bytes.")


def test_nothing_is_computed_for_a_client_that_left_the_queue(serve: ModelProject) -> None:
    """It disconnected before its request reached the model."""
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


def test_a_disconnect_cancels_the_coroutine(serve: ModelProject) -> None:
    """And frees its slot for the next request."""
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


# The server alone, with small limits.


@asynccontextmanager
async def small_server(limits: Limits, **options: Any) -> AsyncIterator[tuple[str, int]]:
    """A server that sends back each request's target and body."""

    def echo(exchange: Exchange) -> None:
        exchange.respond(200, b"%b?%b %b" % (exchange.path, exchange.query, exchange.body))

    server = HttpServer(echo, limits=limits, **options)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    address = listener.getsockname()
    await server.start(listener)
    yield address
    await server.drain()


def exchange_with(limits: Limits, *pieces: bytes, **options: Any) -> bytes:
    """All that a server with these limits sends to a client that sends `pieces`, until it closes."""

    async def run() -> bytes:
        async with small_server(limits, **options) as (host, port):
            reader, writer = await asyncio.open_connection(host, port)
            for piece in pieces:
                writer.write(piece)
            response = await reader.read()
            writer.close()
            await writer.wait_closed()
            return response

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("target", "seen"),
    [
        (b"/a/b?c=d", b"/a/b?c=d "),
        (b"http://example.com/a?b", b"/a?b "),
        (b"http://example.com", b"/? "),
        (b"/a?b=http://x/", b"/a?b=http://x/ "),
        (b"/a?b#c", b"/a?b "),
        (b"*", b"*? "),
    ],
)
def test_a_target_may_have_any_form(target: bytes, seen: bytes) -> None:
    """Proxies send the absolute form; a fragment is dropped."""
    response = exchange_with(Limits(), b"GET %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % target)
    assert response.startswith(b"HTTP/1.1 200 ") and response.endswith(b"\r\n\r\n" + seen)


@pytest.mark.parametrize("repeats", [1, 4])
def test_raw_bytes_in_a_target_are_refused_or_encoded(repeats: int) -> None:
    """What the versions of httptools do with them differs; handlers get ASCII in any case."""
    head = b"GET /\xff?\xc3\xa9=1 HTTP/1.1\r\nhost: x\r\n"
    response = exchange_with(Limits(), *[head + b"\r\n"] * (repeats - 1), head + b"connection: close\r\n\r\n")
    if not response.startswith(b"HTTP/1.1 400 "):
        assert response.count(b"\r\n\r\n/%FF?%C3%A9=1 ") == repeats


def test_a_head_decides_how_large_its_body_may_be() -> None:
    """By its path, here."""

    def limit(exchange: Exchange) -> int:
        return 5 if exchange.path == b"/small" else 10

    for path, length, status in ((b"/small", 6, b"413"), (b"/large", 6, b"200"), (b"/large", 11, b"413")):
        head = b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (
            path,
            length,
        )
        assert exchange_with(Limits(), head + b"x" * length, body_limit=limit)[9:12] == status


def test_a_request_can_be_refused_before_its_body_is_sent() -> None:
    """By its head alone; what is sent nevertheless is not taken for the next request."""

    def gate(exchange: Exchange) -> Response:
        return Response(401, b"no")

    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\nexpect: 100-continue\r\n\r\n"
    response = exchange_with(Limits(), head, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", gates=(gate,))
    assert response.startswith(b"HTTP/1.1 401 ") and response.count(b"HTTP/1.1") == 1
    assert b"connection: close" in response


def test_an_application_renders_refusals() -> None:
    """From the status and the reason; the request is None when its head was at fault."""

    def render(exchange: Exchange | None, status: int, text: str) -> Response:
        return Response(status, b"%r %b" % (exchange is None, text.encode()), b"text/plain")

    garbage = exchange_with(Limits(), b"\0\0\0\0", render_refusal=render)
    assert garbage.endswith(b"\r\n\r\nTrue Invalid HTTP request received.")
    large = exchange_with(
        Limits(body=1), b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n", render_refusal=render
    )
    assert large.endswith(b"\r\n\r\nFalse The request's body is larger than 1 bytes.")


def test_draining_aborts_what_takes_too_long() -> None:
    """A request that never gets a response ends with the given time."""

    async def run() -> bytes:
        waiting = asyncio.Event()
        server = HttpServer(lambda exchange: waiting.set())
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        await server.start(listener)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await waiting.wait()
        await server.drain(0.1)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        return b"drained"

    assert asyncio.run(run()) == b"drained"


def test_draining_waits_a_moment_for_tls_handshakes(tmp_path: Path) -> None:
    """A client that continues gets its response; a silent one does not delay the end."""
    chain, key = make_certificate(tmp_path, "server")

    async def run() -> bytes:
        server = HttpServer(lambda exchange: exchange.respond(200, b"served"))
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        address = listener.getsockname()
        await server.start(listener, tls=ServerTls.open(TlsFiles(chain, key)))
        _, silent = await asyncio.open_connection(*address)
        reader, writer = await asyncio.open_connection(*address)
        while len(server.connections) < 2:
            await asyncio.sleep(0.01)
        draining = asyncio.create_task(server.drain())
        await asyncio.sleep(0)
        await writer.start_tls(trusting(chain), server_hostname="127.0.0.1")
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        response = await reader.read()
        await asyncio.wait_for(draining, PATIENCE)
        for each in (silent, writer):
            each.close()
            with contextlib.suppress(OSError):
                await each.wait_closed()
        return response

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(run()).endswith(b"served")


def test_a_slow_head_gets_408() -> None:
    """A client that never finishes its head; the connection is closed."""
    response = exchange_with(Limits(head_seconds=0.2), b"GET / HTTP/1.1\r\nhost:")
    assert response.startswith(b"HTTP/1.1 408 ")


def test_a_slow_body_gets_408() -> None:
    """A client that never finishes its body."""
    response = exchange_with(
        Limits(body_seconds=0.2), b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n12"
    )
    assert response.startswith(b"HTTP/1.1 408 ")


def test_a_bug_at_the_deadline_of_a_connection_ends_that_one_only(caplog: pytest.LogCaptureFixture) -> None:
    """The deadlines of all others still count. The log has no message, which may hold a value."""

    def render(exchange: Exchange | None, status: int, text: str) -> Response:
        if exchange is not None:
            raise LookupError("s3cr3t")
        return Response(status, b"late", b"text/plain")

    async def run() -> list[bytes]:
        async with small_server(Limits(head_seconds=0.2, body_seconds=0.2), render_refusal=render) as address:
            responses = []
            for part in (b"content-length: 5\r\n\r\n", b"x-slow:"):
                reader, writer = await asyncio.open_connection(*address)
                writer.write(b"POST / HTTP/1.1\r\nhost: x\r\n" + part)
                async with asyncio.timeout(PATIENCE):
                    responses.append(await reader.read())
                writer.close()
        return responses

    aborted, late = asyncio.run(run())
    assert aborted == b"" and late.startswith(b"HTTP/1.1 408 ")
    assert "A bug in gusset: LookupError at test_http.py" in caplog.text
    assert "s3cr3t" not in caplog.text


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"])
def test_an_idle_connection_is_closed_without_a_response(sent: bytes) -> None:
    """New or after a response."""
    response = exchange_with(Limits(head_seconds=0.2, idle_seconds=0.2), sent)
    assert response.count(b"HTTP/1.1") == bool(sent)


def test_a_chunked_body_that_grows_too_large_gets_413() -> None:
    """The limit also holds without a Content-Length."""
    chunk = b"a\r\n0123456789\r\n"
    head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    assert exchange_with(Limits(body=15), head, chunk, chunk).startswith(b"HTTP/1.1 413 ")


def test_idle_connections_do_not_delay_others(echo: RunningServer) -> None:
    """Two hundred idle connections."""
    idle = [echo.connect() for _ in range(200)]
    try:
        assert echo.predict(1).json() == 1
    finally:
        for connection in idle:
            connection.close()


def test_the_model_of_the_tests_can_be_served(echo: RunningServer, serve: ModelProject) -> None:
    """tests/models/echo, as it is."""
    serve.folder = Path(__file__).parents[1] / "models" / "echo"
    assert serve().ready().predict({"a": 1}).json() == {"a": 1}


def test_a_body_is_never_taken_for_a_request(serve: ModelProject) -> None:
    """A request for a websocket that has a body is refused, and the body is not parsed as the next request."""
    inner = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
    head = b"GET /v1/websocket HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    head += b"content-length: %d\r\n\r\n"
    port = serve("class Model:\n    def predict(self, x):\n        return x\n").ready().port
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(head % len(inner) + inner)
        response = b""
        while piece := client.recv(65536):
            response += piece
    assert response.count(b"HTTP/1.1 ") == 1 and response.startswith(b"HTTP/1.1 400")


def test_an_error_that_cannot_be_logged_still_gets_a_response(serve: ModelProject) -> None:
    """A model that closes its standard error and fails does not end the model's thread."""
    served = serve(
        "import sys\nclass Model:\n    def predict(self, x):\n        sys.stderr.close()\n"
        "        error = SyntaxError('odd')\n        error.text = 5\n        raise error\n"
    ).ready()
    assert [served.predict({}).status_code for _ in range(3)] == [500, 500, 500]


@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: 3\r\n\r\nabc",
        b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"content-length: 3\r\nexpect: 100-continue\r\n\r\nabc",
    ],
)
@pytest.mark.parametrize("pieces", [1, 7])
def test_an_offer_of_http_2_is_ignored(framing: bytes, pieces: int) -> None:
    """Java's client and `curl --http2` make it with each first request; the body arrives all the same."""
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"
    sent = b"POST /one HTTP/1.1\r\nhost: x\r\n" + offer + framing
    sent += b"GET /two HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    size = -(-len(sent) // pieces)
    response = exchange_with(Limits(), *(sent[at : at + size] for at in range(0, len(sent), size)))
    assert response.count(b"HTTP/1.1 200 ") == 2
    assert response.count(b"100 Continue") <= 1
    assert b"/one? abc" in response and response.endswith(b"/two? ")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nHost: a\r\n\r\n", b"400"),
        (b"GET / HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n", b"400"),
        (b"GET / HTTP/1.0\r\n\r\n", b"200"),
        (b"GET / HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n", b"200"),
        (b"GET http://b/ HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", b"200"),
        (b"GET http://b/ HTTP/1.1\r\n\r\n", b"400"),
        (b"GET http://b/ HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", b"400"),
    ],
)
def test_a_request_has_one_host(head: bytes, status: bytes) -> None:
    """Without one, or with several, a check of the host could be bypassed."""
    assert exchange_with(Limits(), head)[9:12] == status


@pytest.mark.parametrize(
    "head",
    [
        b"HEAD /refused HTTP/1.1\r\nhost: x\r\n\r\n",
        b"HEAD / HTTP/1.1\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nhost: x\r\na: " + b"b" * 70_000 + b"\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999999\r\n\r\n",
    ],
)
def test_the_refusal_of_a_head_request_has_no_body(head: bytes) -> None:
    """Its client would take the body for the next response. It has the headers, and a GET gets the body."""

    def gate(exchange: Exchange) -> Response | None:
        return Response(403, b"no") if exchange.path == b"/refused" else None

    refused = exchange_with(Limits(), head, gates=(gate,))
    assert refused.startswith(b"HTTP/1.1 4") and refused.endswith(b"\r\n\r\n")
    assert refused.count(b"\r\n\r\n") == 1
    following = head.replace(b"HEAD", b"GET", 1) + b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n"
    headers, _, body = exchange_with(Limits(), following, gates=(gate,)).partition(b"\r\n\r\n")
    assert b"content-length: %d\r\n" % len(body) in headers and body


def test_the_host_of_a_target_in_absolute_form_replaces_the_header() -> None:
    """What looks at the host sees the one that the request is for."""

    def gate(exchange: Exchange) -> Response:
        return Response(403, exchange.header(b"host") or b"none")

    for target in (b"http://real:81/a", b"http://user@real:81", b"https://real:81?q=/"):
        response = exchange_with(Limits(), b"GET %b HTTP/1.1\r\nhost: other\r\n\r\n" % target, gates=(gate,))
        assert response.endswith(b"\r\n\r\nreal:81")


def test_trailers_are_never_headers() -> None:
    """They are dropped: one could otherwise add an Authorization that a proxy in front had removed."""

    def gate(exchange: Exchange) -> Response | None:
        return Response(403, b"has it") if exchange.header(b"authorization") else None

    body = b"3\r\nabc\r\n0\r\nAuthorization: x\r\nX-Request-Id: y\r\n\r\n"
    sent = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n" + body
    response = exchange_with(Limits(), sent, gates=(gate,))
    assert response.startswith(b"HTTP/1.1 200 ") and response.endswith(b"/? abc")


@pytest.mark.parametrize(
    "part",
    [
        b"0\r\nX: " + b"y" * 100_000,
        b"0\r\n" + b"X: y\r\n" * 20_000,
        b"1;" + b"e" * 100_000,
        (b"1;" + b"e" * 5000 + b"\r\na\r\n") * 20,
    ],
)
def test_trailers_and_chunk_extensions_that_are_too_large_get_431(part: bytes) -> None:
    """In one long field or in many; nothing of them is kept."""
    head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"
    pieces = [part[at : at + 8192] for at in range(0, len(part), 8192)]
    assert exchange_with(Limits(head=16_384), head, *pieces)[9:12] == b"431"


def test_large_bodies_are_bounded_in_all_and_released_after_their_response() -> None:
    """Of one address, half of the memory; beyond it the client is told to try again later."""
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    last = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    fits = head % 90_000 + b"x" * 90_000
    response = exchange_with(Limits(memory=200_000), fits, fits, fits, last)
    assert response.count(b"HTTP/1.1 200 ") == 4
    response = exchange_with(Limits(memory=200_000), head % 120_000 + b"x" * 120_000)
    assert response.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1\r\n" in response
    together = [head % 90_000 + b"x" * 89_999, head % 90_000 + b"x" * 90_000]
    first, second = at_the_same_time(Limits(memory=200_000), *together)
    assert (first, second[9:12]) == (b"", b"503")


def at_the_same_time(limits: Limits, waiting: bytes, whole: bytes) -> tuple[bytes, bytes]:
    """What a client has got that has sent `waiting`, when another one has got all for `whole`."""

    async def run() -> tuple[bytes, bytes]:
        async with small_server(limits) as (host, port):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(waiting)
            await writer.drain()
            other, other_writer = await asyncio.open_connection(host, port)
            other_writer.write(whole)
            second = await other.read()
            other_writer.close()
            await other_writer.wait_closed()
            writer.write_eof()
            first = await reader.read()
            writer.close()
            await writer.wait_closed()
            return first, second

    return asyncio.run(run())


PIPELINED = [
    pytest.param(
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n" + b"x" * 9000, 11, id="bodies"
    ),
    pytest.param(b"GET / HTTP/1.1\r\nhost: x\r\nx: %b\r\n\r\n" % (b"x" * 9000), 11, id="heads"),
    pytest.param(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", 60, id="many"),
]


@pytest.mark.parametrize(("request_", "times"), PIPELINED)
def test_requests_that_wait_for_others_of_their_connection_are_bounded(request_: bytes, times: int) -> None:
    """However small each is: with their heads, their bodies and the objects that they become."""

    async def run() -> bytes:
        handled: list[Exchange] = []
        server = HttpServer(handled.append, limits=Limits(memory=200_000))
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        address = listener.getsockname()
        await server.start(listener)
        reader, writer = await asyncio.open_connection(*address)
        writer.write(request_ * times)
        await writer.drain()
        other, other_writer = await asyncio.open_connection(*address)
        other_writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n" + b"x" * 9000)
        refused = await asyncio.wait_for(other.read(), PATIENCE)
        while handled:
            handled.pop(0).respond(200, b"")
        assert (await asyncio.wait_for(reader.read(), PATIENCE)).count(b"HTTP/1.1 503 ") == 1
        for each in (writer, other_writer):
            each.close()
            await each.wait_closed()
        await server.drain(0)
        return refused

    response = asyncio.run(run())
    assert response.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1\r\n" in response


@pytest.mark.parametrize(
    "sent",
    [
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9001\r\n\r\n" + b"x" * 9000,
        b"GET / HTTP/1.1\r\nhost: x\r\nx: %b" % (b"x" * 9000),
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\nx: %b\r\n\r\n" % (b"x" * 9000),
    ],
    ids=["bodies", "heads", "heads of bodies"],
)
def test_what_many_connections_have_sent_is_bounded(sent: bytes) -> None:
    """Small parts of requests add up. The memory is released when their connections end."""

    whole = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 9000\r\n\r\n" + b"x" * 9000

    async def status(address: tuple[str, int]) -> bytes:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(whole)
        response = await reader.read()
        await close(writer)
        return response[9:12]

    async def close(writer: asyncio.StreamWriter) -> None:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def run() -> None:
        async with asyncio.timeout(PATIENCE), small_server(Limits(memory=200_000)) as address:
            waiting = [await asyncio.open_connection(*address) for _ in range(11)]
            for _, writer in waiting:
                writer.write(sent)
                await writer.drain()
            assert await status(address) == b"503"
            for _, writer in waiting:
                await close(writer)
            while await status(address) != b"200":  # the server has not noticed all ends yet
                await asyncio.sleep(0.01)

    asyncio.run(run())


def test_the_memory_of_a_refused_body_is_released() -> None:
    """Also of one that ends in the same read in which it is refused."""
    head = b"POST %b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    body = b"11170\r\n" + b"x" * 70_000 + b"\r\n1\r\nx\r\n0\r\n\r\n"

    def limit(exchange: Exchange) -> int:
        return 70_000 if exchange.path == b"/small" else 100_000

    async def run() -> list[bytes]:
        async with small_server(Limits(memory=200_000), body_limit=limit) as (host, port):
            statuses = []
            for path in (b"/small", b"/small", b"/small", b"/large"):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(head % path + body)
                statuses.append((await reader.read())[9:12])
                writer.close()
                await writer.wait_closed()
            return statuses

    assert asyncio.run(run()) == [b"413", b"413", b"413", b"200"]


@pytest.mark.parametrize("seconds", [0, 86_399.9, 951_782_400, 1_798_761_599, 4_102_444_800])
def test_dates_are_written_as_http_has_them(seconds: float) -> None:
    """The same as from the library that is slow to import."""
    assert http_date(seconds) == formatdate(seconds, usegmt=True)
