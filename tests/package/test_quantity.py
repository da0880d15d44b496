"""What `gusset check` accepts can be served: every value is checked and read by the same code."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gusset.containers.image_deployment import ImageDeployment
from gusset.errors import ConfigInvalid
from gusset.package.config import load_package, unsupported_for_serving
from gusset.package.quantity import parse_cpu, parse_memory
from gusset.serving.deployment import ModelDeployment
from tests.conftest import Cli

SERVER = {
    "start_command": "serve",
    "server_port": 8000,
    "predict_endpoint": "/predict",
    "readiness_endpoint": "/ready",
    "liveness_endpoint": "/alive",
}


def write_image(folder: Path, *, server: object = None, **sections: object) -> Path:
    config = {"base_image": {"image": "busybox"}, "docker_server": server or SERVER, **sections}
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("text", "cores"),
    [("2", 2), ("0.5", 0.5), ("500m", 0.5), ("1500m", 1.5), (".5m", 0.0005), ("1e3", 1000), (" 1 ", 1), ("0", 0)],
)  # fmt: skip
def test_an_amount_of_cpu_is_read_in_cores(text: str, cores: float) -> None:
    assert parse_cpu(text) == cores


@pytest.mark.parametrize(
    ("text", "size"),
    [("1024", 1024), ("1e3", 1000), ("2Gi", 2 * 2**30), ("1.5G", 1_500_000_000), ("1k", 1000), ("1Ki", 1024)],
)
def test_an_amount_of_memory_is_read_in_bytes(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["m", "..m", "-1", "inf", "nan", "1k", "500 m", "1e3m", "", "1e10", "٣m"])
def test_what_is_no_amount_of_cpu_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_cpu(text)


@pytest.mark.parametrize("text", ["Gi", "1.5.5Gi", "inf", "-1", "1K", "1GB", "1 Gi", "1e3Gi", "8Ei", ""])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_memory(text)


number_like = st.text("0123456789.eE+-_ mkMGTPi", max_size=8)
texts = st.one_of(number_like, st.text(max_size=12))
numbers = st.one_of(st.integers(), st.sampled_from([-1, 0, 1, 65535, 65536, 2**32 - 1, 10**400]))


@given(
    cpu=texts,
    memory=texts,
    port=numbers,
    user=numbers,
    delay=numbers,
    command=st.text("ab \"'\\\0;$", max_size=8),
    path=texts,
)
@example(cpu="m", memory="1Gi", port=80, user=1, delay=0, command="a", path="/")
@example(cpu="1", memory="1e3", port=80, user=1, delay=0, command="a", path="/")
@example(cpu="1", memory="1Gi", port=80, user=-1, delay=-1, command="'", path="/a\r\nb: c")
def test_an_image_that_passes_the_check_is_read(
    cpu: str, memory: str, port: int, user: int, delay: int, command: str, path: str
) -> None:
    """Either the problem is reported at its line, or the deployment can be built from the folder."""
    with tempfile.TemporaryDirectory() as name:
        server = SERVER | {
            "server_port": port,
            "run_as_user_id": user,
            "start_command": command,
            "readiness_endpoint": path,
        }
        write_image(
            Path(name),
            server=server,
            resources={"cpu": cpu, "memory": memory},
            runtime={"health_checks": {"startup_threshold_seconds": delay}},
        )
        try:
            deployment = ImageDeployment.from_package(load_package(Path(name)))
        except ConfigInvalid as error:
            assert error.problems
            assert all(problem.line and problem.hint for problem in error.problems)
            return
    assert deployment.cpus == parse_cpu(cpu)
    assert deployment.memory == parse_memory(memory)
    assert int((deployment.cpus or 0) * 1e9) < 2**63
    assert 0 < deployment.port < 65536
    assert deployment.user_id is not None
    assert deployment.user_id > 0
    assert f"{deployment.health.startup:g}"
    assert deployment.readiness.startswith("/")


@given(concurrency=numbers, timeout=numbers, ping=st.one_of(st.none(), st.floats(), numbers))
@example(concurrency=0, timeout=60, ping=20)
def test_a_model_that_passes_the_check_has_numbers_that_a_server_can_use(
    concurrency: int, timeout: int, ping: float | None
) -> None:
    """With no prediction at a time, every request would wait for ever."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        (folder / "model" / "model.py").touch()
        runtime = {
            "predict_concurrency": concurrency,
            "streaming_read_timeout": timeout,
            "transport": {"kind": "websocket", "ping_interval_seconds": ping},
        }
        text = json.dumps({"runtime": runtime}).replace("NaN", ".nan").replace("Infinity", ".inf")
        (folder / "config.yaml").write_text(text)
        try:
            package = load_package(folder)
        except ConfigInvalid:
            return
        if unsupported_for_serving(package):
            return
        deployment = ModelDeployment.from_package(package)
    assert deployment.predict_concurrency > 0
    assert 0 <= float(deployment.streaming_read_timeout) <= 1e9
    assert 0 <= float(deployment.transport["ping_interval_seconds"] or 0) <= 1e9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sections", "server", "where"),
    [
        ({"resources": {"cpu": "m"}}, {}, "resources.cpu"),
        ({"resources": {"memory": "Gi"}}, {}, "resources.memory"),
        ({}, {"start_command": "say 'hello"}, "docker_server.start_command"),
        ({}, {"server_port": 70000}, "docker_server.server_port"),
        ({}, {"run_as_user_id": -1}, "docker_server.run_as_user_id"),
        ({}, {"predict_endpoint": "/a b"}, "docker_server.predict_endpoint"),
        ({"runtime": {"health_checks": {"restart_threshold_seconds": -1}}}, {}, "restart_threshold_seconds"),
        ({"base_image": {}}, {}, "base_image"),
        ({"runtime": {"predict_concurrency": 0}}, {}, "runtime.predict_concurrency"),
    ],
)
def test_check_and_serve_refuse_the_same_key(
    gusset: Cli, tmp_path: Path, sections: dict[str, object], server: dict[str, object], where: str
) -> None:
    """`gusset check` finds what `gusset serve` would stop at, and neither calls it a bug in gusset."""
    write_image(tmp_path, server=SERVER | server, **sections)

    invalid = "resources" in sections  # else the file is sound, and cannot be served
    for command, status in (("check", 3 if invalid else 4), ("serve", 3)):
        done = gusset(command, str(tmp_path), status=status)
        assert where in done.stderr.decode()
        assert "bug" not in done.stderr.decode()


def test_an_amount_of_memory_with_an_exponent_is_checked_and_read(gusset: Cli, tmp_path: Path) -> None:
    """Truss accepts `"1e9"`, so gusset does too."""
    write_image(tmp_path, resources={"memory": "1e9", "cpu": "1e0"})

    gusset("check", str(tmp_path))
    deployment = ImageDeployment.from_package(load_package(tmp_path))
    assert (deployment.memory, deployment.cpus) == (10**9, 1)
