"""What strangers cannot do to a served model: take its connections, memory or time from other clients.

`gusset serve` as a process that may open 256 files, and so keeps 56 connections:
42 of one address, 28 of them websockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from gusset.runtime.http_server import HttpServer
from gusset.runtime.limits import Limits
from gusset.runtime.tls import ServerTls, TlsFiles
from tests.conftest import Cli
from tests.serving.conftest import eventually
from tests.serving.crowd import FILES, HEAD, ORDINARY, CrowdedServer, read_response
from tests.serving.test_callers import make_certificate, trusting

MODEL = """
import asyncio

class Model:
    files = []

    async def hang(self):
        yield "begun"
        await asyncio.sleep(600)

    async def predict(self, model_input):
        if model_input == "hang":
            return self.hang()
        if model_input == "open":
            try:
                while True:
                    self.files.append(open("/dev/null"))
            except OSError:
                pass
        return model_input
"""
WITH_WEBSOCKETS = """
class Model:
    async def websocket(self, websocket):
        async for text in websocket.iter_text():
            await websocket.send_text(text)
"""
OF_ONE = 42
WEBSOCKETS_OF_ONE = 28
WEBSOCKET = (
    b"GET /v1/websocket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: MTIzNDU2Nzg5MDEyMzQ1Ng==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
POST = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"


@contextlib.contextmanager
def serving(
    gusset: Cli, folder: Path, *options: str, tls: bool = False, model: str = MODEL
) -> Iterator[CrowdedServer]:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.py").write_text(model)
    (folder / "config.yaml").write_text("model_name: m\nruntime:\n  predict_concurrency: 1000\n")
    context = None
    if tls:
        chain, key = make_certificate(folder.parent, "server")
        options += ("--tls-certificate", str(chain), "--tls-key", str(key))
        context = trusting(chain)
    command = [sys.executable, "-m", "gusset", "serve", str(folder), "--port", "0", "--output", "json"]
    errors = folder.parent / "errors"
    with (
        errors.open("wb") as log,
        subprocess.Popen(
            ["prlimit", f"--nofile={FILES}:{FILES}", *command, *options],
            env=gusset.environ,
            stdout=subprocess.PIPE,
            stderr=log,
        ) as process,
    ):
        assert process.stdout
        try:
            line = process.stdout.readline()
            assert b"address" in line, (line, errors.read_text())
            yield CrowdedServer(json.loads(line)["address"], context, errors)
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(params=[False, True], ids=["http", "https"])
def served(request: pytest.FixtureRequest, gusset: Cli, tmp_path: Path) -> Iterator[CrowdedServer]:
    with serving(gusset, tmp_path / "m", tls=request.param) as served:
        yield served


@pytest.mark.parametrize(
    "sent",
    [b"", HEAD + b"\r\n", HEAD + b"X-Slow: ", POST % (1000, b"1")],
    ids=["silent", "idle", "slow heads", "slow bodies"],
)
def test_slow_connections_do_not_keep_others_out(served: CrowdedServer, sent: bytes) -> None:
    """The oldest make room; clients at the same address and at others are served."""
    with served.crowd(sent):
        for host in ("127.0.0.1", "127.0.0.2"):
            served.check_serves(host)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_silent_tls_handshakes_do_not_keep_others_out(gusset: Cli, tmp_path: Path, workers: str) -> None:
    """They count as connections from when they are accepted."""
    with serving(gusset, tmp_path / "m", "--workers", workers, tls=True) as served:
        with served.crowd(b"", handshake=False), served.crowd(b"\x16\x03\x01", handshake=False):
            for host in ("127.0.0.1", "127.0.0.2"):
                served.check_serves(host)
        served.check_serves()
    assert "Traceback" not in served.printed


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_websockets_are_limited_and_others_are_served(gusset: Cli, tmp_path: Path, tls: bool) -> None:
    """Of one address and in all. One that closes makes room for another."""
    with (
        serving(gusset, tmp_path / "m", tls=tls, model=WITH_WEBSOCKETS) as served,
        contextlib.ExitStack() as stack,
    ):

        def open_websocket(host: str) -> bool:
            client = stack.enter_context(served.connect(host))
            client.sendall(WEBSOCKET)
            response = read_response(client)
            if response.startswith(b"HTTP/1.1 101 "):
                opened.append(client)
                return True
            assert response.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1\r\n" in response
            return False

        opened: list[socket.socket] = []
        of_one = [open_websocket("127.0.0.1") for _ in range(WEBSOCKETS_OF_ONE + 5)]
        assert of_one.count(True) == WEBSOCKETS_OF_ONE
        others = [open_websocket("127.0.0.2") for _ in range(WEBSOCKETS_OF_ONE)]
        assert others.count(True) == OF_ONE - WEBSOCKETS_OF_ONE
        assert not open_websocket("127.0.0.3")
        with served.crowd(b""):
            for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
                served.check_serves(host)
        for client in opened:
            client.sendall(b"\x81\x81\0\0\0\0x")
            assert client.recv(3) == b"\x81\x01x"
        opened[0].close()
        eventually(lambda: open_websocket("127.0.0.3"), "a websocket that was closed makes room")


def test_requests_in_flight_leave_connections_to_probes_and_to_other_addresses(served: CrowdedServer) -> None:
    """One address has three quarters of them. Beyond that it gets 503, but its probes pass."""
    with contextlib.ExitStack() as stack:

        def hang(host: str) -> bool:
            """Whether a request that takes long is handled, not refused."""
            client = stack.enter_context(served.connect(host))
            client.sendall(POST % (6, b'"hang"'))
            response = read_response(client)
            if response.startswith(b"HTTP/1.1 200 "):
                return True
            assert response.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1\r\n" in response.lower()
            return False

        for _ in range(OF_ONE):
            assert hang("127.0.0.1")
        served.check_probes()
        assert not hang("127.0.0.1")
        served.check_serves("127.0.0.2")
        for _ in range(56 - OF_ONE):
            assert hang("127.0.0.2")
        assert not hang("127.0.0.3")
        with served.crowd(b""):
            for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
                served.check_probes(host)
    eventually(lambda: b" 200 " in served.request(ORDINARY), "they have ended")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_idle_connections_make_room_when_a_model_opens_too_many_files(
    gusset: Cli, tmp_path: Path, workers: str
) -> None:
    """Whether the worker shares the port or not."""
    with (
        serving(gusset, tmp_path / "m", "--workers", workers) as served,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(OF_ONE):
            idle = stack.enter_context(served.connect())
            idle.sendall(HEAD + b"\r\n")
            assert read_response(idle)
        for _ in range(2 * int(workers)):
            with contextlib.suppress(OSError):  # a worker has no descriptor for the connection
                served.request(POST % (6, b'"open"'))

        def serves() -> bool:
            """Whether four clients at the same time get their responses."""
            with contextlib.suppress(OSError), contextlib.ExitStack() as clients:
                opened = [clients.enter_context(served.connect()) for _ in range(4)]
                for client in opened:
                    client.sendall(ORDINARY)
                return all(read_response(client).startswith(b"HTTP/1.1 200 ") for client in opened)
            return False

        eventually(lambda: all(serves() for _ in range(20)), "idle connections have made room")


@pytest.mark.parametrize("sent", [HEAD + b"X: %b\r\n\r\n" % (b"x" * 66_000), HEAD + b"X: x\r\n" * 11_000])
def test_a_head_that_is_too_large_gets_431(served: CrowdedServer, sent: bytes) -> None:
    assert served.request(sent).startswith(b"HTTP/1.1 431 ")
    served.check_serves()


def test_a_body_that_is_too_large_gets_413_before_it_is_sent(served: CrowdedServer) -> None:
    assert served.request(POST % (100 * 1024 * 1024 + 1, b"")).startswith(b"HTTP/1.1 413 ")
    served.check_serves()


def test_a_handshake_a_head_and_a_body_have_limited_time(tmp_path: Path) -> None:
    """However their bytes trickle in; others are served meanwhile. For the times that apply see the next test."""
    limits = Limits(head_seconds=1.0, body_seconds=2.0)
    chain, key = make_certificate(tmp_path, "server")

    def silent(address: tuple[str, int], sent: bytes) -> float:
        """Seconds until the server ends a connection whose handshake does not begin."""
        with socket.create_connection(address) as sock:
            began = time.monotonic()
            assert sock.recv(1024) == b""
            return time.monotonic() - began

    def trickling(address: tuple[str, int], sent: bytes) -> float:
        """Seconds until a request of which a byte arrives every now and then gets its 408."""
        with trusting(chain).wrap_socket(
            socket.create_connection(address), server_hostname="127.0.0.1"
        ) as sock:
            began = time.monotonic()
            sock.sendall(sent)
            sock.settimeout(0.1)
            while True:
                with contextlib.suppress(TimeoutError):
                    sock.sendall(b"1")
                    assert sock.recv(1024).startswith(b"HTTP/1.1 408 ")
                    return time.monotonic() - began

    async def run() -> list[float]:
        server = HttpServer(lambda exchange: exchange.respond(200, b""), limits=limits)
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        address = listener.getsockname()
        await server.start(listener, tls=ServerTls.open(TlsFiles(chain, key)))
        waiting = ((silent, b""), (trickling, HEAD + b"X: "), (trickling, POST % (1000, b"")))
        try:
            return await asyncio.gather(*(asyncio.to_thread(until, address, sent) for until, sent in waiting))
        finally:
            await server.drain()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        handshake, head, body = runner.run(run())
    assert 0.9 < handshake < body and 0.9 < head < body and 1.9 < body < 10, (handshake, head, body)


def test_a_served_model_gives_clients_the_documented_times() -> None:
    """30 seconds for a handshake and for a head, 60 and one per 8 KiB for a body.

    That it uses this object is seen in the sizes at which it responds with 431 and 413.
    """
    limits = Limits()
    assert (limits.head_seconds, limits.body_seconds, limits.body_rate) == (30, 60, 8 * 1024)
    assert (limits.head, limits.body) == (64 * 1024, 100 * 1024 * 1024)
