"""`gusset predict`: how each kind of response is printed, and what its errors advise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.cli.test_secret import _type_at_a_terminal
from tests.cli.test_serve import write_model
from tests.conftest import Cli
from tests.ports import free_port


class _Upstream(ThreadingHTTPServer):
    """A model's server that sends the chunks given, and the second one only after `go` is set."""

    def __init__(self, status: int, content_type: str, chunks: list[bytes], *, complete: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.content_type, self.chunks, self.complete = status, content_type, chunks, complete
        self.go = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Upstream

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(self.server.status)
        self.send_header("content-type", self.server.content_type)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number, chunk in enumerate(self.server.chunks):
            if number == 1:
                self.server.go.wait(30)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        if self.server.complete:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


Serving = Callable[..., _Upstream]


@pytest.fixture
def upstream() -> Iterator[Serving]:
    started = []

    def start(status: int, content_type: str, chunks: list[bytes], *, complete: bool = True) -> _Upstream:
        server = _Upstream(status, content_type, chunks, complete=complete)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.go.set()
        server.shutdown()
        server.server_close()


EVENTS = [b"data: one\r\n\r\n", b"data: two\r\n\r\n"]


@pytest.mark.parametrize(
    ("content_type", "chunks"),
    [
        ("text/event-stream", EVENTS),
        ("text/plain; charset=utf-8", ["grüß ".encode()[:3], "grüß ".encode()[3:]]),
        ("application/octet-stream", [b"\xff\x00", b"\xfe"]),
        ("application/json", [b'{"a": 1}\n', b'{"a": 2}\n']),
    ],
    ids=["events", "text", "bytes", "JSON lines"],
)
def test_a_stream_is_forwarded_to_a_pipe_as_it_arrives(
    gusset: Cli, upstream: Serving, content_type: str, chunks: list[bytes]
) -> None:
    """The first chunk is printed before the model has sent the second; exit status 0."""
    server = upstream(200, content_type, chunks)
    command = [sys.executable, "-m", "gusset", "predict", server.address, "--data", "{}"]
    with subprocess.Popen(command, env=gusset.environ, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert os.read(process.stdout.fileno(), 100) == chunks[0]
        server.go.set()
        assert process.stdout.read() == chunks[1]
        assert process.wait(30) == 0


def test_a_terminal_gets_a_stream_as_text_with_control_characters_as_escapes(
    gusset: Cli, upstream: Serving
) -> None:
    server = upstream(200, "text/plain", [b"one\r\n\x1b[31m", b"\xfftwo"])
    server.go.set()

    shown = _type_at_a_terminal(gusset, ["predict", server.address, "--data", "{}"], b"")

    assert shown == b"one\r\n\\x1b[31m\\xfftwo\r\n"


def test_a_stream_is_one_json_document_with_output_json(gusset: Cli, upstream: Serving) -> None:
    server = upstream(200, "text/event-stream", EVENTS)
    server.go.set()

    done = gusset("predict", server.address, "--data", "{}", "--output", "json")

    assert json.loads(done.stdout) == b"".join(EVENTS).decode()


def test_a_stream_that_breaks_off_is_a_failure_of_the_model(gusset: Cli, upstream: Serving) -> None:
    """What has arrived is printed; the exit status is 9."""
    server = upstream(200, "text/plain", [b"half"], complete=False)

    done = gusset("predict", server.address, "--data", "{}", status=9)

    assert done.stdout == b"half" and b"broke off" in done.stderr


def test_a_folder_whose_model_streams_is_printed_as_text(gusset: Cli, tmp_path: Path) -> None:
    code = "class Model:\n    def predict(self, inputs):\n        yield 'one\\n'\n        yield 'two\\n'\n"
    folder = write_model(tmp_path / "my-model", "model_name: streamer\n", code)

    assert gusset("predict", str(folder), "--data", "{}").stdout == b"one\ntwo\n"


def test_the_hint_for_a_model_that_is_not_ready_is_a_command_that_probes_it(
    gusset: Cli, upstream: Serving
) -> None:
    server = upstream(503, "application/json", [b'{"error": "loading"}'])

    done = gusset("predict", server.address, "--data", "{}", status=8)

    assert f"curl --fail {server.address}/v1/models/model\n".encode() in done.stderr


@pytest.mark.parametrize("host", ["model..example", "\u2603.example", "xn--.example", "1.2.3.999", ""])
def test_an_address_that_no_model_can_have_is_refused(gusset: Cli, host: str) -> None:
    done = gusset("predict", f"http://{host}/v1", "--data", "{}", status=2)
    assert done.stderr == b"error: this is not a URL of a model\n"


def test_the_hint_where_nothing_responds_serves_a_folder_at_that_port(gusset: Cli, tmp_path: Path) -> None:
    """The command is run as it is printed. A password of the URL is not printed."""
    port = free_port()
    url = f"http://me:hunter2pass@127.0.0.1:{port}"
    failed = gusset("predict", url, "--data", "{}", status=8).stderr.decode()
    assert "hunter2pass" not in failed
    hint = next(line.strip() for line in failed.splitlines() if line.strip().startswith("gusset "))
    code = "class Model:\n    def predict(self, inputs):\n        return inputs\n"
    folder = write_model(tmp_path / "my-model", "model_name: echo\n", code)
    command = [sys.executable, "-m", *hint.split(), "--output", "json"]
    with subprocess.Popen(command, cwd=folder, env=gusset.environ, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and b"address" in process.stdout.readline()
            assert gusset("predict", url, "--data", "{}").stdout == b"{}\n"
        finally:
            process.terminate()
