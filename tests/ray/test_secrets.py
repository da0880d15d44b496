"""Secrets in the replicas of two nodes: read, rotated, acknowledged, masked, and stored nowhere by Ray."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import leaks_in, seconds_since
from tests.manager.issuer import Key, running_issuer
from tests.ray.conftest import (
    OBJECT_STORE,
    Cluster,
    Secrets,
    contents_below,
    eventually,
    running_cluster,
    write_folder,
)

CANARY = b"canary-of-the-rotations-%d-x7Qp2LmZ"
START = CANARY[:24]
CONFIG = "model_name: rotated\nsecrets:\n  token: null\nresources:\n  cpu: '{cpu}'\n"
MODEL = """\
import hashlib
import logging
import os
import subprocess
import sys


def sha(value):
    return hashlib.sha256(value.encode()).hexdigest()


class Model:
    def __init__(self, **kwargs):
        self.secrets = kwargs["secrets"]
        self.changed = []

    def load(self):
        self.secrets.on_change("token", lambda value: self.changed.append(sha(value)))
        token = self.secrets["token"]
        print("printed", token)
        print(token[:20], end="", flush=True)
        print(token[20:])
        logging.getLogger("model").warning("logged %r", token, extra={"field": str(token)})
        os.write(2, b"written " + token.encode() + b"\\n")
        subprocess.run([sys.executable, "-c", "print('by a child', input())"], input=token.encode())
        if (fork := os.fork()) == 0:
            logging.getLogger("model").warning("logged by a fork %s", token)
            os._exit(0)
        os.waitpid(fork, 0)

    def predict(self, inputs):
        token = self.secrets["token"]
        if inputs.get("raise"):
            raise ValueError("raised " + token)
        previous = self.secrets.previous("token")
        return {
            "sha": sha(token),
            "pid": os.getpid(),
            "changed": self.changed,
            "previous": previous and sha(previous),
        }
"""
FAILING = """\
class Model:
    def __init__(self, **kwargs):
        self.secrets = kwargs["secrets"]

    def load(self):
        raise ValueError("cannot log in with " + self.secrets["token"])

    def predict(self, inputs):
        return inputs
"""


def value(number: int) -> bytes:
    return CANARY % number


def sha(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes, each with room for one replica, and Ray's dashboard."""
    with running_cluster(cpus=1, dashboard=True) as running:
        running.nodes.add_node(num_cpus=1, object_store_memory=OBJECT_STORE)
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("rotated") / "rotated", CONFIG.format(cpu=0.7), MODEL)


@pytest.fixture(scope="module")
def deployed(cluster: Cluster, secrets: Secrets, folder: Path) -> str:
    """The address of the model, deployed by the command with one replica on each node."""
    secrets.gusset("secret", "set", "token", input=value(0))
    options = ("--manager", secrets.manager.address, "--token-file", secrets.token("rotated", "token"))
    command = ("deploy", "ray", str(folder), "--address", cluster.address, "--replicas", "2")
    done = secrets.gusset(*command, "--route-prefix", "/rotated", *options)
    assert b"rotated is running" in done.stdout
    return f"{cluster.url}/rotated/predict"


def responses_of(address: str, count: int = 40) -> dict[int, dict[str, Any]]:
    """The newest response of each replica, by its process.

    Under load Ray takes a proxy for dead now and then; the next one knows the application a moment later.
    """
    with httpx.Client(trust_env=False, timeout=30) as client:
        eventually(lambda: client.post(address, json={}).status_code == 200, "the application is served")
        responses = [client.post(address, json={}).json() for _ in range(count)]
    return {each["pid"]: each for each in responses}


def node_of(pid: int) -> str:
    """The raylet that started a process."""
    return next(str(each.pid) for each in psutil.Process(pid).parents() if each.name() == "raylet")


def test_the_replicas_of_two_nodes_have_the_secret(deployed: str) -> None:
    """Each has read it itself."""
    found = responses_of(deployed)
    assert {each["sha"] for each in found.values()} == {sha(value(0))}
    assert len({node_of(pid) for pid in found}) == 2


def test_a_rotation_is_acknowledged_by_all_replicas(deployed: str, secrets: Secrets) -> None:
    """`secret set --wait` ends with 0, and from then on no replica uses the older value."""
    before = responses_of(deployed)
    started = time.monotonic()
    command = ("secret", "set", "token", "--wait", "--timeout", "20", "--overlap", "1h", "--output", "json")
    waited = json.loads(secrets.gusset(*command, input=value(1)).stdout)
    took = seconds_since(started)
    found = responses_of(deployed)
    assert found.keys() == before.keys()
    assert {each["sha"] for each in found.values()} == {sha(value(1))}
    assert {each["previous"] for each in found.values()} == {sha(value(0))}
    assert all(each["changed"] == [sha(value(1))] for each in found.values())
    assert took < 10, waited  # a watcher that polls or a lease that ends would take longer
    shown = json.loads(secrets.gusset("deployment", "show", "rotated", "--output", "json").stdout)
    assert [replica["live"] for replica in shown["replicas"]] == [True, True]


def test_a_model_error_is_masked(deployed: str) -> None:
    """The client sees Truss's text; the log has the traceback, masked (see the search below)."""
    response = httpx.post(deployed, json={"raise": True}, trust_env=False)
    assert (response.status_code, response.json()) == (
        500,
        {"error": "Internal Server Error (in model/chainlet)."},
    )


def test_a_failing_load_is_reported_masked(cluster: Cluster, secrets: Secrets, tmp_path: Path) -> None:
    """The command says why, with the model's own traceback; the value is in neither output nor Ray's state."""
    failing = write_folder(
        tmp_path / "failing", CONFIG.format(cpu=0.1).replace("rotated", "failing"), FAILING
    )
    options = ("--manager", secrets.manager.address, "--token-file", secrets.token("failing", "token"))
    command = ("deploy", "ray", str(failing), "--address", cluster.address, "--route-prefix", "/failing")
    done = secrets.gusset(*command, *options, status=9)
    assert b"the model's load failed, twice" in done.stderr
    assert b"ValueError: cannot log in with ***" in done.stderr
    assert not leaks_in(done.stdout + done.stderr, value(1))


def test_a_replica_proves_itself_by_a_token_of_its_platform(
    deployed: str, cluster: Cluster, secrets: Secrets, tmp_path: Path
) -> None:
    """Nothing of gusset's is stored on the nodes: the file has a JSON Web Token of a trusted issuer."""
    from gusset.ray import application

    identified = write_folder(
        tmp_path / "identified", CONFIG.format(cpu=0.1).replace("rotated", "identified"), MODEL
    )
    file = tmp_path / "jwt"
    with running_issuer(Key.make("k", "EdDSA")) as issuer:
        rule = ("--deployment", "identified", "--secrets", "token", "--issuer", issuer.url, "--subject", "s")
        secrets.gusset("identity", "add", "of-ray", *rule)
        file.write_text(issuer.token(exp=int(time.time()) + 3600))
        access = {"manager": secrets.manager.address, "identity_token_file": str(file)}
        cluster.run(identified=application(identified, **access))
        response = httpx.post(f"{cluster.url}/identified/predict", json={}, trust_env=False)
    assert response.json()["sha"] == sha(value(1))


def ray_processes(manager: int) -> list[psutil.Process]:
    """All processes of the cluster, but for the replicas, which hold the values."""
    started = psutil.Process().children(recursive=True)
    return [each for each in started if each.pid != manager and not _is_replica(each)]


def _is_replica(process: psutil.Process) -> bool:
    """Also true for a process that has ended."""
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return True
    return not words or "ServeReplica" in words[0]


def memory_of(pid: int) -> Iterator[bytes]:
    """The writable memory of a process, shared memory (the object store) included; nothing once it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError), Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, mode, *_ = line.split()
            start, end = (int(number, 16) for number in span.split("-"))
            if "rw" not in mode or end - start > 1 << 30:
                continue
            memory.seek(start)
            try:
                yield memory.read(end - start)
            except OSError:
                continue


def test_no_value_is_in_the_processes_of_ray(deployed: str, secrets: Secrets) -> None:
    """Control store, object store, scheduler, proxies, controller: memory, environment and arguments."""
    replicas = set(responses_of(deployed))
    if os.getuid() != 0:
        pytest.skip("only root may read the memory of other processes")
    searched = ray_processes(secrets.manager.process.pid)
    assert {"gcs_server", "raylet"} <= {each.name() for each in searched}
    assert any(leaks_in(data, START) for data in memory_of(min(replicas)))  # the search finds what is there
    for process in searched:
        assert not any(leaks_in(data, START) for data in memory_of(process.pid)), process
    for pid in [*replicas, *(each.pid for each in searched)]:
        for file in ("environ", "cmdline"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                assert not leaks_in(Path(f"/proc/{pid}/{file}").read_bytes(), value(0), value(1))


def test_no_value_is_in_the_files_of_ray(deployed: str, cluster: Cluster) -> None:
    """Logs of replicas, workers and the controller, and what Ray spills. The masked lines are there."""
    contents = contents_below(cluster.folder)
    assert [path for path, data in contents.items() if leaks_in(data, value(0), value(1))] == []
    logs = b"".join(data for path, data in contents.items() if path.suffix in (".log", ".out", ".err"))
    expected = [
        "printed ***",
        "logged '***'",
        "written ***",
        "by a child ***",
        "logged by a fork ***",
        "raised ***",
        "log in with ***",
    ]
    assert [text for text in expected if text.encode() not in logs] == []


def test_no_value_is_in_the_control_store_or_the_dashboards_api(deployed: str, cluster: Cluster) -> None:
    """Every key of every namespace, and what the dashboard and the state API return."""
    from ray.experimental import internal_kv
    from ray.util import state

    namespaces = [None, b"serve", b"gusset", b"fun", b"cls", b"package", b"session", b"job", b"dashboard"]
    entries = [
        internal_kv._internal_kv_get(key, namespace=namespace) or b""
        for namespace in namespaces
        for key in internal_kv._internal_kv_list(b"", namespace=namespace)
    ]
    assert len(entries) > 5
    found = b"".join(entries)
    dashboard = f"http://{cluster.nodes.webui_url}"
    paths = (
        "/api/serve/applications/",
        "/nodes?view=summary",
        "/api/v0/actors?detail=true",
        "/api/v0/tasks?detail=true",
    )
    paths += (
        "/api/v0/objects?detail=true",
        "/api/v0/workers?detail=true",
        "/api/v0/runtime_envs?detail=true",
        "/api/jobs/",
    )
    for path in paths:
        response = httpx.get(dashboard + path, timeout=60, trust_env=False)
        assert response.status_code == 200, (path, response.text)
        found += response.content
    found += repr(state.list_actors(address=dashboard, detail=True)).encode()
    assert b"log in with ***" in found
    assert not leaks_in(found, value(0), value(1))


def test_a_replica_starts_when_the_manager_is_back(
    cluster: Cluster, secrets: Secrets, tmp_path: Path
) -> None:
    """It waits a while for a manager that is away, and Ray sends it no request before."""
    from gusset.ray import application

    waiting = write_folder(tmp_path / "waiting", CONFIG.format(cpu=0.1).replace("rotated", "waiting"), MODEL)
    token = secrets.token("waiting", "token")
    secrets.manager.kill()
    made = application(waiting, manager=secrets.manager.address, token_file=token)
    from ray import serve

    serve.run_many(
        [serve.RunTarget(made, name="waiting", route_prefix="/waiting")],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )
    time.sleep(3)  # longer than a start takes that does not wait: it would be running, or have failed
    assert serve.status().applications["waiting"].status == "DEPLOYING"
    secrets.manager.start()
    address = f"{cluster.url}/waiting/predict"
    eventually(lambda: serve.status().applications["waiting"].status == "RUNNING", "the replica")
    eventually(lambda: httpx.post(address, json={}, trust_env=False).status_code == 200, "a response")
