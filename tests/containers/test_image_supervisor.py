"""How one container follows another, with doubles: of an engine that works, no test can demand these failures."""

from __future__ import annotations

import asyncio
import http.server
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from gusset.containers.engine.images import Images
from gusset.containers.image_deployment import Health, ImageDeployment
from gusset.containers.image_supervisor import ImageSupervisor
from gusset.containers.network.network import HostNetwork
from gusset.containers.running_container import RunningContainer
from gusset.errors import HostError
from gusset.runtime.listener import listen
from gusset.runtime.supervision import SecretIntake, ServingOptions
from gusset.secrets.masking import Masker
from gusset.secrets.value import SecretValue
from tests.serving.conftest import PATIENCE, descriptors, eventually

VALUE = b"s3cr3t-v4lue-0123456789"


class Running:
    """In place of a `RunningContainer`: its server is one of the test's own."""

    def __init__(self, port: int, on_stop: Callable[[], object]) -> None:
        self.network = HostNetwork(port)
        self.container = SimpleNamespace(stop=self._stop, kill=lambda: None)
        self.ended = threading.Event()
        self.is_closed = False
        self._on_stop = on_stop

    def _stop(self, seconds: int) -> None:
        self._on_stop()
        self.ended.set()

    def wait(self) -> str:
        self.ended.wait(PATIENCE)
        return "exit status 3"

    def last_lines(self) -> str:
        return ""

    def close(self) -> None:
        self.ended.set()
        self.is_closed = True


class Starter:
    """In place of a `ContainerStarter`. Each start raises the first of `failures`, while there is one."""

    caller_auth = None

    def __init__(self, port: int) -> None:
        self.port = port
        self.failures: list[Exception] = []
        self.on_stop: Callable[[], object] = lambda: None
        self.started: list[Running] = []
        self.running: Running | None = None
        self.serving_ends = False

    def start(self) -> Running:
        if self.failures:
            raise self.failures.pop(0)
        self.running = Running(self.port, self.on_stop)
        self.started.append(self.running)
        return self.running

    def release(self) -> None:
        self.running = None

    def warn_if_exposed(self) -> None:
        pass


class _Healthy(http.server.BaseHTTPRequestHandler):
    is_alive = True

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ready" or self.is_alive else 500)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def starter(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Starter]:
    monkeypatch.setattr(logging.getLogger("gusset"), "propagate", True)  # for `caplog`
    monkeypatch.setattr(_Healthy, "is_alive", True)
    caplog.set_level(logging.INFO)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Starter(server.server_address[1])
        server.shutdown()


def serve(starter: Starter, scenario: Callable[[], None]) -> str:
    """Serve, run the scenario on a thread of its own, and stop. Returns the address."""
    deployment = ImageDeployment(
        name="image",
        folder=Path(),
        image="image",
        command=None,
        port=starter.port,
        predict="/",
        readiness="/ready",
        liveness="/alive",
        health=Health(restart=0.2),
    )
    ready = asyncio.Event()
    announced = []

    def announce(address: str) -> None:
        announced.append(address)
        ready.set()

    options = ServingOptions(port=0, cache=Path(), announce=announce)

    async def run(listener: socket.socket) -> None:
        intake = SecretIntake()
        intake.masker.learn([SecretValue(VALUE)])
        supervisor = ImageSupervisor(deployment, starter, listener, options, intake=intake, tls=None)
        serving = asyncio.create_task(supervisor.run())
        await asyncio.wait((serving, asyncio.create_task(ready.wait())), return_when=asyncio.FIRST_COMPLETED)
        try:
            if ready.is_set():
                await asyncio.to_thread(scenario)
        finally:
            if not serving.done():  # or the signal would end the tests
                os.kill(os.getpid(), signal.SIGTERM)
            starter.serving_ends = True
            await serving

    with listen("127.0.0.1", 0) as listener:
        asyncio.run(run(listener))
    return announced[0]


def test_a_container_is_restarted_whatever_keeps_it_from_starting(
    starter: Starter, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that is not gusset's own is logged with its traceback, masked."""

    def end_it() -> None:
        starter.failures = [RuntimeError(f"can't start a thread for {VALUE.decode()}")]
        starter.started[0].ended.set()
        eventually(lambda: "The container is ready again." in caplog.text, "ready again")

    serve(starter, end_it)
    assert "The container is restarted, because of an unexpected error" in caplog.text
    assert "RuntimeError: can't start a thread for ***" in caplog.text
    assert len(starter.started) == 2
    assert all(running.is_closed for running in starter.started)


def test_an_unexpected_error_of_the_first_start_ends_serving(starter: Starter) -> None:
    """It is a mistake of gusset's, or of the machine, that people have to see."""
    starter.failures = [RuntimeError("can't start new thread")]
    with pytest.raises(RuntimeError, match="can't start new thread"):
        serve(starter, lambda: None)


def test_a_stop_during_the_removal_of_a_container_lets_it_finish(
    starter: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The container did not respond and is stopped when the signal comes. Its values must not stay in memory."""
    stopping = threading.Event()

    def stop_slowly() -> None:
        stopping.set()
        eventually(lambda: starter.serving_ends, "the signal")
        time.sleep(0.3)  # for the stop to be cut short by a mistake: nothing shows that it was not

    starter.on_stop = stop_slowly

    def fail_liveness() -> None:
        monkeypatch.setattr(_Healthy, "is_alive", False)
        assert stopping.wait(PATIENCE)

    serve(starter, fail_liveness)
    assert starter.running is None
    assert [running.is_closed for running in starter.started] == [True]


def test_of_a_container_whose_output_cannot_be_read_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the system has no thread for it: no open file, no container, no values."""
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name == "gusset-pump-2":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    removed: list[str] = []
    mount = SimpleNamespace(close=lambda: removed.append("mount"))
    container = SimpleNamespace(remove=lambda: removed.append("container"))
    before = descriptors(os.getpid())
    with pytest.raises(RuntimeError):
        RunningContainer.start(
            mount, create=lambda _: container, fill=lambda _: None, masker=Masker(), outputs=(1, 2)
        )
    assert removed == ["container", "mount"]
    eventually(lambda: descriptors(os.getpid()) == before, "all files are closed")


def test_a_container_that_cannot_be_removed_does_not_keep_a_stop_from_ending(
    starter: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other container is started in its place."""

    def fail() -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(starter, "release", fail)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        serve(starter, lambda: None)
    assert [running.is_closed for running in starter.started] == [True]


class _EndsWhilePulling(http.server.BaseHTTPRequestHandler):
    """An engine that has no image, and is killed after the first line of a pull."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b'{"message": "No such image"}'
        self.send_response(404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.wfile.write(b'16\r\n{"status": "Pulling"}\n\r\n')
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def test_an_engine_that_ends_during_a_pull_is_an_error_that_says_so() -> None:
    docker = pytest.importorskip("docker")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _EndsWhilePulling) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = docker.DockerClient(f"tcp://127.0.0.1:{server.server_address[1]}", version="1.41")
        with pytest.raises(HostError, match="stopped responding while it pulled the image busybox:stable"):
            Images(client, "amd64", lambda *_: None).get("busybox:stable", lambda _: None)
        client.close()
        server.shutdown()
