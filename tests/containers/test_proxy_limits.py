"""What strangers cannot do to a custom image: take the proxy's connections from other clients.

The proxy is a process that can open 256 files, and so keeps 28 connections, each
of which may need a second file: 21 of one address, 14 of them websockets.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.wire import SWITCHING, WEBSOCKET_REQUEST, get, post
from tests.serving.conftest import eventually
from tests.serving.crowd import FILES, HEAD, CrowdedServer, read_response
from tests.serving.test_callers import make_certificate, trusting

OF_ONE = 21
IN_ALL = 28
WEBSOCKETS_OF_ONE = 14
HOSTS = ("127.0.0.1", "127.0.0.2")


@contextlib.contextmanager
def crowded_proxy(folder: Path, *, tls: bool) -> Iterator[CrowdedServer]:
    files = make_certificate(folder, "proxy") if tls else ()
    command = ["prlimit", f"--nofile={FILES}:{FILES}", sys.executable, "-m", "tests.containers.limited_proxy"]
    errors = folder / "errors"
    with (
        errors.open("wb") as log,
        subprocess.Popen(
            [*command, *map(str, files)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=Path(__file__).parents[2],
        ) as process,
    ):
        assert process.stdin and process.stdout
        try:
            port = process.stdout.readline().decode().strip()
            assert port, errors.read_text()
            yield CrowdedServer(f"http://127.0.0.1:{port}", trusting(*files[:1]) if tls else None, errors)
        finally:
            process.stdin.close()
            process.wait()


@pytest.fixture(params=[False, True], ids=["http", "https"])
def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CrowdedServer]:
    with crowded_proxy(tmp_path, tls=request.param) as proxy:
        yield proxy


@pytest.mark.parametrize(
    "sent",
    [b"", HEAD + b"\r\n", HEAD + b"X-Slow: ", post(b"12")[:-1]],
    ids=["silent", "idle", "slow heads", "slow bodies"],
)
def test_slow_connections_do_not_keep_others_out(proxy: CrowdedServer, sent: bytes) -> None:
    """The oldest make room; clients at the same address and at others are served."""
    with proxy.crowd(sent):
        for host in HOSTS:
            proxy.check_serves(host)


def test_silent_tls_handshakes_do_not_keep_others_out(tmp_path: Path) -> None:
    """They count as connections from when they are accepted."""
    with (
        crowded_proxy(tmp_path, tls=True) as proxy,
        proxy.crowd(b"", handshake=False),
        proxy.crowd(b"\x16\x03\x01", handshake=False),
    ):
        for host in HOSTS:
            proxy.check_serves(host)


def test_websockets_are_limited_and_others_are_served(proxy: CrowdedServer) -> None:
    """Of one address and in all. One that closes makes room for another."""
    with contextlib.ExitStack() as stack:

        def open_websocket(host: str) -> bool:
            client = stack.enter_context(proxy.connect(host))
            client.sendall(WEBSOCKET_REQUEST)
            response = read_response(client)
            if response == SWITCHING:
                opened.append(client)
                return True
            assert response.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1\r\n" in response
            return False

        opened: list[object] = []
        of_one = [open_websocket("127.0.0.1") for _ in range(WEBSOCKETS_OF_ONE + 3)]
        assert of_one.count(True) == WEBSOCKETS_OF_ONE
        others = [open_websocket("127.0.0.2") for _ in range(WEBSOCKETS_OF_ONE)]
        assert others.count(True) == OF_ONE - WEBSOCKETS_OF_ONE
        with proxy.crowd(b""):
            for host in HOSTS:
                proxy.check_serves(host)
        for client in opened:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        opened[0].close()
        eventually(lambda: open_websocket("127.0.0.1"), "a websocket that was closed makes room")


def test_requests_in_flight_leave_connections_to_probes(proxy: CrowdedServer) -> None:
    """One address has three quarters of all connections. Beyond that it gets 503, but its probes pass."""
    with contextlib.ExitStack() as stack:

        def hang(host: str, number: int) -> None:
            for _ in range(number):
                client = stack.enter_context(proxy.connect(host))
                client.sendall(get("/hang"))
                client.settimeout(0.2)
                with contextlib.suppress(TimeoutError):  # it is in flight
                    raise AssertionError(client.recv(1024))

        hang("127.0.0.1", OF_ONE)
        proxy.check_probes("127.0.0.1")
        assert proxy.request(get("/x")).startswith(b"HTTP/1.1 503 ")
        proxy.check_serves("127.0.0.2")
        hang("127.0.0.2", IN_ALL - OF_ONE)
        for host in HOSTS:
            proxy.check_probes(host)
            assert proxy.request(get("/x"), host).startswith(b"HTTP/1.1 503 ")
