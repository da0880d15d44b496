"""Pods of a real cluster get their secrets, and rotations, from the manifests that `gusset deploy kubernetes` prints.

The cluster is Kubernetes 1.20, the newest that can be built offline here. Two things differ from newer ones: it knows
PodDisruptionBudgets of `policy/v1beta1` only, and no native side-cars. Its network does not enforce NetworkPolicies:
that they are accepted is all that these tests show of them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import clean_environ, forms_of
from tests.containers.conftest import REPO
from tests.kubernetes.cluster import ISSUER, Cluster
from tests.kubernetes.conftest import GUSSET, HERE, MODEL, SERVER, Folders
from tests.manager.conftest import ADMIN, PASSWORD
from tests.manager.issuer import certificate

MANAGERS, MODELS = "gusset", "models"
MANAGER = f"gusset-manager.{MANAGERS}.svc.cluster.local"
SECRET = "hf_access_token"
PATIENCE = 180  # seconds: two cores run the cluster and all pods

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        os.environ.get("GUSSET_TEST_KUBERNETES") != "1", reason="`make kubernetes` runs these"
    ),
]


def until(condition: Callable[[], object], what: Callable[[], str] | str) -> float:
    """Wait until `condition` is true; the seconds that it took."""
    begun = time.monotonic()
    while not condition():
        late = time.monotonic() - begun > PATIENCE
        assert not late, f"never so: {what if isinstance(what, str) else what()}"
        time.sleep(0.2)
    return time.monotonic() - begun


@dataclass
class Installation:
    """Managers on the cluster, with an administrator who uses the command line on the node."""

    cluster: Cluster
    folder: Path
    authority: Path
    values: list[bytes]

    def gusset(self, *arguments: str, input: bytes = b"", status: int = 0, **environ: str) -> bytes:
        """What a command prints, standard error first."""
        command = [sys.executable, "-m", "gusset", *arguments]
        clean = clean_environ(self.folder / "home", self.folder / "settings.toml")
        own = {"GUSSET_MANAGER_CA": str(self.authority), **environ}
        done = self.cluster.run(command, input=input, environ=clean | own)
        output = done.stderr + done.stdout
        assert done.returncode == status, output.decode()
        return output if status else done.stdout

    def set_secret(self, *options: str) -> tuple[bytes, float]:
        """Set a new value; it, and the seconds that the command took."""
        value = f"hf_{secrets.token_urlsafe(32)}".encode()
        self.values.append(value)
        begun = time.monotonic()
        self.gusset("secret", "set", SECRET, *options, input=value)
        return value, time.monotonic() - begun

    def manifests(self, folder: Path, name: str, *options: str) -> str:
        """What `gusset deploy kubernetes` prints, as this version of Kubernetes knows it."""
        known = {"pod-model": MODEL, "pod-server": SERVER}[folder.name]
        command = [
            "deploy",
            "kubernetes",
            str(folder),
            "--name",
            name,
            "--namespace",
            MODELS,
            "--image",
            known,
        ]
        command += ["--manager", f"https://{MANAGER}", "--manager-ca", str(self.authority)]
        if known == SERVER:
            command += ["--sidecar", "ordinary", "--agent-image", GUSSET]
        return as_1_20(self.gusset(*command, *options).decode())

    def deploy(self, folder: Path, name: str, *, is_bound: bool = True, options: tuple[str, ...] = ()) -> str:
        """Apply the manifests; their text."""
        register = ("--register", "--issuer", ISSUER) if is_bound else ()
        text = self.manifests(folder, name, *options, *register)
        self.cluster.kubectl("apply", "-f", "-", input=text)
        return text

    def pods(self, name: str) -> list[dict]:
        found = self.cluster.get("pods", "-n", MODELS, "-l", f"gusset.dev/deployment={name}")["items"]
        return [each for each in found if "deletionTimestamp" not in each["metadata"]]

    def is_ready(self, name: str) -> bool:
        return any(
            each["type"] == "Ready" and each["status"] == "True"
            for pod in self.pods(name)
            for each in pod["status"].get("conditions", [])
        )

    def log(self, name: str, *options: str) -> str:
        pods = ["-n", MODELS, "-l", f"gusset.dev/deployment={name}", "--all-containers", "--tail=-1"]
        return self.cluster.kubectl("logs", *pods, *options)

    def wait_until_ready(self, name: str) -> float:
        return until(lambda: self.is_ready(name), lambda: self.describe(name))

    def describe(self, name: str) -> str:
        described = self.cluster.kubectl(
            "describe", "pods", "-n", MODELS, "-l", f"gusset.dev/deployment={name}"
        )
        return f"{name} is ready\n{described}\n{self.log(name)}"

    def call(self, name: str, path: str) -> dict:
        """The response of the server, through the service."""
        self.cluster.publish_services()
        url = f"http://{name}.{MODELS}.svc.cluster.local{path}"
        done = self.cluster.run(["curl", "-sS", "--fail", "--max-time", "20", "-d", "{}", url])
        assert done.returncode == 0, done.stderr.decode() + self.log(name)
        return json.loads(done.stdout)


def as_1_20(manifests: str) -> str:
    """With the one version of an API that Kubernetes 1.20 does not have under this name."""
    return manifests.replace("apiVersion: policy/v1\n", "apiVersion: policy/v1beta1\n")


@pytest.fixture(scope="module")
def installation(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """PostgreSQL and two managers from packaging/kubernetes, which trust the cluster's service accounts."""
    folder = tmp_path_factory.mktemp("installation")
    authority, _ = certificate(folder, MANAGER)
    installation = Installation(cluster, folder, authority, [])
    try:
        install_managers(installation)
        cluster.kubectl("create", "namespace", MODELS)
        installation.set_secret()
        yield installation
    except BaseException:
        print(cluster.kubectl("describe", "pods", "--all-namespaces"))
        raise


def install_managers(installation: Installation) -> None:
    cluster, folder = installation.cluster, installation.folder
    cluster.kubectl("create", "namespace", MANAGERS)
    passwords = {role: secrets.token_hex(16) for role in ("owner", "gusset")}
    make_secret(cluster, "database", password=passwords["owner"])
    make_secret(
        cluster,
        "gusset-root-key",
        **{"gusset-root-key": f"gusset-root-key-1:{base64.b64encode(secrets.token_bytes(32)).decode()}\n"},
    )
    for name, role in (("gusset-database", "gusset"), ("gusset-database-owner", "owner")):
        host = f"database.{MANAGERS}.svc.cluster.local"
        service = f"[gusset]\nhost={host}\ndbname=vault\nuser={role}\npassword={passwords[role]}\n"
        make_secret(cluster, name, **{"pg_service.conf": service})
    tls = {
        "tls.crt": installation.authority.read_text(),
        "tls.key": (folder / f"{MANAGER}.both.pem").read_text(),
    }
    make_secret(cluster, "gusset-manager-tls", **tls)
    apply_file(cluster, HERE / "postgres.yaml")
    apply_file(cluster, REPO / "packaging" / "kubernetes" / "owner.yaml")
    cluster.publish_services()
    kubectl = ["-n", MANAGERS]
    wait = [*kubectl, "wait", f"--timeout={PATIENCE}s"]
    cluster.kubectl(*wait, "--for=condition=Available", "deployment/database")
    cluster.kubectl(*wait, "--for=condition=Ready", "pod/gusset-owner")
    owner = [*kubectl, "exec", "-i", "gusset-owner", "--", "gusset", "manager"]
    key = cluster.kubectl(*owner, "init", "--email", ADMIN, input=PASSWORD.decode()).strip()
    database = [
        *kubectl,
        "exec",
        "-i",
        "deployment/database",
        "--",
        "psql",
        "-q",
        "-U",
        "owner",
        "-d",
        "vault",
    ]
    database += ["-v", "ON_ERROR_STOP=1"]
    cluster.kubectl(*database, input=f"CREATE ROLE gusset LOGIN PASSWORD '{passwords['gusset']}';\n")
    cluster.kubectl(*database, input=cluster.kubectl(*owner, "grants", "gusset"))
    cluster.kubectl(*kubectl, "delete", "pod", "gusset-owner")
    apply_file(cluster, REPO / "packaging" / "kubernetes" / "manager.yaml")
    cluster.publish_services()
    cluster.kubectl(*wait, "--for=condition=Available", "deployment/gusset-manager")
    installation.gusset("login", f"https://{MANAGER}", input=key.encode())
    keys = folder / "jwks.json"
    keys.write_text(cluster.kubectl("get", "--raw", "/openid/v1/jwks"))
    installation.gusset("issuer", "add", ISSUER, "--jwks", str(keys))


def make_secret(cluster: Cluster, name: str, **data: str) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}
    cluster.kubectl("apply", "-n", MANAGERS, "-f", "-", input=json.dumps(body))


def apply_file(cluster: Cluster, file: Path) -> None:
    text = file.read_text().replace("registry.example/gusset:1", GUSSET)
    cluster.kubectl("apply", "--server-side", "-n", MANAGERS, "-f", "-", input=as_1_20(text))


def sha(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


PATHS = {"pod-model": "/v1/models/model:predict", "pod-server": "/predict"}


@pytest.mark.parametrize("which", ["model", "server"])
def test_a_pod_has_its_secret_and_acknowledges_a_rotation_within_a_second(
    installation: Installation, folders: Folders, which: str
) -> None:
    """From the printed manifests: a Python model, and a custom image with the agent as an ordinary side-car."""
    folder: Path = getattr(folders, which)
    name = folder.name
    installation.deploy(folder, name)
    ready = installation.wait_until_ready(name)
    assert installation.call(name, PATHS[name])["sha"] == sha(installation.values[-1])

    value, seconds = installation.set_secret("--wait", "--timeout", "60")
    response = installation.call(name, PATHS[name])
    assert response["sha"] == sha(value)
    assert response.get("mount", "tmpfs") == "tmpfs"
    print(f"{name}: ready after {ready:.1f} s; `secret set --wait` took {seconds:.2f} s")
    assert_no_leaks(installation)


def assert_no_leaks(installation: Installation) -> None:
    """No value is in etcd, on the node's disk, in a log, or in what the API has of any object."""
    cluster = installation.cluster
    forms = {form for value in installation.values for form in forms_of(value)}
    patterns = installation.folder / "patterns"
    patterns.write_bytes(b"\n".join(sorted(forms)))
    texts = [cluster.kubectl("get", "all,configmaps,secrets,events,serviceaccounts", "-A", "-o", "yaml")]
    texts += [
        cluster.kubectl("logs", "-n", namespace, pod["metadata"]["name"], "--all-containers", "--tail=-1")
        for namespace in (MANAGERS, MODELS)
        for pod in cluster.get("pods", "-n", namespace)["items"]
    ]
    assert not any(form.decode("latin-1") in text for text in texts for form in forms)
    # What the node has mounted in memory is not seen from outside of its namespaces.
    search = ["grep", "-rlaF", "-D", "skip", "-f", str(patterns), str(cluster.folder)]
    found = subprocess.run(search, capture_output=True, text=True)
    assert not found.stdout, found.stdout
    patterns.unlink()
