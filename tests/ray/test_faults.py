"""A node that is killed under load, and a head that is killed and started again."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.ports import free_port
from tests.ray.conftest import (
    OBJECT_STORE,
    Cluster,
    Secrets,
    eventually,
    running_cluster,
    write_folder,
)

CONFIG = "model_name: steady\nsecrets:\n  token: null\n"
MODEL = """\
import os
import time


class Model:
    def __init__(self, **kwargs):
        self.secrets = kwargs["secrets"]

    def predict(self, inputs):
        time.sleep(0.005)
        return {"length": len(self.secrets["token"]), "pid": os.getpid()}
"""
VALUE = b"value-that-survives-faults"
CLIENTS = 3  # of each application
OPTIONS = {"num_replicas": 2, "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 0.5}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "steady", CONFIG, MODEL)


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def cluster(port: int) -> Iterator[Cluster]:
    """A head without replicas, and two nodes with room for one replica of each application."""
    with running_cluster(cpus=0, port=port) as running:
        for _ in range(2):
            running.nodes.add_node(num_cpus=1, object_store_memory=OBJECT_STORE)
        yield running


class Load:
    """Clients that call one application until `stop`; `seen` counts statuses and kinds of errors."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.seen: Counter[str] = Counter()
        self.pids: Counter[int] = Counter()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with httpx.Client(trust_env=False, timeout=60) as client:
            while not self._stop.is_set():
                try:
                    response = client.post(self.address, json={})
                except httpx.HTTPError as error:
                    self.seen[type(error).__name__] += 1
                else:
                    self.seen[str(response.status_code)] += 1
                    if response.status_code == 200:
                        self.pids[response.json()["pid"]] += 1

    def failures(self) -> Counter[str]:
        """What was seen but 200."""
        return Counter({kind: number for kind, number in self.seen.items() if kind != "200"})


def plain_application() -> object:
    """The same class as a deployment of Ray Serve, without gusset."""
    from starlette.requests import Request

    from ray import serve

    class Plain:
        async def __call__(self, request: Request) -> dict[str, int]:
            import asyncio
            import os

            await request.json()
            await asyncio.sleep(0.005)
            return {"pid": os.getpid()}

    return serve.deployment(**OPTIONS)(Plain).bind()


def alive_nodes() -> int:
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def test_a_killed_node_loses_no_more_requests_than_plain_ray_serve(
    cluster: Cluster, secrets: Secrets, folder: Path
) -> None:
    """Both are under load when one node is killed; the replica that was lost starts on a new node, with its
    secret."""
    from gusset.ray import application
    from ray import serve

    secrets.gusset("secret", "set", "token", input=VALUE)
    access = {"manager": secrets.manager.address, "token_file": secrets.token("steady", "token")}
    cluster.run(steady=application(folder, **access, **OPTIONS), plain=plain_application())
    loads = [Load(f"{cluster.url}/steady/predict"), Load(f"{cluster.url}/plain")]
    for load in loads:
        load.start()
    ours, plain = loads
    eventually(lambda: all(len(load.pids) == 2 for load in loads), "responses of two replicas each")
    before, nodes = {load: set(load.pids) for load in loads}, alive_nodes()
    earlier = {load: load.failures() for load in loads}  # a proxy responds 404 until it has the routes

    cluster.nodes.remove_node(next(iter(cluster.nodes.worker_nodes)), allow_graceful=False)
    eventually(lambda: alive_nodes() == nodes - 1, "Ray has noticed that the node is gone")
    cluster.nodes.add_node(num_cpus=1, object_store_memory=OBJECT_STORE)
    eventually(lambda: all(set(load.pids) - before[load] for load in loads), "a new replica each", 90)
    for load in loads:
        load.stop()
    assert ours.seen["200"] > 100 and plain.seen["200"] > 100
    # Whatever the dead replica worked on is lost in both: at most one request of each client.
    lost, lost_by_plain = (load.failures() - earlier[load] for load in loads)
    assert lost.total() <= max(lost_by_plain.total(), CLIENTS), (lost, lost_by_plain)
    assert serve.status().applications["steady"].status == "RUNNING"


def predicted(url: str) -> Any:
    """The response of a model, once Ray's proxy has its route."""
    responses: list[httpx.Response] = []

    def responds() -> bool:
        responses.append(httpx.post(url, json={}, trust_env=False))
        return responses[-1].status_code == 200

    eventually(responds, "a response of the model")
    return responses[-1].json()


def test_a_cluster_whose_head_was_killed_serves_again_after_one_command(
    cluster: Cluster, secrets: Secrets, folder: Path, port: int
) -> None:
    """The replicas end with the head, so that nothing is left that has values; then the folder is deployed
    again."""
    import ray

    secrets.gusset("secret", "set", "token", input=VALUE)
    token = secrets.token("steady2", "token")
    command = ("deploy", "ray", str(folder), "--name", "steady2", "--route-prefix", "/steady2")
    access = ("--manager", secrets.manager.address, "--token-file", token)
    secrets.gusset(*command, "--address", cluster.address, *access)
    first = predicted(f"{cluster.url}/steady2/predict")
    ray.shutdown()
    cluster.nodes.remove_node(cluster.nodes.head_node, allow_graceful=False)
    eventually(lambda: not psutil.pid_exists(first["pid"]), "the end of the old replica", 90)
    for node in list(cluster.nodes.worker_nodes):
        cluster.nodes.remove_node(node, allow_graceful=False)

    with running_cluster(cpus=1, port=port) as again:
        secrets.gusset(*command, "--address", again.address, *access)
        second = predicted(f"{again.url}/steady2/predict")
    assert second["length"] == first["length"] and second["pid"] != first["pid"]
