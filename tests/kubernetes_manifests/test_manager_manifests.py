"""packaging/kubernetes: two managers on Kubernetes, and the pod that sets up their vault."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
import yaml

from tests.conftest import Cli
from tests.kubernetes_manifests.schemas import (
    VERSIONS,
    Object,
    check_schemas,
    containers_of,
    pod_of,
    violations,
)
from tests.manager.issuer import certificate
from tests.postgres_server import PostgresServer
from tests.serving.conftest import eventually

FOLDER = Path(__file__).parents[2] / "packaging" / "kubernetes"


def read(name: str) -> list[Object]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


@pytest.mark.parametrize("name", ["manager.yaml", "owner.yaml"])
def test_kubernetes_accepts_them_and_the_restricted_standard_admits_their_pods(name: str) -> None:
    found = read(name)
    check_schemas(found, VERSIONS)
    pod = pod_of(found)
    assert list(violations(pod)) == []
    assert pod["automountServiceAccountToken"] is False
    mounted = {mount["name"] for container in containers_of(pod) for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_there_are_two_managers_of_which_one_may_be_evicted() -> None:
    found = {each["kind"]: each for each in read("manager.yaml")}
    assert found["Deployment"]["spec"]["replicas"] == 2
    assert found["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"] == labels


def test_only_the_root_key_the_database_and_the_certificate_are_secrets_of_kubernetes() -> None:
    """They are files: no variable has a password or a key."""
    for name, expected in (
        ("manager.yaml", {"gusset-root-key", "gusset-database", "gusset-manager-tls"}),
        ("owner.yaml", {"gusset-root-key", "gusset-database-owner"}),
    ):
        assert "secretKeyRef" not in (FOLDER / name).read_text()
        volumes = pod_of(read(name))["volumes"]
        assert {v["secret"]["secretName"] for v in volumes if "secret" in v} == expected


class Volumes:
    """The folders that a pod's container mounts, as the kubelet makes them, and its command with their paths."""

    def __init__(self, root: Path, pod: Object, files: Mapping[str, Mapping[str, bytes]]) -> None:
        self.root = root
        self._container = pod["containers"][0]
        for mount in self._container["volumeMounts"]:
            folder = root / mount["mountPath"].lstrip("/")
            folder.mkdir(parents=True)
            content = files.get(mount["name"], {})
            for name, data in content.items():  # a link to a link to a file, 0440
                real = folder / "..2031_01_31" / name
                real.parent.mkdir(exist_ok=True)
                real.write_bytes(data)
                real.chmod(0o440)
                (folder / name).symlink_to(Path("..2031_01_31") / name)
            if not content:
                folder.chmod(0o2777)  # an emptyDir with fsGroup

    def _here(self, text: str) -> str:
        """A variable's value, or an argument of the form --option=PATH, with the path on this machine."""
        option, _, path = text.rpartition("=")
        is_mounted = any(path.startswith(mount["mountPath"]) for mount in self._container["volumeMounts"])
        return (f"{option}=" if option else "") + str(self.root / path.lstrip("/")) if is_mounted else text

    def cli(self, gusset: Cli) -> Cli:
        """The command line in the container."""
        given = {each["name"]: self._here(each["value"]) for each in self._container["env"]}
        own = {"GUSSET_SETTINGS": str(self.root / "data/settings.toml")}
        return Cli(Path(given["GUSSET_HOME"]), gusset.environ | given | own)

    def arguments(self) -> list[str]:
        return [self._here(each) for each in self._container["args"]]


def service(server: PostgresServer, url: str, user: str) -> bytes:
    database = url.rpartition("/")[2].partition("?")[0]
    lines = ["[gusset]", "host=127.0.0.1", f"port={server.port}", f"dbname={database}", f"user={user}"]
    return "\n".join([*lines, "password=not-asked-for"]).encode()


@pytest.mark.server
def test_the_managers_start_with_what_the_pods_mount(
    postgres_server: PostgresServer, gusset: Cli, tmp_path: Path
) -> None:
    """The volumes as the kubelet fills them, the commands of docs/kubernetes.md, and the probes."""
    url = postgres_server.new_database()
    root_key = b"gusset-root-key-1:" + base64.b64encode(os.urandom(32)) + b"\n"
    certificate(tmp_path, "gusset-manager.gusset.svc")
    both = (tmp_path / "gusset-manager.gusset.svc.both.pem").read_bytes()
    files = {
        "root-key": {"gusset-root-key": root_key},
        "database": {"pg_service.conf": service(postgres_server, url, "postgres")},
        "tls": {"tls.crt": (tmp_path / "gusset-manager.gusset.svc.pem").read_bytes(), "tls.key": both},
    }
    owner = Volumes(tmp_path / "owner", pod_of(read("owner.yaml")), files).cli(gusset)
    assert (
        b"gusset_key_"
        in owner(
            "manager", "init", "--email", "ada@example.com", input=b"correct horse battery staple"
        ).stdout
    )
    role = url.rpartition("/")[2].partition("?")[0] + "_manager"
    postgres_server.run(f'CREATE ROLE "{role}" LOGIN', database="postgres")
    grants = owner("manager", "grants", role).stdout.decode()
    postgres_server.run(grants, database=url.rpartition("/")[2].partition("?")[0])

    files["database"] = {"pg_service.conf": service(postgres_server, url, role)}
    pod = pod_of(read("manager.yaml"))
    volumes = Volumes(tmp_path / "manager", pod, files)
    manager = volumes.cli(gusset)
    command = [*(word.replace("0.0.0.0", "127.0.0.1") for word in volumes.arguments()), "--port", "0"]
    command += ["--output", "json"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gusset", *command],
            env=manager.environ,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (tmp_path / "log").read_text()
        port = json.loads(line)["address"].rpartition(":")[2]
        container = pod["containers"][0]
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=False) as client:  # as the kubelet
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                path = container[probe]["httpGet"]["path"]
                eventually(lambda path=path: client.get(path).status_code == 200)  # type: ignore[misc]
    finally:
        process.terminate()
        assert process.wait(20) == 0
        process.stdout.close()
    assert (tmp_path / "owner/data/gusset/audit.witness").exists()
