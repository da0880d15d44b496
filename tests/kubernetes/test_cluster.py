"""Pods of a real cluster get their secrets, and rotations, from the manifests that `gusset deploy kubernetes` prints.

The cluster is Kubernetes 1.20, the newest that can be built offline here. Two things differ from newer ones: it knows
PodDisruptionBudgets of `policy/v1beta1` only, and no native sidecars. Its network does not enforce NetworkPolicies:
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
from typing import Any

import pytest

from tests.conftest import clean_environ, forms_of, seconds_since
from tests.containers.conftest import REPO
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.configuration import ISSUER
from tests.kubernetes.conftest import FILL_MASK, GUSSET, HERE, MODEL, SERVER, FillMask, Folders
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


@dataclass(frozen=True)
class Written:
    """A new value, the seconds until `secret set` had ended, and fewer where other work had the processors."""

    value: bytes
    seconds: float
    seconds_of_its_own: float


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

    def set_secret(self, *options: str, value: bytes | None = None) -> Written:
        value = value or f"hf_{secrets.token_urlsafe(32)}".encode()
        self.values.append(value)
        began = time.monotonic()
        self.gusset("secret", "set", SECRET, *options, input=value)
        return Written(value, time.monotonic() - began, seconds_since(began))

    def rotate(self) -> Written:
        """Set a new value, and wait until all replicas have acknowledged it."""
        return self.set_secret("--wait", "--timeout", "60")

    def manifests(self, folder: Path, name: str, *options: str) -> str:
        """What `gusset deploy kubernetes` prints, as this version of Kubernetes knows it."""
        known = {"pod-model": MODEL, "pod-server": SERVER, "fill-mask": FILL_MASK}[folder.name]
        command = ["deploy", "kubernetes", str(folder), "--name", name, "--namespace", MODELS]
        command += ["--image", known]
        command += ["--manager", f"https://{MANAGER}", "--manager-ca", str(self.authority)]
        if known == SERVER:
            command += ["--sidecar", "ordinary", "--agent-image", GUSSET]
        return as_1_20(self.gusset(*command, *options).decode())

    def deploy(self, folder: Path, name: str) -> None:
        """Bind the service account and apply the manifests."""
        self.apply(self.manifests(folder, name, "--register", "--issuer", ISSUER))

    def apply(self, manifests: str, *options: str) -> None:
        self.cluster.kubectl("apply", "--server-side", *options, "-f", "-", input=manifests)

    def pods(self, name: str) -> list[dict[str, Any]]:
        found = self.cluster.get("pods", "-n", MODELS, "-l", f"gusset.dev/deployment={name}")["items"]
        return [each for each in found if "deletionTimestamp" not in each["metadata"]]

    def is_ready(self, name: str) -> bool:
        return any(
            each["type"] == "Ready" and each["status"] == "True"
            for pod in self.pods(name)
            for each in pod["status"].get("conditions", [])
        )

    def log(self, name: str, container: str = "server") -> str:
        """What a container has logged, which need not have started."""
        kubectl = [
            str(self.cluster.programs / "kubectl"),
            "--kubeconfig",
            str(self.cluster.folder / "admin.conf"),
        ]
        pods = ["-n", MODELS, "-l", f"gusset.dev/deployment={name}", "-c", container, "--tail=-1"]
        return self.cluster.run([*kubectl, "logs", *pods]).stdout.decode("utf-8", "replace")

    def wait_until_logged(self, name: str, container: str, text: str) -> None:
        until(lambda: text in self.log(name, container), lambda: f"{text} in {self.log(name, container)}")

    def wait_until_ready(self, name: str) -> float:
        return until(lambda: self.is_ready(name), lambda: self.describe(name))

    def describe(self, name: str) -> str:
        described = self.cluster.kubectl(
            "describe", "pods", "-n", MODELS, "-l", f"gusset.dev/deployment={name}"
        )
        return f"{name} is ready\n{described}\n{self.log(name)}"

    def call(self, name: str, path: str, body: str = "{}") -> Any:
        """The response of the server, through the service."""
        self.cluster.publish_services()
        url = f"http://{name}.{MODELS}.svc.cluster.local{path}"
        done = self.cluster.run(["curl", "-sS", "--fail", "--max-time", "20", "-d", body, url])
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


def response_of(installation: Installation, folder: Path, name: str) -> Any:
    path = {"pod-model": "/v1/models/model:predict", "pod-server": "/predict"}[folder.name]
    return installation.call(name, path)


def generations(installation: Installation, name: str) -> dict[str, object]:
    """By object, what changes with each change that a person makes."""
    kinds = "deployments,services,networkpolicies,poddisruptionbudgets,serviceaccounts,configmaps,pods"
    found = installation.cluster.get(kinds, "-n", MODELS, "-l", f"gusset.dev/deployment={name}")["items"]
    return {
        f"{each['kind']}/{each['metadata']['name']}": each["metadata"].get("generation")
        or (each["kind"] != "Pod" and each["metadata"]["resourceVersion"])
        for each in found
    }


@pytest.mark.parametrize("which", ["model", "server"])
def test_a_pod_has_its_secret_and_acknowledges_a_rotation_within_a_second(
    installation: Installation, folders: Folders, which: str
) -> None:
    """From the printed manifests: a Python model, and a custom image with the agent as an ordinary sidecar."""
    folder: Path = getattr(folders, which)
    name = folder.name
    installation.deploy(folder, name)
    ready = installation.wait_until_ready(name)
    assert response_of(installation, folder, name)["sha"] == sha(installation.values[-1])

    rotations = sorted((installation.rotate() for _ in range(5)), key=lambda each: each.seconds)
    response = response_of(installation, folder, name)
    assert response["sha"] == sha(installation.values[-1])
    assert response.get("mount", "tmpfs") == "tmpfs"
    if which == "model":
        assert "the token is ***" in installation.log(name)
    median = rotations[2]
    print(
        f"\n{name}: ready after {ready:.1f} s; `secret set --wait` took {median.seconds:.2f} s (median of 5)"
    )
    assert median.seconds_of_its_own < 1
    assert_no_leaks(installation)


def test_manifests_that_are_applied_again_change_nothing(
    installation: Installation, folders: Folders
) -> None:
    """Neither objects nor pods; the API server also accepts them as a trial."""
    for folder in (folders.model, folders.server):
        name = f"twice-{folder.name}"
        installation.deploy(folder, name)
        installation.wait_until_ready(name)
        before = generations(installation, name)
        assert len(before) == 7
        manifests = installation.manifests(folder, name)
        installation.apply(manifests, "--dry-run=server")
        installation.apply(manifests)
        assert generations(installation, name) == before


@pytest.mark.parametrize("which", ["model", "server"])
def test_a_killed_pod_is_replaced_by_one_with_the_newest_value(
    installation: Installation, folders: Folders, which: str
) -> None:
    """The secret changes while there is no pod."""
    folder: Path = getattr(folders, which)
    name = f"killed-{which}"
    installation.deploy(folder, name)
    installation.wait_until_ready(name)
    [killed] = (pod["metadata"]["name"] for pod in installation.pods(name))
    force = ["delete", "pod", killed, "-n", MODELS, "--grace-period=0", "--force"]
    installation.cluster.kubectl(*force)
    value = installation.set_secret().value
    seconds = installation.wait_until_ready(name)
    assert killed not in [pod["metadata"]["name"] for pod in installation.pods(name)]
    assert response_of(installation, folder, name)["sha"] == sha(value)
    print(f"\n{name}: another pod was ready after {seconds:.1f} s")
    assert_no_leaks(installation)


def test_killed_managers_lose_no_acknowledged_value(installation: Installation, folders: Folders) -> None:
    """Both are killed at once; pods serve meanwhile, and get a rotation from the managers that follow."""
    name = "survivor"
    installation.deploy(folders.model, name)
    installation.wait_until_ready(name)
    value = installation.rotate().value
    managers = ["-n", MANAGERS, "-l", "app.kubernetes.io/name=gusset-manager"]
    installation.cluster.kubectl("delete", "pods", *managers, "--grace-period=0", "--force")
    assert response_of(installation, folders.model, name)["sha"] == sha(value)
    wait_for_managers(installation)
    value = installation.set_secret().value
    until(
        lambda: response_of(installation, folders.model, name)["sha"] == sha(value), "the new value arrives"
    )


def test_an_account_that_nobody_bound_gets_nothing_and_its_pod_says_so(
    installation: Installation, folders: Folders
) -> None:
    """Binding it is enough: the pod needs no other manifests."""
    for folder, container in ((folders.model, "server"), (folders.server, "secrets-at-start")):
        name = f"unbound-{folder.name}"
        installation.apply(installation.manifests(folder, name))
        installation.wait_until_logged(name, container, f"system:serviceaccount:{MODELS}:{name}")
        assert not installation.is_ready(name)
        installation.manifests(folder, name, "--register", "--issuer", ISSUER)
        installation.wait_until_ready(name)
        assert response_of(installation, folder, name)["sha"] == sha(installation.values[-1])


def test_a_pod_that_starts_without_a_manager_waits_for_one(
    installation: Installation, folders: Folders
) -> None:
    """It says so in its log, and becomes ready when a manager is there."""
    cluster = installation.cluster
    register = ("--register", "--issuer", ISSUER)
    model = installation.manifests(folders.model, "early-model", *register)
    server = installation.manifests(folders.server, "early-server", *register)
    cluster.kubectl("scale", "-n", MANAGERS, "deployment/gusset-manager", "--replicas=0")
    managers = ("pods", "-n", MANAGERS, "-l", "app.kubernetes.io/name=gusset-manager")
    until(lambda: not cluster.get(*managers)["items"], "the managers are gone")
    installation.apply(model)
    installation.apply(server)
    for name, container in (("early-model", "server"), ("early-server", "secrets-at-start")):
        installation.wait_until_logged(name, container, MANAGER)
        assert not installation.is_ready(name)
    cluster.kubectl("scale", "-n", MANAGERS, "deployment/gusset-manager", "--replicas=2")
    wait_for_managers(installation)
    for name in ("early-model", "early-server"):
        print(f"\n{name}: ready {installation.wait_until_ready(name):.1f} s after the managers")


def test_the_examples_token_reaches_a_fill_mask_model_in_a_pod(
    installation: Installation, fill_mask: FillMask
) -> None:
    """A model of a gated repository is loaded with it; the rotation is acknowledged."""
    installation.set_secret(value=fill_mask.token)
    installation.deploy(fill_mask.folder, "fill-mask")
    ready = installation.wait_until_ready("fill-mask")
    found = installation.call("fill-mask", "/v1/models/model:predict", '"The capital of France is [MASK]."')
    assert found[0]["token_str"] == "paris"
    seconds = installation.rotate().seconds
    print(f"\nfill-mask: ready after {ready:.1f} s; `secret set --wait` took {seconds:.2f} s")
    assert_no_leaks(installation)


def wait_for_managers(installation: Installation) -> None:
    wait = ["wait", "-n", MANAGERS, f"--timeout={PATIENCE}s", "--for=condition=Available"]
    installation.cluster.kubectl(*wait, "deployment/gusset-manager")


def assert_no_leaks(installation: Installation) -> None:
    """No value is in etcd, on the node's disk, in a log of a pod or daemon, or in what the API has of any object.

    What the node has mounted in memory is not seen from outside of its namespaces.
    """
    cluster = installation.cluster
    kinds = "all,configmaps,secrets,events,serviceaccounts,networkpolicies,poddisruptionbudgets"
    objects = cluster.kubectl("get", kinds, "--all-namespaces", "-o", "yaml")
    forms = {form for value in installation.values for form in forms_of(value)}
    assert not any(form.decode() in objects for form in forms)
    assert files_with(cluster.folder, {b"POSTGRES_PASSWORD"}), "the search finds what is there"
    assert not files_with(cluster.folder, forms)


def files_with(folder: Path, texts: set[bytes]) -> list[str]:
    search = ["grep", "-rlaF", "-D", "skip", "-f", "-", str(folder)]
    found = subprocess.run(search, input=b"\n".join(sorted(texts)), capture_output=True)
    return found.stdout.decode().splitlines()
