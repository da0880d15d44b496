"""What strangers cannot do to a served model: take its connections, memory or time from other clients.

`gusset serve` as a process that may open 256 files, and so keeps 56 connections:
42 of one address, 28 of them websockets.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as connect_websocket

from tests.conftest import Cli
from tests.serving.conftest import PATIENCE, eventually
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
FILES = 256
CLIENTS = 150
OF_ONE = 42
WEBSOCKETS_OF_ONE = 28
PROBES = ("/", "/v1/models/model")
HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
ORDINARY = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"  # not a probe
POST = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"


class Served:
    """A served model and the clients that crowd it."""

    def __init__(self, address: str, context: ssl.SSLContext | None, errors: Path) -> None:
        self.address = address
        self.port = int(address.rpartition(":")[2])
        self.context = context
        self._errors = errors

    @property
    def printed(self) -> str:
        return self._errors.read_text()

    def connect(self, host: str = "127.0.0.1", *, handshake: bool = True) -> socket.socket:
        """A connection from the address `host` of this machine."""
        sock = socket.create_connection(("127.0.0.1", self.port), PATIENCE, source_address=(host, 0))
        if self.context is None or not handshake:
            return sock
        return self.context.wrap_socket(sock, server_hostname="127.0.0.1")

    def request(self, data: bytes, host: str = "127.0.0.1") -> bytes:
        """The response to a request on a connection of its own."""
        with self.connect(host) as client:
            client.sendall(data)
            return read_response(client)

    def check_serves(self, host: str = "127.0.0.1") -> None:
        """Probes and ordinary requests of a client at `host` get their responses."""
        self.check_probes(host)
        response = self.request(ORDINARY, host)
        assert response.startswith(b"HTTP/1.1 200 "), response

    def check_probes(self, host: str = "127.0.0.1") -> None:
        for path in PROBES:
            response = self.request(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode(), host)
            assert response.startswith(b"HTTP/1.1 200 "), response

    @contextlib.contextmanager
    def crowd(self, sent: bytes, *, handshake: bool = True) -> Iterator[list[socket.socket]]:
        """More connections than the server keeps, which each send the beginning of something."""
        with contextlib.ExitStack() as stack:
            clients = []
            for _ in range(CLIENTS):
                client = stack.enter_context(self.connect(handshake=handshake))
                with contextlib.suppress(OSError):  # it was closed at once
                    client.sendall(sent)
                clients.append(client)
            yield clients


def read_response(client: socket.socket) -> bytes:
    """A response with a content length; what there is if the server closes before."""
    data = b""
    while part := client.recv(65_536):
        data += part
        head, end, body = data.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if end and len(body) >= int(length or 0):
            break
    return data


@contextlib.contextmanager
def serving(
    gusset: Cli, folder: Path, *options: str, tls: bool = False, model: str = MODEL
) -> Iterator[Served]:
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
            yield Served(json.loads(line)["address"], context, errors)
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(params=[False, True], ids=["http", "https"])
def served(request: pytest.FixtureRequest, gusset: Cli, tmp_path: Path) -> Iterator[Served]:
    with serving(gusset, tmp_path / "m", tls=request.param) as served:
        yield served


@pytest.mark.parametrize(
    "sent",
    [b"", HEAD + b"\r\n", HEAD + b"X-Slow: ", POST % (1000, b"")],
    ids=["silent", "idle", "slow heads", "slow bodies"],
)
def test_slow_connections_do_not_keep_others_out(served: Served, sent: bytes) -> None:
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
            try:
                websocket = stack.enter_context(
                    connect_websocket(
                        served.address.replace("http", "ws", 1) + "/v1/websocket",
                        ssl=served.context,
                        source_address=(host, 0),
                        proxy=None,
                    )
                )
            except InvalidStatus as refused:
                assert refused.response.status_code == 503 and refused.response.headers["retry-after"] == "1"
                return False
            opened.append(websocket)
            return True

        opened: list[object] = []
        assert [open_websocket("127.0.0.1") for _ in range(WEBSOCKETS_OF_ONE + 5)].count(
            True
        ) == WEBSOCKETS_OF_ONE
        assert [open_websocket("127.0.0.2") for _ in range(WEBSOCKETS_OF_ONE)].count(
            True
        ) == OF_ONE - WEBSOCKETS_OF_ONE
        assert not open_websocket("127.0.0.3")
        with served.crowd(b""):
            for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
                served.check_serves(host)
        for websocket in opened:
            websocket.send("still open")
            assert websocket.recv(PATIENCE) == "still open"
        opened[0].close()
        eventually(lambda: open_websocket("127.0.0.3"), "a websocket that was closed makes room")


def test_requests_in_flight_leave_connections_to_probes_and_to_other_addresses(served: Served) -> None:
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
            try:
                served.check_serves()
            except (OSError, AssertionError):
                return False
            return True

        eventually(serves, "idle connections have made room")
        for _ in range(20):
            served.check_serves()


@pytest.mark.parametrize("sent", [HEAD + b"X: %b\r\n\r\n" % (b"x" * 66_000), HEAD + b"X: x\r\n" * 11_000])
def test_a_head_that_is_too_large_gets_431(served: Served, sent: bytes) -> None:
    assert served.request(sent).startswith(b"HTTP/1.1 431 ")
    served.check_serves()


def test_a_body_that_is_too_large_gets_413_before_it_is_sent(served: Served) -> None:
    assert served.request(POST % (100 * 1024 * 1024 + 1, b"")).startswith(b"HTTP/1.1 413 ")
    served.check_serves()


@pytest.mark.slow
def test_a_handshake_a_head_and_a_body_have_limited_time(gusset: Cli, tmp_path: Path) -> None:
    """30 seconds for a handshake and for a head, 60 and one per 8 KiB for a body; however the bytes trickle in."""
    with (
        serving(gusset, tmp_path / "m", tls=True) as served,
        served.connect(handshake=False) as shaking,
        served.connect() as head,
        served.connect() as body,
    ):
        began = time.monotonic()
        head.sendall(HEAD + b"X: ")
        body.sendall(POST % (1000, b""))
        ended: dict[str, float] = {}
        waiting = {"handshake": shaking, "head": head, "body": body}
        for sock in waiting.values():
            sock.settimeout(0.2)
        while waiting and time.monotonic() < began + 75:
            for name, sock in tuple(waiting.items()):
                with contextlib.suppress(TimeoutError):
                    if name != "handshake":
                        sock.sendall(b"1")
                    received = sock.recv(1024)
                    assert received.startswith(b"HTTP/1.1 408 ") or name == "handshake", received
                    ended[name] = time.monotonic() - began
                    del waiting[name]
            served.check_serves()
        assert 25 < ended["handshake"] < 40 and 25 < ended["head"] < 40 and 55 < ended["body"] < 70, ended
