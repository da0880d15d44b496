"""`gusset deploy kubernetes` on folders: what is printed, what is refused, and what is registered."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.test_portable import elsewhere
from tests.cli.test_serve import write_model
from tests.conftest import Cli, leaks_in
from tests.kubernetes_manifests.schemas import (
    VERSIONS,
    WITH_NATIVE_SIDECARS,
    Object,
    check_schemas,
    pod_of,
    violations,
)
from tests.manager.conftest import Manager, manager, set_up  # noqa: F401  # fixtures
from tests.manager.issuer import certificate as certificate_of

pytestmark = pytest.mark.slow

IMAGE = "registry.example/my-model@sha256:" + "a" * 64
AGENT = "registry.example/gusset@sha256:" + "b" * 64
MANAGER = "https://secrets.example.com"

CUSTOM = """
model_name: signer
base_image: {image: registry.example/signer}
secrets: {signing_key: null}
docker_server:
  start_command: sh -c "KEY=$(cat /secrets/signing_key) exec serve --port 8000"
  server_port: 8000
  predict_endpoint: /sign
  readiness_endpoint: /ready
  liveness_endpoint: /alive
  run_as_user_id: 1000
environment_variables: {LEVEL: "on"}
resources: {cpu: 500m, memory: 1Gi, accelerator: "L4:2"}
runtime:
  health_checks: {startup_threshold_seconds: 60, restart_check_delay_seconds: 30, stop_traffic_threshold_seconds: 20}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "my-model")


def custom(tmp_path: Path, config: str = CUSTOM) -> Path:
    folder = tmp_path / "signer"
    folder.mkdir()
    (folder / "config.yaml").write_text(config)
    return folder


def deploy(gusset: Cli, folder: Path, *options: str, status: int = 0) -> subprocess.CompletedProcess[bytes]:
    return gusset(
        "deploy", "kubernetes", str(folder), "--image", IMAGE, "--manager", MANAGER, *options, status=status
    )


def manifests(gusset: Cli, folder: Path, *options: str) -> list[Object]:
    return list(yaml.safe_load_all(deploy(gusset, folder, *options).stdout))


def of_kind(objects: list[Object], kind: str) -> Object:
    [found] = [each for each in objects if each["kind"] == kind]
    return found


def test_a_model_gets_its_values_in_memory(gusset: Cli, model: Path) -> None:
    """One container of the image that `gusset build` makes, which fetches its secrets itself."""
    found = manifests(gusset, model, "--namespace", "prod", "--replicas", "2")
    check_schemas(found, VERSIONS)
    pod = pod_of(found)
    assert list(violations(pod)) == []
    [container] = pod["containers"]
    assert container["image"] == IMAGE and "command" not in container and "args" not in container
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert variables["GUSSET_MANAGER"] == MANAGER
    assert container["readinessProbe"]["httpGet"]["path"] == "/v1/models/model"
    assert container["livenessProbe"]["httpGet"]["path"] == "/"
    assert not any(volume["name"] == "secrets" for volume in pod["volumes"])
    assert pod["securityContext"]["runAsUser"] == 60000
    assert of_kind(found, "Deployment")["spec"]["replicas"] == 2
    assert {(each["metadata"]["namespace"], each["metadata"]["name"]) for each in found} == {
        ("prod", "my-model")
    }


@pytest.mark.parametrize("sidecar", ["native", "ordinary"])
def test_a_custom_image_gets_files_from_the_agent(gusset: Cli, tmp_path: Path, sidecar: str) -> None:
    """Its server is probed and called at its own port and endpoints, and runs as its own user."""
    found = manifests(gusset, custom(tmp_path), "--agent-image", AGENT, "--sidecar", sidecar)
    check_schemas(found, WITH_NATIVE_SIDECARS if sidecar == "native" else VERSIONS)
    pod = pod_of(found)
    assert list(violations(pod)) == []
    server = pod["containers"][0]
    assert server["command"] == ["sh", "-c", "KEY=$$(cat /secrets/signing_key) exec serve --port 8000"]
    assert server["env"] == [{"name": "HOME", "value": "/tmp"}, {"name": "LEVEL", "value": "on"}]
    assert server["ports"][0]["containerPort"] == 8000
    assert server["startupProbe"]["httpGet"]["path"] == "/ready"
    assert server["startupProbe"]["failureThreshold"] * server["startupProbe"]["periodSeconds"] == 60
    assert server["readinessProbe"]["failureThreshold"] * server["readinessProbe"]["periodSeconds"] == 20
    assert server["livenessProbe"]["httpGet"]["path"] == "/alive"
    assert server["livenessProbe"]["initialDelaySeconds"] == 30
    assert server["resources"] == {
        "requests": {"cpu": "500m", "memory": "1Gi", "nvidia.com/gpu": "2"},
        "limits": {"memory": "1Gi", "nvidia.com/gpu": "2"},
    }
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 1000
    [agent] = [c for c in [*pod["initContainers"], *pod["containers"]] if c["name"] == "secrets"]
    assert agent["image"] == AGENT
    assert {"--deployment=signer", "--dir=/secrets", "--secret=signing_key"} <= set(agent["args"])


def test_the_output_is_the_same_each_time(gusset: Cli, tmp_path: Path, model: Path) -> None:
    for folder in (model, custom(tmp_path)):
        first = deploy(gusset, folder, "--agent-image", AGENT).stdout
        assert first == deploy(gusset, folder, "--agent-image", AGENT).stdout


def test_no_value_is_in_the_output(gusset: Cli, model: Path) -> None:
    """Neither that of the vault, nor those that lie in the folder and the environment."""
    value, other, third = (
        f"{name}-value-of-some-length".encode() for name in ("stored", "dotenv", "variable")
    )
    gusset("secret", "set", "hf_access_token", input=value)
    (model / ".env").write_bytes(b"HF_ACCESS_TOKEN=" + other)
    done = gusset(
        *("deploy", "kubernetes", str(model), "--image", IMAGE, "--manager", MANAGER),
        TRUSS_SECRET_hf_access_token=third.decode(),
        HF_TOKEN=third.decode(),
    )
    assert not leaks_in(done.stdout + done.stderr, value, other, third)


def test_a_model_without_secrets_needs_no_manager(gusset: Cli, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "plain", config="model_name: plain\n")
    done = gusset("deploy", "kubernetes", str(folder), "--image", IMAGE)
    found = list(yaml.safe_load_all(done.stdout))
    check_schemas(found, VERSIONS[-1:])
    assert b"gusset-token" not in done.stdout and b"GUSSET_" not in done.stdout


def test_gpus_can_be_chosen(gusset: Cli, tmp_path: Path) -> None:
    folder = custom(tmp_path)
    [server, *_] = pod_of(manifests(gusset, folder, "--agent-image", AGENT, "--gpus", "0"))["containers"]
    assert "nvidia.com/gpu" not in server["resources"]["limits"]


def test_json_has_the_same_objects(gusset: Cli, model: Path) -> None:
    found = manifests(gusset, model)
    assert json.loads(deploy(gusset, model, "--output", "json").stdout) == {"manifests": found}


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_manifests_are_printed_on_other_systems(
    gusset: Cli, tmp_path: Path, model: Path, system: str
) -> None:
    for folder in (model, custom(tmp_path)):
        options = ("--image", IMAGE, "--manager", MANAGER, "--agent-image", AGENT)
        done = elsewhere(gusset, "deploy", "kubernetes", str(folder), *options, system=system)
        assert done.stdout.replace(b"\r\n", b"\n") == deploy(gusset, folder, "--agent-image", AGENT).stdout


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (["--name", "My model"], "'My model'", "--name my-model"),
        (["--namespace", "Prod_1"], "'Prod_1'", "--namespace prod-1"),
        (["--image", "Not An Image"], "not the name of an image", "registry.example"),
        (["--manager", "http://127.0.0.1:8700"], "this machine's own address", "--manager https://"),
        (["--manager", "https://0.0.0.0"], "this machine's own address", "--manager https://"),
        (["--manager", "https://localhost."], "this machine's own address", "--manager https://"),
        (["--manager", "http://m.example"], "plain HTTP", "https://"),
        (["--egress", "strict"], "secrets.example.com", "--manager-cidr"),
        (["--manager-cidr", "10.0.0.1"], "--egress strict", "leave it out"),
        (["--register"], "issuer", "kubectl get --raw"),
        (["--user", "7"], "custom images", "60000"),
    ],
)
def test_what_cannot_be_deployed_is_refused(
    gusset: Cli, model: Path, options: list[str], message: str, hint: str
) -> None:
    done = deploy(gusset, model, *options, status=2)
    assert message in done.stderr.decode() and hint in done.stderr.decode()
    assert done.stdout == b""


def test_a_model_with_secrets_needs_a_manager(gusset: Cli, model: Path) -> None:
    errors = gusset("deploy", "kubernetes", str(model), "--image", IMAGE, status=2).stderr
    assert b"hf_access_token" in errors and b"--manager" in errors


def test_a_custom_image_with_secrets_needs_the_agents_image(gusset: Cli, tmp_path: Path) -> None:
    errors = deploy(gusset, custom(tmp_path), status=2).stderr
    assert b"--agent-image" in errors and b"packaging/Containerfile" in errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model_metadata: {gusset: {callers: [api_key]}}\n", b"keys of callers"),
        ("environment_variables: {9LIVES: x}\n", b"name of this variable"),
        ("weights: [{source: 'https://x.example/a', mount_location: /models/a}]\n", b"not downloaded"),
        ("environment_variables: {OPENAI_API_KEY: sk-proj-" + "aB3x" * 10 + "}\n", b"looks like an OpenAI"),
    ],
)
def test_a_custom_image_that_needs_what_a_pod_does_not_have_is_refused(
    gusset: Cli, tmp_path: Path, change: str, message: bytes
) -> None:
    folder = custom(tmp_path, CUSTOM.replace('environment_variables: {LEVEL: "on"}\n', "") + change)
    done = deploy(gusset, folder, "--agent-image", AGENT, status=3)
    assert message in done.stderr and done.stdout == b"" and b"aB3xaB3x" not in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("run_as_user_id: 1000", "run_as_user_id: 4000000000", b"does not accept this user id"),
        ("exec serve", f"exec serve --key sk-proj-{'aB3x' * 10}", b"looks like an OpenAI"),
    ],
)
def test_a_server_that_no_pod_should_run_is_refused(
    gusset: Cli, tmp_path: Path, old: str, new: str, message: bytes
) -> None:
    done = deploy(gusset, custom(tmp_path, CUSTOM.replace(old, new)), "--agent-image", AGENT, status=3)
    assert message in done.stderr and done.stdout == b"" and b"aB3xaB3x" not in done.stderr


KEY = "Zq8vT3mW0xKp7RbN2sYhJd5LfGcE4uAi"


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ('LEVEL: "on"', f"LEVEL: {KEY}", b"environment_variables.LEVEL"),
        ("exec serve", f"exec serve --key={KEY}", b"docker_server.start_command"),
    ],
)
def test_a_long_random_word_in_the_manifests_is_a_warning(
    gusset: Cli, tmp_path: Path, old: str, new: str, place: bytes
) -> None:
    """It may be a key without a known shape. A commit is one, too, so it is not refused."""
    done = deploy(gusset, custom(tmp_path, CUSTOM.replace(old, new)), "--agent-image", AGENT)
    assert place + b" has a long random word" in done.stderr and KEY.encode() not in done.stderr


def test_the_name_of_a_model_is_no_random_word(gusset: Cli, tmp_path: Path) -> None:
    config = CUSTOM.replace(
        'LEVEL: "on"', "MODEL: meta-llama/Llama-3.1-8B-Instruct, LEVEL: max_split_size_mb:128"
    )
    assert b"random word" not in deploy(gusset, custom(tmp_path, config), "--agent-image", AGENT).stderr


def test_a_service_of_another_name_may_need_another_rule(gusset: Cli, model: Path) -> None:
    """Its URL has no labels, and the policy finds the managers by those of packaging/kubernetes."""
    strict = ("--egress", "strict", "--manager")
    done = deploy(gusset, model, *strict, "https://vault.gusset.svc")
    assert b"the pods of the service vault" in done.stderr
    done = deploy(gusset, model, *strict, "https://prod-gusset-manager.gusset.svc")
    assert b"the pods of the service" not in done.stderr


def test_networks_that_no_url_needs_are_refused(gusset: Cli, model: Path) -> None:
    strict = ("--egress", "strict", "--manager", "https://10.0.0.5", "--manager-cidr", "10.0.0.0/8")
    assert b"--manager-cidr would change nothing" in deploy(gusset, model, *strict, status=2).stderr


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1"])
def test_a_server_that_listens_on_loopback_is_a_warning(gusset: Cli, tmp_path: Path, address: str) -> None:
    """Probes and the Service connect to the pod's own address, so the pod would never become ready."""
    folder = custom(tmp_path, CUSTOM.replace("exec serve", f"exec serve --host {address}"))
    assert b"0.0.0.0" in deploy(gusset, folder, "--agent-image", AGENT).stderr


def test_a_server_on_all_addresses_is_no_warning(gusset: Cli, tmp_path: Path) -> None:
    folder = custom(
        tmp_path, CUSTOM.replace("exec serve", "exec serve --host 0.0.0.0 --site localhost.example")
    )
    assert b"loopback" not in deploy(gusset, folder, "--agent-image", AGENT).stderr


def test_kubernetes_waits_as_long_as_the_server_may_take_to_start(gusset: Cli, tmp_path: Path) -> None:
    """Else `kubectl rollout status` would fail for a server that is still within its threshold."""
    config = CUSTOM.replace("startup_threshold_seconds: 60", "startup_threshold_seconds: 7200")
    found = manifests(gusset, custom(tmp_path, config), "--agent-image", AGENT)
    assert of_kind(found, "Deployment")["spec"]["progressDeadlineSeconds"] > 7200


def test_a_command_that_reads_an_undeclared_secret_is_refused(gusset: Cli, tmp_path: Path) -> None:
    folder = custom(tmp_path, CUSTOM.replace("/secrets/signing_key", "/secrets/other"))
    assert b"/secrets/other" in deploy(gusset, folder, "--agent-image", AGENT, status=5).stderr


def test_an_image_without_a_digest_is_a_warning(gusset: Cli, model: Path) -> None:
    assert deploy(gusset, model).stderr == b""
    done = deploy(gusset, model, "--image", "registry.example/my-model:1")
    assert b"registry.example/my-model:1 has no digest" in done.stderr and b"skopeo inspect" in done.stderr
    assert b"registry.example/my-model:1" in done.stdout


def test_only_certificates_of_the_managers_authority_are_in_the_manifests(
    gusset: Cli, model: Path, tmp_path: Path
) -> None:
    """Whatever else is in the file, such as the authority's private key, is left out."""
    key = base64.encodebytes(b"the private key of an authority" * 8)
    certificate = certificate_of(tmp_path, "m.example")[0].read_text()
    file = tmp_path / "ca.pem"
    file.write_bytes(
        b"-----BEGIN PRIVATE KEY-----\n" + key + b"-----END PRIVATE KEY-----\n" + certificate.encode()
    )
    done = deploy(gusset, model, "--manager-ca", str(file))
    assert b"PRIVATE" not in done.stdout and key[:60] not in done.stdout
    found = list(yaml.safe_load_all(done.stdout))
    check_schemas(found, VERSIONS[-1:])
    assert of_kind(found, "ConfigMap")["data"] == {"ca.crt": certificate}
    variables = {each["name"]: each["value"] for each in pod_of(found)["containers"][0]["env"]}
    assert variables["GUSSET_MANAGER_CA"] == "/etc/gusset/manager-ca/ca.crt"

    file.write_bytes(b"-----BEGIN PRIVATE KEY-----\n" + key)
    assert b"has no certificate" in deploy(gusset, model, "--manager-ca", str(file), status=2).stderr

    file.write_bytes(b"-----BEGIN CERTIFICATE-----\n" + key + b"-----END CERTIFICATE-----\n")
    done = deploy(gusset, model, "--manager-ca", str(file), status=2)
    assert b"cannot be read" in done.stderr and done.stdout == b""


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a file without an end")
def test_a_file_without_an_end_has_no_certificate(gusset: Cli, model: Path) -> None:
    link = model.parent / "endless.pem"
    link.symlink_to("/dev/zero")
    assert b"has no certificate" in deploy(gusset, model, "--manager-ca", str(link), status=2).stderr


ISSUER = "https://kubernetes.default.svc.cluster.local"


def register(gusset: Cli, folder: Path, *options: str, status: int = 0) -> subprocess.CompletedProcess[bytes]:
    return deploy(
        gusset, folder, "--namespace", "prod", "--register", "--issuer", ISSUER, *options, status=status
    )


def identities(gusset: Cli) -> list[dict[str, Any]]:
    return json.loads(gusset("identity", "list", "--output", "json").stdout)["identities"]  # type: ignore[no-any-return]


@pytest.fixture
def administrator(manager: Manager, gusset: Cli, tmp_path: Path) -> Cli:  # noqa: F811
    cli = Cli(tmp_path / "admin", gusset.environ | {"GUSSET_SETTINGS": str(tmp_path / "admin.toml")})
    cli("login", manager.address, input=manager.key.encode())
    cli("secret", "set", "hf_access_token", input=b"a-value-of-some-length")
    keys = {
        "keys": [
            {"kty": "OKP", "crv": "Ed25519", "kid": "1", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
        ]
    }
    (tmp_path / "jwks.json").write_text(json.dumps(keys))
    cli("issuer", "add", ISSUER, "--jwks", str(tmp_path / "jwks.json"))
    return cli


def test_registering_binds_the_service_account_and_may_be_repeated(administrator: Cli, model: Path) -> None:
    done = register(administrator, model)
    assert b"system:serviceaccount:prod:my-model stands for default/my-model" in done.stderr
    assert done.stdout == deploy(administrator, model, "--namespace", "prod").stdout
    [identity] = identities(administrator)
    assert identity["subject"] == "system:serviceaccount:prod:my-model"
    assert (identity["deployment"], identity["audience"]) == ("my-model", "gusset")
    found = json.loads(administrator("deployment", "list", "--output", "json").stdout)["deployments"]
    assert found[0]["secrets"] == ["hf_access_token"]

    register(administrator, model)
    assert identities(administrator) == [identity]
    register(administrator, model, "--namespace", "staging")
    assert {each["subject"].split(":")[2] for each in identities(administrator)} == {"prod", "staging"}


def test_nothing_is_printed_when_it_cannot_be_registered(administrator: Cli, model: Path) -> None:
    """So a pipe into kubectl applies nothing."""
    done = register(administrator, model, "--issuer", "not an address", status=2)
    assert done.stdout == b""
    administrator("logout")
    assert register(administrator, model, status=2).stdout == b""


def test_a_refused_registration_changes_nothing(administrator: Cli, model: Path, manager: Manager) -> None:  # noqa: F811
    """Another team has bound the service account: the deployment is neither registered nor changed."""
    with manager.client() as client:
        own = client.get("/v1/teams").json()["teams"][0]["id"]
        other = client.post("/v1/teams", json={"name": "other"}).json()["id"]
        register(administrator, model, "--team", other)
        [bound] = identities(administrator)

        def declared() -> list[list[str]]:
            """What the deployments of the first team declare."""
            found = client.get("/v1/deployments").json()["deployments"]
            return [each["secrets"] for each in found if each["team_id"] == own]

        assert b"another team" in register(administrator, model, "--team", own, status=6).stderr
        assert declared() == []
        client.put("/v1/deployments/my-model", json={"secrets": ["kept"], "team_id": own})
        register(administrator, model, "--team", own, status=6)
        assert declared() == [["kept"]]
        register(administrator, model)  # without --team it is that of the identity
        assert identities(administrator) == [bound] and declared() == [["kept"]]


def test_a_refused_identity_does_not_register_its_deployment(administrator: Cli) -> None:
    """Not with `gusset identity add --secrets`, either."""
    words = ["i", "--deployment", "d", "--secrets", "a", "--subject", "s", "--issuer"]
    administrator("identity", "add", *words, "no address", status=2)
    assert json.loads(administrator("deployment", "list", "--output", "json").stdout)["deployments"] == []
    administrator("identity", "add", *words, ISSUER)
    administrator("identity", "add", *words, ISSUER, status=6)  # the name is in use
    found = json.loads(administrator("deployment", "list", "--output", "json").stdout)["deployments"]
    assert [each["secrets"] for each in found] == [["a"]]
    administrator("audit", "verify")


def test_each_option_is_documented() -> None:
    from gusset.cli.deploy_kubernetes import kubernetes

    text = (Path(__file__).parents[2] / "docs" / "kubernetes.md").read_text()
    options = {name for parameter in kubernetes.params for name in parameter.opts if name.startswith("--")}
    assert sorted(name for name in options - {"--output"} if name not in text) == []


def test_the_example_for_external_secrets_reads_from_the_managers_route() -> None:
    folder = Path(__file__).parents[2] / "examples" / "kubernetes-external-secrets"
    store, secret = yaml.safe_load_all((folder / "external-secrets.yaml").read_text())
    webhook = store["spec"]["provider"]["webhook"]
    assert webhook["url"].endswith("/v1/deployment/secrets/{{ .remoteRef.key }}")
    assert webhook["result"] == {}
    assert (
        webhook["secrets"][0]["name"] == "gusset" and ".gusset.token" in webhook["headers"]["Authorization"]
    )
    assert secret["spec"]["secretStoreRef"]["name"] == store["metadata"]["name"]
