"""What clients do to a model that runs: wait in line, leave, read slowly, talk by websocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import textwrap
import threading
import time
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.serving.conftest import PATIENCE, ModelProject, RunningServer, eventually


def ask(
    served: RunningServer, body: object, *headers: str, path: str = "/v1/models/model:predict"
) -> socket.socket:
    """Send a request and leave the response unread."""
    data = json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(data)}", *headers]
    sock = served.connect()
    sock.sendall("\r\n".join((*head, "", "")).encode() + data)
    return sock


def read_until(sock: socket.socket, end: bytes) -> bytes:
    """What comes, until `end` is there or nothing more comes."""
    got = b""
    while end not in got and (part := sock.recv(65536)):
        got += part
    return got


NOTES = """
    import asyncio, pathlib, threading, time
    from starlette.requests import Request

    NOTES = pathlib.Path({notes!r})

    def note(text):
        with NOTES.open("a") as file:
            file.write(text + "\\n")
"""


def notes_of(serve: ModelProject) -> Path:
    notes = serve.folder.parent / "notes"
    notes.touch()
    return notes


def with_notes(serve: ModelProject, code: str) -> str:
    return NOTES.format(notes=str(notes_of(serve))) + code


def has(serve: ModelProject, text: str) -> bool:
    return text in notes_of(serve).read_text().split("\n")


# Waiting for a turn.


def test_waiting_predictions_run_in_the_order_of_their_arrival(serve: ModelProject) -> None:
    """In the order of their arrival, while liveness and readiness respond at once."""
    served = serve(
        with_notes(
            serve,
            """
    class Model:
        def predict(self, number):
            note(f"begin {number}")
            while number == 1 and not NOTES.with_name("go").exists():
                time.sleep(0.01)
            return number
    """,
        )
    ).ready()
    line = [ask(served, 1)]
    eventually(lambda: has(serve, "begin 1"), "the slot is taken")
    for number in range(2, 6):
        line.append(ask(served, number))
        eventually(
            lambda n=number - 1: f"gusset_requests_waiting {n}\n" in served.get("/metrics").text, "in line"
        )
    assert served.get("/").text == "true"
    assert served.get("/v1/models/model").json() == {}
    notes_of(serve).with_name("go").touch()
    for sock in line:
        with sock:
            assert b" 200 OK" in read_until(sock, b"\r\n")
    assert notes_of(serve).read_text().split()[1::2] == ["1", "2", "3", "4", "5"]


def test_predict_concurrency_allows_that_many_calls_at_once(serve: ModelProject) -> None:
    """Each waits for the others: with fewer threads none would ever end."""
    served = serve(
        """
        import threading
        class Model:
            def __init__(self):
                self.together = threading.Barrier(60)
            def predict(self, model_input):
                self.together.wait(30)
                return "together"
        """,
        concurrency=60,
    ).ready()
    for sock in [ask(served, 1) for _ in range(60)]:
        with sock:
            assert read_until(sock, b'together"').endswith(b'"together"')


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_the_prediction_of_a_client_that_left_the_queue_is_never_begun(
    serve: ModelProject, kind: str
) -> None:
    """Its prediction is never begun."""
    wait = "time.sleep" if kind == "def" else "await asyncio.sleep"
    served = serve(
        with_notes(
            serve,
            f"""
    class Model:
        {kind} predict(self, number):
            note(f"begin {{number}}")
            while number == 0 and not NOTES.with_name("go").exists():
                {wait}(0.01)
            return number
    """,
        )
    ).ready()
    first = ask(served, 0)
    eventually(lambda: has(serve, "begin 0"), "the slot is taken")
    ask(served, 1).close()
    third = ask(served, 2)
    left = 'gusset_requests_total{route="predict",status="499"} 1\n'
    eventually(lambda: left in served.get("/metrics").text, "the server notices the disconnect")
    notes_of(serve).with_name("go").touch()
    with first, third:
        assert b" 200 OK" in read_until(first, b"\r\n")
        assert b" 200 OK" in read_until(third, b"\r\n")
    assert not has(serve, "begin 1")


# Leaving in the middle.


def test_a_coroutine_is_cancelled_when_its_client_leaves(serve: ModelProject) -> None:
    served = serve(
        with_notes(
            serve,
            """
    class Model:
        async def predict(self, model_input):
            note("begin")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                note("cancelled")
                raise
    """,
        )
    ).ready()
    sock = ask(served, 1)
    eventually(lambda: has(serve, "begin"), "begun")
    sock.close()
    eventually(lambda: has(serve, "cancelled"), "cancelled")


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_generator_is_closed_when_its_client_leaves(serve: ModelProject, kind: str) -> None:
    """And its slot is free for the next."""
    wait = "time.sleep" if kind == "def" else "await asyncio.sleep"
    served = serve(
        with_notes(
            serve,
            f"""
    class Model:
        {kind} predict(self, model_input):
            try:
                while model_input:
                    yield "chunk "
                    {wait}(0.01)
            finally:
                note("closed")
            yield "next"
    """,
        )
    ).ready()
    sock = ask(served, 1)
    assert b"chunk" in read_until(sock, b"chunk")
    sock.close()
    eventually(lambda: has(serve, "closed"), "closed")
    assert served.predict(0).text == "next"


NOTICING = {
    "watch_disconnect, as with Truss": """
        def predict(self, model_input, request: Request):
            with request.state.watch_disconnect() as event:
                note("begin")
                note("noticed" if event.wait(60) else "never disconnected")
    """,
    "task that is shielded from the cancellation": """
        async def watch(self, request):
            note("begin" if not await request.is_disconnected() else "disconnected too early")
            while not await request.is_disconnected():
                await asyncio.sleep(0.01)
            note("noticed")

        async def predict(self, model_input, request: Request):
            self.task = asyncio.create_task(self.watch(request))
            await asyncio.shield(self.task)
    """,
    "coroutine": """
        async def predict(self, model_input, request: Request):
            note("begin")
            while not await request.is_disconnected():
                await asyncio.sleep(0.01)
            note("noticed")
    """,
    "async generator": """
        async def predict(self, model_input, request: Request):
            note("begin")
            while not await request.is_disconnected():
                yield "chunk "
                await asyncio.sleep(0.01)
            yield "unread"
            note("noticed")
    """,
    "function on a thread": """
        def predict(self, model_input, request: Request):
            note("begin")
            while not anyio.from_thread.run(request.is_disconnected):
                time.sleep(0.01)
            note("noticed")
    """,
    "generator on a thread": """
        def predict(self, model_input, request: Request):
            note("begin")
            while not anyio.from_thread.run(request.is_disconnected):
                yield "chunk "
                time.sleep(0.01)
            yield "unread"
            note("noticed")
    """,
}


@pytest.mark.parametrize("kind", NOTICING)
def test_a_method_that_takes_the_request_can_notice_the_disconnect_itself(
    serve: ModelProject, kind: str
) -> None:
    """It is not cancelled at once, so that it can abort an engine's work in its own way."""
    code = "import anyio.from_thread\nclass Model:\n" + textwrap.dedent(NOTICING[kind]).replace(
        "\n", "\n    "
    )
    served = serve(textwrap.dedent(with_notes(serve, "")) + code).ready()
    sock = ask(served, 1)
    eventually(lambda: has(serve, "begin"), "begun")
    sock.close()
    eventually(lambda: has(serve, "noticed"), "noticed")


def test_a_method_that_ignores_the_disconnect_is_cancelled_later(serve: ModelProject) -> None:
    """After half a minute its slot is free for the next, even if it takes the request."""
    served = serve(
        with_notes(
            serve,
            """
    class Model:
        async def predict(self, model_input, request: Request):
            if model_input == "next":
                return "free"
            note("begin")
            started = time.monotonic()
            try:
                await asyncio.sleep(600)
            finally:
                note("late" if time.monotonic() - started > 25 else "early")
    """,
        )
    ).ready()
    sock = ask(served, 1)
    eventually(lambda: has(serve, "begin"), "begun")
    sock.close()
    response = httpx.post(f"{served.address}/predict", json="next", timeout=2 * PATIENCE)
    assert response.json() == "free"
    assert has(serve, "late")


def test_an_abandoned_response_frees_its_slot(serve: ModelProject) -> None:
    """A `StreamingResponse` whose client has left."""
    served = serve(
        """
        import asyncio
        from starlette.responses import StreamingResponse
        class Model:
            async def endless(self):
                while True:
                    yield "chunk "
                    await asyncio.sleep(0.01)
            def predict(self, model_input):
                return StreamingResponse(self.endless()) if model_input else "free"
        """
    ).ready()
    sock = ask(served, 1)
    assert b"chunk" in read_until(sock, b"chunk")
    sock.close()
    assert served.predict(0).json() == "free"


# Streams.


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_chunk_is_sent_before_the_next_one_is_made(serve: ModelProject, kind: str) -> None:
    """The first is there while the model has not made the second."""
    wait = "time.sleep" if kind == "def" else "await asyncio.sleep"
    served = serve(
        f"""
        import asyncio, pathlib, time
        class Model:
            {kind} predict(self, go):
                yield "first"
                while not pathlib.Path(go).exists():
                    {wait}(0.01)
                yield "second"
        """
    ).ready()
    go = serve.folder.parent / "go"
    with ask(served, str(go)) as sock:
        assert read_until(sock, b"first\r\n").endswith(b"\r\n\r\n5\r\nfirst\r\n")
        go.touch()
        assert read_until(sock, b"0\r\n\r\n") == b"6\r\nsecond\r\n0\r\n\r\n"


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_slow_reader_holds_up_the_generator(serve: ModelProject, kind: str) -> None:
    """Not the server's memory: of 2 GB no more is made than what buffers hold."""
    served = serve(
        with_notes(
            serve,
            f"""
    class Model:
        made = 0

        {kind} predict(self, model_input):
            for _ in range(model_input):
                self.made += 1
                yield bytes(65536)

        def chat_completions(self, model_input):
            return self.made
    """,
        )
    ).ready()

    def made() -> int:
        found: int = httpx.post(f"{served.address}/v1/chat/completions", content="1").json()
        return found

    sock = ask(served, 32_000)
    assert read_until(sock, b"\r\n\r\n")
    counts = [made()]
    while len(counts) < 3 or counts[-1] != counts[-3]:
        time.sleep(0.1)
        counts.append(made())
    assert counts[-1] < 1_000
    sock.close()


def test_an_http_1_0_client_gets_a_stream_without_chunks(serve: ModelProject) -> None:
    """An old client reads until the connection closes, even one that would keep it."""
    served = serve(
        """
        class Model:
            def predict(self, model_input):
                yield "a"
                yield "b"
        """
    ).ready()
    for more in (b"", b"Connection: keep-alive\r\n"):
        with served.connect() as sock:
            sock.sendall(b"POST /predict HTTP/1.0\r\n" + more + b"Content-Length: 1\r\n\r\n1")
            response = read_until(sock, b"never")
        head, _, body = response.partition(b"\r\n\r\n")
        assert body == b"ab"
        assert b"transfer-encoding" not in head


# Websockets.

ECHO = """
    class Model:
        async def websocket(self, websocket):
            while True:
                message = await websocket.receive()
                if message["type"] == "websocket.disconnect":
                    note(f"left {message['code']}")
                    return
                text = message.get("text")
                if text == "raise":
                    raise ValueError("not shown")
                if text == "close":
                    await websocket.close(4000, "enough")
                    return
                if text == "return":
                    return
                if text is not None:
                    await websocket.send_text(text + "!")
                else:
                    await websocket.send_bytes(message["bytes"])
"""


def talk(served: RunningServer, *messages: str | bytes) -> tuple[list[str | bytes], int | None, str | None]:
    """Send messages, and return the replies and how the server closed, if it did."""

    async def run() -> tuple[list[str | bytes], int | None, str | None]:
        got: list[str | bytes] = []
        async with connect(
            f"ws://127.0.0.1:{served.port}/v1/websocket", proxy=None, max_size=None
        ) as websocket:
            try:
                for message in messages:
                    await websocket.send(message)
                    got.append(await asyncio.wait_for(websocket.recv(), PATIENCE))
            except ConnectionClosed:
                return got, websocket.close_code, websocket.close_reason
        return got, None, None

    return asyncio.run(run())


def test_websockets_carry_text_and_bytes_of_any_size(serve: ModelProject) -> None:
    """Text and bytes, of any size up to 100 MiB, both ways; and the many ways of an end."""
    served = serve(with_notes(serve, ECHO)).ready()
    large = bytes(5_000_000)
    assert talk(served, "é", b"\0\xff", large) == (["é!", b"\0\xff", large], None, None)
    eventually(lambda: has(serve, "left 1000"), "the model sees that its client has left")
    assert talk(served, "return")[1:] == (1000, "")
    assert talk(served, "close")[1:] == (4000, "enough")
    assert talk(served, "raise")[1:] == (1011, "Internal Server Error (in model/chainlet).")
    eventually(lambda: "ValueError: not shown" in served.stderr, "the log says why")
    assert served.get("/v1/models/model").json() == {}


@pytest.mark.parametrize("offers", ["websocket, h2c", "h2c,WebSocket", "h2c\r\nupgrade: websocket"])
def test_a_websocket_is_chosen_among_the_protocols_that_a_client_offers(
    serve: ModelProject, offers: str
) -> None:
    """Also for a target in absolute form."""
    served = serve(with_notes(serve, ECHO)).ready()
    for target in ("/v1/websocket", "http://localhost/v1/websocket"):
        with served.connect() as client:
            head = f"GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: {offers}\r\n"
            key = "sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            client.sendall(f"{head}{key}".encode())
            assert client.recv(4096).startswith(b"HTTP/1.1 101 ")


def test_websockets_are_closed_when_the_server_stops(serve: ModelProject) -> None:
    """With 1012, and the model sees the disconnect."""
    served = serve(with_notes(serve, ECHO)).ready()

    async def run() -> int | None:
        websocket: ClientConnection
        async with connect(f"ws://127.0.0.1:{served.port}/v1/websocket", proxy=None) as websocket:
            await websocket.send("hello")
            assert await websocket.recv() == "hello!"
            await asyncio.to_thread(served.process.terminate)
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(websocket.recv(), PATIENCE)
            return websocket.close_code

    assert asyncio.run(run()) == 1012
    assert served.ended() == 0
    assert has(serve, "left 1012")


def test_a_model_without_websockets_closes_with_the_reason(serve: ModelProject) -> None:
    """It accepts the handshake and closes with 1003, as Truss's server does."""
    served = serve("class Model:\n    def predict(self, model_input):\n        return model_input\n").ready()

    async def run() -> tuple[int | None, str | None]:
        async with connect(f"ws://127.0.0.1:{served.port}/v1/websocket") as websocket:
            with contextlib.suppress(ConnectionClosed):
                await asyncio.wait_for(websocket.recv(), PATIENCE)
            return websocket.close_code, websocket.close_reason

    assert asyncio.run(run()) == (1003, "WebSocket is not implemented on this deployment.")


def test_a_websockets_headers_are_found_in_any_spelling(serve: ModelProject) -> None:
    """Starlette looks them up in lower case; clients write them as they like."""
    served = serve(
        """
        class Model:
            async def websocket(self, websocket):
                await websocket.send_text(websocket.headers["authorization"])
        """
    ).ready()

    async def run() -> object:
        address = f"ws://127.0.0.1:{served.port}/v1/websocket"
        async with connect(address, additional_headers={"Authorization": "Bearer x"}) as websocket:
            return await asyncio.wait_for(websocket.recv(), PATIENCE)

    assert asyncio.run(run()) == "Bearer x"


# What a model may do to its server.


def test_a_model_that_blocks_the_loop_is_reported(serve: ModelProject) -> None:
    served = serve(
        """
        import time
        class Model:
            async def predict(self, model_input):
                time.sleep(8)
                return "after all"
        """
    ).ready()
    response: list[str] = []
    thread = threading.Thread(target=lambda: response.append(served.predict(1).json()))
    thread.start()
    eventually(lambda: "has been blocked" in served.stderr, "the log says so")
    assert "model/model.py:5, in predict" in served.stderr
    thread.join()
    assert response == ["after all"]


def test_a_model_that_forks_keeps_no_connection_open(serve: ModelProject) -> None:
    """The client sees the end of its connection although a child of the model lives on."""
    served = serve(
        """
        import os, time
        class Model:
            def predict(self, model_input):
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
                return "parent"
        """
    ).ready()
    with ask(served, 1, "Connection: close") as sock:
        assert read_until(sock, b"never").endswith(b'"parent"')


def test_output_of_100_mb_does_not_block_the_response(serve: ModelProject) -> None:
    """100 MB pass the masker, and the response comes."""
    served = serve(
        """
        class Model:
            def predict(self, model_input):
                line = "x" * 999
                for _ in range(100_000):
                    print(line)
                return "done"
        """
    ).ready()
    assert served.predict(1).json() == "done"


def test_idle_clients_beyond_the_file_limit_make_room_for_others(serve: ModelProject) -> None:
    """The oldest are closed; the model can still open its files, and a client that sends a request is served."""
    served = serve(
        """
        class Model:
            def predict(self, model_input):
                return open("/proc/self/stat").read()[:1] != ""
        """,
        prefix=("prlimit", "--nofile=400:400"),
    ).ready()
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(served.connect()) for _ in range(600)]
        eventually(lambda: sum(_is_closed(sock) for sock in idle) >= 350, "the oldest are closed")
        last = idle[-1]
        last.setblocking(True)
        last.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1")
        assert read_until(last, b"true").endswith(b"true")
        assert served.predict(1).json() is True


def _is_closed(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return not sock.recv(1)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_a_thousand_idle_connections_do_not_block_a_request(serve: ModelProject) -> None:
    served = serve("class Model:\n    def predict(self, model_input):\n        return model_input\n").ready()
    idle = [served.connect() for _ in range(1000)]
    assert served.predict({"still": "served"}).json() == {"still": "served"}
    for sock in idle:
        sock.close()
