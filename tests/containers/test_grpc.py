"""A custom image whose server speaks gRPC, called by the real client."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from tests.conftest import Cli, leaks_in
from tests.containers.conftest import BASE, CACHE, ServedImage, podman
from tests.containers.wire import Wire, running_proxy
from tests.serving.conftest import PATIENCE, eventually
from tests.serving.test_callers import make_certificate

TOKEN = b"grpc-hV8QmX2tRz-4711"
GRPC = {"runtime": {"transport": {"kind": "grpc"}}}
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture(scope="module")
def image(images: dict[str, str]) -> str:
    """An image with the library grpc of Debian's Python, and the server."""
    wheels = CACHE / "grpc-wheels"
    if not wheels.exists():
        new = CACHE / f"grpc-wheels.{os.getpid()}"
        command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "-d", str(new)]
        subprocess.run([*command, "--python-version", "3.11", "grpcio"], check=True, capture_output=True)
        new.rename(wheels)
    context = CACHE / f"grpc-image.{os.getpid()}"
    for wheel in wheels.iterdir():
        zipfile.ZipFile(wheel).extractall(context / "site")
    (context / "grpc_server.py").write_bytes(Path(__file__).with_name("grpc_server.py").read_bytes())
    recipe = f"FROM {BASE}\nENV PYTHONPATH=/site\nCOPY site /site\nCOPY grpc_server.py /app/grpc_server.py\n"
    name = "localhost/gusset-test:grpc"
    # The search for a cached layer fails while another process removes an image.
    podman("build", "-q", "--no-cache", "-t", name, "-f", "-", str(context), input=recipe.encode())
    shutil.rmtree(context)
    return name


@pytest.fixture
def launch_grpc(served: ServedImage, image: str) -> Callable[..., ServedImage]:
    def launch(*options: str, health: str = "1") -> ServedImage:
        served.secret("token", TOKEN)
        served.configure(image, f"python3 /app/grpc_server.py 8000 {health}", **GRPC)
        return served.start(*options).ready()

    return launch


@pytest.fixture
def channel(launch_grpc: Callable[..., ServedImage]) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(launch_grpc().address.rpartition("/")[2]) as channel:
        yield channel


def test_calls_and_streams_reach_the_server_with_their_metadata(channel: grpc.Channel) -> None:
    assert channel.unary_unary("/test/secret")(b"token", timeout=PATIENCE) == TOKEN
    seen = channel.unary_unary("/test/metadata")(b"", timeout=PATIENCE, metadata=[("x-mine", "7")])
    assert b"x-mine" in seen
    parts = [os.urandom(100_000) for _ in range(20)]
    assert list(channel.stream_stream("/test/echo_all")(iter(parts), timeout=PATIENCE)) == parts
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/test/absent")(b"", timeout=PATIENCE)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_new_value_reaches_the_server_and_its_output_is_masked(
    served: ServedImage, channel: grpc.Channel
) -> None:
    get = channel.unary_unary("/test/secret")
    assert get(b"token", timeout=PATIENCE) == TOKEN
    served.secret("token", b"grpc-the-next-value-0815")
    eventually(lambda: get(b"token", timeout=PATIENCE) == b"grpc-the-next-value-0815")
    assert not leaks_in(served.output.encode(), TOKEN)


def test_probes_and_metrics_are_http_and_other_requests_name_grpc(
    served: ServedImage, channel: grpc.Channel
) -> None:
    for path in ("/", "/v1/models/model", "/v1/models/model/loaded"):
        assert httpx.get(served.address + path).status_code == 200
    assert "gusset_model_ready 1" in httpx.get(f"{served.address}/gusset/metrics").text
    response = httpx.post(f"{served.address}/v1/models/model:predict", json={})
    assert (response.status_code, "gRPC client" in response.text) == (404, True)
    assert f"gRPC: {served.address.rpartition('/')[2]}" in served.output
    assert "curl" not in served.output


def test_a_call_in_flight_finishes_when_the_server_is_stopped(
    served: ServedImage, channel: grpc.Channel
) -> None:
    call = channel.unary_unary("/test/wait").future(b"1.5", timeout=PATIENCE)
    channel.unary_unary("/test/secret")(b"token", timeout=PATIENCE)
    served.running.send_signal(signal.SIGTERM)
    assert call.result() == b"done"
    channel.close()
    assert served.running.wait(PATIENCE) == 0
    assert not served.left_behind()


def test_a_server_without_a_health_service_is_ready_once_it_responds(
    launch_grpc: Callable[..., ServedImage],
) -> None:
    served = launch_grpc(health="none")
    with grpc.insecure_channel(served.address.rpartition("/")[2]) as channel:
        assert channel.unary_unary("/test/secret")(b"token", timeout=PATIENCE) == TOKEN


def test_a_server_that_does_not_serve_is_never_ready(served: ServedImage, image: str) -> None:
    served.secret("token", TOKEN)
    checks = {"health_checks": {"startup_threshold_seconds": 15}}
    served.configure(image, "python3 /app/grpc_server.py 8000 2", runtime=GRPC["runtime"] | checks)
    served.start()
    served.fails(9, "grpc.health.v1.Health/Check on its port 8000 gave NOT_SERVING")


def test_a_server_that_speaks_http_1_is_never_ready(served: ServedImage, images: dict[str, str]) -> None:
    served.secret("hf_access_token", TOKEN)
    checks = {"health_checks": {"startup_threshold_seconds": 3}}
    served.configure(images["root"], runtime=GRPC["runtime"] | checks)
    served.start()
    served.fails(9, "grpc.health.v1.Health/Check on its port 8000 gave")


def test_calls_of_grpc_are_encrypted_with_the_given_certificate(
    served: ServedImage, image: str, tmp_path: Path
) -> None:
    certificate, key = make_certificate(tmp_path, "served")
    served.secret("token", TOKEN)
    served.configure(image, "python3 /app/grpc_server.py 8000", **GRPC)
    served.start("--tls-certificate", str(certificate), "--tls-key", str(key)).ready()
    credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
    with grpc.secure_channel(served.address.rpartition("/")[2], credentials) as channel:
        assert channel.unary_unary("/test/secret")(b"token", timeout=PATIENCE) == TOKEN


def test_callers_keys_are_refused_since_they_cannot_be_checked(gusset: Cli, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "base_image: {image: localhost/x}\ndocker_server: {start_command: x, server_port: 8000, "
        "predict_endpoint: /, readiness_endpoint: /, liveness_endpoint: /}\n"
        "runtime: {transport: {kind: grpc}}\n"
    )
    done = gusset("serve", str(tmp_path), "--callers", "key", status=3)
    assert b"config.yaml:3" in done.stderr
    assert b"cannot check the keys of callers" in done.stderr


def test_http_2_is_refused_where_the_server_does_not_speak_grpc() -> None:
    with running_proxy() as proxy, proxy.connect() as client:
        client.send(HTTP2_PREFACE)
        assert client.response()[0] == 400
        assert proxy.application.connections == 0


def test_the_bytes_of_http_2_pass_unchanged_also_in_pieces() -> None:
    def echo(wire: Wire) -> None:
        while data := wire.exactly(1):
            wire.send(data)

    with running_proxy(is_grpc=True) as proxy:
        proxy.handle_with(echo)
        with proxy.connect() as client:
            client.send(*(HTTP2_PREFACE[at : at + 1] for at in range(len(HTTP2_PREFACE))), b"\0\1\2")
            assert client.exactly(len(HTTP2_PREFACE) + 3) == HTTP2_PREFACE + b"\0\1\2"


def test_http_2_gets_a_503_until_the_server_is_ready_and_a_502_if_it_is_gone() -> None:
    with running_proxy(is_grpc=True) as proxy:
        proxy.not_ready = "It is starting."
        with proxy.connect() as client:
            client.send(HTTP2_PREFACE)
            assert client.response()[0] == 503
            assert client.rest() == b""
        proxy.not_ready = None
        proxy.application.close()
        with proxy.connect() as client:
            client.send(HTTP2_PREFACE)
            assert client.response()[0] == 502
