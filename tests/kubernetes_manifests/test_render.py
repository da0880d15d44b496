"""Manifests of any workload: Kubernetes accepts them, they are secure, and their text is always the same."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gusset.errors import UsageError
from gusset.kubernetes.egress import MANAGER, MANAGER_LABELS, Egress, Peer, strict_egress
from gusset.kubernetes.manifests import objects
from gusset.kubernetes.names import check_image, check_name, check_namespace, has_digest, suggested_name
from gusset.kubernetes.workload import Agent, Manager, Probe, Resources, Server, Workload
from gusset.kubernetes.yaml_text import to_yaml
from tests.kubernetes_manifests.schemas import (
    VERSIONS,
    WITH_NATIVE_SIDECARS,
    check_schemas,
    containers_of,
    pod_of,
    violations,
)

NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
PATHS = st.sampled_from(["/", "/health", "/v1/models/model?x=1", None])
PROBES = st.builds(Probe.lasting, PATHS, st.floats(0, 10**9), delay=st.integers(0, 10**9))
SERVERS = st.builds(
    Server,
    port=st.integers(1, 65535),
    startup=PROBES,
    readiness=PROBES,
    liveness=PROBES,
    command=st.none() | st.lists(TEXTS, min_size=1, max_size=4).map(tuple),
    environment=st.dictionaries(st.from_regex(r"[A-Z][A-Z0-9_]{0,20}", fullmatch=True), TEXTS, max_size=4),
)
RESOURCES = st.builds(
    Resources,
    millicores=st.integers(0, 10**6),
    memory=st.integers(0, 2**60),
    is_memory_limit=st.booleans(),
    gpus=st.integers(0, 8),
)
PEERS = st.builds(Peer, namespace=NAMES) | st.builds(
    Peer, network=st.sampled_from(["203.0.113.0/28", "2001:db8::1/128"]), port=st.integers(1, 65535)
)
EGRESS = st.builds(Egress, is_strict=st.booleans(), managers=st.lists(PEERS, max_size=3).map(tuple))
SECRETS = st.lists(st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}", fullmatch=True), max_size=5).map(tuple)
AGENTS = st.builds(
    Agent, image=st.just("r.example/gusset:1"), secrets=SECRETS, optional=SECRETS, is_native=st.booleans()
)
MANAGERS = st.builds(
    Manager,
    url=st.sampled_from(["https://m.example", "https://a.example:8700,https://b.example"]),
    ca_certificates=st.none() | st.just("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"),
)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    manager = draw(st.none() | MANAGERS)
    return Workload(
        name=draw(NAMES),
        namespace=draw(NAMES),
        image=draw(st.sampled_from(["r.example/model:1", "model@sha256:" + "0" * 64])),
        server=draw(SERVERS),
        resources=draw(RESOURCES),
        egress=draw(EGRESS),
        user=draw(st.integers(1, 2**31 - 1)),
        manager=manager,
        agent=draw(st.none() | AGENTS) if manager else None,
        replicas=draw(st.none() | st.integers(0, 1000)),
    )


def workload(**changes: Any) -> Workload:
    """A Python model with secrets."""
    given: dict[str, Any] = {
        "name": "ranker",
        "namespace": "prod",
        "image": "r.example/ranker:1",
        "server": Server(
            port=8080,
            startup=Probe(path="/"),
            readiness=Probe(path="/v1/models/model"),
            liveness=Probe(path="/"),
        ),
        "resources": Resources(millicores=1500, memory=2**31),
        "egress": Egress(),
        "user": 60000,
        "manager": Manager(url="https://secrets.example.com"),
    }
    return Workload(**given | changes)


@pytest.mark.slow
@given(workloads())
@settings(max_examples=60)
def test_any_workload_is_accepted_by_the_oldest_and_the_newest_kubernetes(made: Workload) -> None:
    found = objects(made)
    is_native = made.agent is not None and made.agent.is_native
    versions = WITH_NATIVE_SIDECARS if is_native else VERSIONS
    check_schemas(found, (versions[0], versions[-1]))


@pytest.mark.parametrize("is_native", [True, False], ids=["native", "ordinary"])
def test_each_version_of_kubernetes_accepts_the_manifests(is_native: bool) -> None:
    """Native sidecars from 1.29 on, ordinary ones in all versions that have schemas."""
    agent = Agent(image="r.example/gusset:1", secrets=("a", "b"), optional=("b",), is_native=is_native)
    manager = Manager(url="https://m.example", ca_certificates="-----BEGIN CERTIFICATE-----\n")
    found = objects(
        workload(agent=agent, manager=manager, resources=Resources(millicores=1, memory=1, gpus=1))
    )
    check_schemas(found, WITH_NATIVE_SIDECARS if is_native else VERSIONS)


@given(workloads())
def test_any_pod_keeps_to_the_restricted_standard(made: Workload) -> None:
    assert list(violations(pod_of(objects(made)))) == []


@pytest.mark.slow
@given(workloads())
@settings(max_examples=40)  # reading YAML takes most of the time
def test_the_text_is_the_same_each_time_and_reads_back_as_it_was(made: Workload) -> None:
    text = to_yaml(objects(made))
    assert text == to_yaml(objects(made))
    assert text.isascii()
    assert list(yaml.safe_load_all(text)) == objects(made)


@pytest.mark.parametrize(
    "text", ["y", "no", "1e3", "0o7", "1:30", "1_0", "~", "", "0x1", "null", ".5", "2031-01-31"]
)
def test_a_text_that_some_reader_takes_for_something_else_is_quoted(text: str) -> None:
    assert f'"{text}"' in to_yaml([{"key": text}])


@given(workloads())
def test_all_that_a_pod_mounts_is_there_and_used(made: Workload) -> None:
    pod = pod_of(objects(made))
    volumes = [volume["name"] for volume in pod["volumes"]]
    mounted = {mount["name"] for container in containers_of(pod) for mount in container["volumeMounts"]}
    assert sorted(mounted) == sorted(volumes)
    names = [container["name"] for container in containers_of(pod)]
    assert len(names) == len(set(names))


@pytest.mark.slow
@given(workloads())
def test_no_secret_of_kubernetes_is_used(made: Workload) -> None:
    text = to_yaml(objects(made))
    assert "secretKeyRef" not in text and "secretName" not in text and "kind: Secret" not in text
    assert "secretRef" not in text


def test_only_the_pods_token_for_gusset_is_mounted() -> None:
    account, *_ = found = objects(workload())
    pod = pod_of(found)
    assert account["automountServiceAccountToken"] is pod["automountServiceAccountToken"] is False
    assert account["metadata"]["name"] == pod["serviceAccountName"] == "ranker"
    [source] = next(v["projected"]["sources"] for v in pod["volumes"] if "projected" in v)
    assert source["serviceAccountToken"]["audience"] == "gusset"
    variables = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
    [mount] = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "gusset-token"]
    assert variables["GUSSET_IDENTITY_TOKEN_FILE"].startswith(mount["mountPath"])


def test_the_secrets_of_an_image_are_in_memory_and_read_only_to_its_server() -> None:
    agent = Agent(image="r.example/gusset:1", secrets=("a",))
    pod = pod_of(objects(workload(agent=agent)))
    [volume] = [each for each in pod["volumes"] if each["name"] == "secrets"]
    assert volume["emptyDir"]["medium"] == "Memory"
    [server] = pod["containers"]
    assert {"name": "secrets", "mountPath": "/secrets", "readOnly": True} in server["volumeMounts"]
    assert all(mount["name"] != "gusset-token" for mount in server["volumeMounts"])
    assert "env" not in server


def test_a_native_sidecar_has_filled_the_folder_before_the_server_starts() -> None:
    [sidecar] = pod_of(objects(workload(agent=Agent(image="g:1", secrets=("a",)))))["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["startupProbe"]["exec"]["command"] == ["test", "-e", "/secrets/..data"]


def test_ordinary_sidecars_fill_the_folder_once_and_keep_it_to_the_end() -> None:
    agent = Agent(image="g:1", secrets=("a", "b"), optional=("b",), is_native=False)
    pod = pod_of(objects(workload(agent=agent)))
    [first], [_, second] = pod["initContainers"], pod["containers"]
    assert "restartPolicy" not in first
    assert first["args"][-1] == "--once" and second["args"][-1] == "--keep-files"
    assert first["args"][:-1] == second["args"][:-1]
    assert "--secret=b" in first["args"] and "--allow-missing=b" in first["args"]


def test_kubernetes_does_not_replace_what_looks_like_its_variables() -> None:
    """It would read `$(cat /secrets/x)` as a variable, and `$$` as one dollar."""
    server = Server(
        port=1,
        startup=Probe(path="/"),
        readiness=Probe(path="/"),
        liveness=Probe(path="/"),
        command=("sh", "-c", "X=$(cat /secrets/x) exec server $$"),
        environment={"PRICE": "$5"},
    )
    [container] = pod_of(objects(workload(server=server, manager=None)))["containers"]
    assert container["command"][-1] == "X=$$(cat /secrets/x) exec server $$$$"
    assert container["env"] == [{"name": "PRICE", "value": "$$5"}]


def test_the_grace_period_is_longer_than_what_a_stop_takes() -> None:
    from gusset.runtime.supervision import DRAIN_SECONDS

    pod = pod_of(objects(workload()))
    [_, pause] = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] >= DRAIN_SECONDS + int(pause) + 5


def test_all_objects_find_the_same_pods() -> None:
    found = {each["kind"]: each for each in objects(workload())}
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    assert {each["metadata"]["namespace"] for each in found.values()} == {"prod"}


def test_a_new_authority_replaces_the_pods() -> None:
    """They read it when they start."""

    def template(ca_certificates: str) -> Any:
        manager = Manager(url="https://m.example", ca_certificates=ca_certificates)
        return objects(workload(manager=manager))[-1]["spec"]["template"]

    assert template("one\n") == template("one\n") != template("another\n")


def test_a_number_of_replicas_that_is_left_out_is_an_autoscalers() -> None:
    assert "replicas" not in objects(workload())[-1]["spec"]
    assert objects(workload(replicas=3))[-1]["spec"]["replicas"] == 3


@pytest.mark.parametrize(
    ("resources", "requests", "limits"),
    [
        (Resources(millicores=1500, memory=2**31), {"cpu": "1500m", "memory": "2Gi"}, None),
        (
            Resources(millicores=2000, memory=10**9, is_memory_limit=True),
            {"cpu": "2", "memory": "1000000000"},
            {"memory": "1000000000"},
        ),
        (
            Resources(millicores=1000, memory=3 * 2**20, gpus=2),
            {"cpu": "1", "memory": "3Mi", "nvidia.com/gpu": "2"},
            {"nvidia.com/gpu": "2"},
        ),
    ],
)
def test_requests_and_limits_follow_the_resources(
    resources: Resources, requests: dict[str, str], limits: dict[str, str] | None
) -> None:
    [container] = pod_of(objects(workload(resources=resources)))["containers"]
    assert container["resources"]["requests"] == requests
    assert container["resources"].get("limits") == limits


def test_gpus_come_with_shared_memory_and_a_toleration() -> None:
    pod = pod_of(objects(workload(resources=Resources(millicores=1, memory=1, gpus=1))))
    assert pod["tolerations"] and any(
        m["mountPath"] == "/dev/shm" for m in pod["containers"][0]["volumeMounts"]
    )
    without = pod_of(objects(workload()))
    assert "tolerations" not in without


def test_a_server_may_listen_on_a_low_port_without_root() -> None:
    server = Server(port=80, startup=Probe(path="/"), readiness=Probe(path="/"), liveness=Probe(path="/"))
    pod = pod_of(objects(workload(server=server)))
    assert pod["securityContext"]["sysctls"] == [
        {"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}
    ]


def test_a_server_of_grpc_is_probed_by_its_health_service() -> None:
    probe = Probe(path=None)
    server = Server(port=50051, startup=probe, readiness=probe, liveness=probe)
    found = objects(workload(server=server))
    [container] = pod_of(found)["containers"]
    assert container["readinessProbe"]["grpc"] == {"port": 50051}
    [service] = [each for each in found if each["kind"] == "Service"]
    assert service["spec"]["ports"][0]["appProtocol"] == "kubernetes.io/h2c"


def policy(egress: Egress) -> list[dict[str, Any]]:
    [found] = [each for each in objects(workload(egress=egress)) if each["kind"] == "NetworkPolicy"]
    assert found["spec"]["policyTypes"] == ["Egress"]
    return found["spec"]["egress"]  # type: ignore[no-any-return]


def test_open_egress_leaves_out_the_clouds_metadata_service() -> None:
    [rule] = policy(Egress())
    blocks = {to["ipBlock"]["cidr"]: to["ipBlock"]["except"] for to in rule["to"] if "ipBlock" in to}
    assert blocks["0.0.0.0/0"] == ["169.254.169.254/32"]
    assert "fd00:ec2::254/128" in blocks["::/0"]


@pytest.mark.parametrize(
    ("url", "networks", "peers"),
    [
        ("https://10.0.0.5:8700", [], [Peer(network="10.0.0.5/32", port=8700)]),
        ("https://[2001:db8::5]", [], [Peer(network="2001:db8::5/128")]),
        ("https://gusset-manager.secrets.svc", [], [Peer(service=MANAGER, namespace="secrets")]),
        (
            "https://gusset-manager.secrets.svc.cluster.local:8700",
            [],
            [Peer(service=MANAGER, namespace="secrets")],
        ),
        ("https://m.example.com", ["203.0.113.5"], [Peer(network="203.0.113.5/32")]),
        (
            "https://m.example.com",
            ["203.0.113.0/28", "2001:db8::/64"],
            [Peer(network="203.0.113.0/28"), Peer(network="2001:db8::/64")],
        ),
        (
            "https://10.0.0.5,https://m.s.svc",
            [],
            [Peer(network="10.0.0.5/32"), Peer(service="m", namespace="s")],
        ),
        ("https://gusset-manager", [], [Peer(service=MANAGER, namespace="prod")]),
        ("https://gusset-manager:8700", ["10.1.0.0/16"], [Peer(network="10.1.0.0/16", port=8700)]),
        (None, [], []),
    ],
)
def test_strict_egress_leaves_dns_and_the_manager(
    url: str | None, networks: list[str], peers: list[Peer]
) -> None:
    egress = strict_egress(url, networks, namespace="prod")
    assert list(egress.managers) == peers
    dns, *managers = policy(egress)
    assert [port["port"] for port in dns["ports"]] == [53, 53]
    assert len(managers) == len(peers)
    assert "0.0.0.0/0" not in str(policy(egress))


def test_strict_egress_needs_the_addresses_of_a_manager_outside() -> None:
    with pytest.raises(UsageError, match=r"m\.example\.com") as refused:
        strict_egress("https://m.example.com", [], namespace="prod")
    assert "--manager-cidr" in str(refused.value.hint)
    with pytest.raises(UsageError, match="--manager-cidr"):
        strict_egress("https://m.example.com", ["10.0.0.1/8"], namespace="prod")


def test_strict_egress_hints_at_the_whole_name_of_a_service() -> None:
    """A name with one dot may be a service in a namespace, or any other host."""
    with pytest.raises(UsageError, match=r"manager\.gusset") as refused:
        strict_egress("https://gusset-manager.gusset", [], namespace="prod")
    assert "SERVICE.NAMESPACE.svc" in str(refused.value.hint)


@pytest.mark.parametrize("url", ["https://10.0.0.5", "https://gusset-manager.gusset.svc"])
def test_networks_that_no_url_needs_are_refused(url: str) -> None:
    """Else they would be ignored, and the pods would not reach what they name."""
    with pytest.raises(UsageError, match="--manager-cidr would change nothing"):
        strict_egress(url, ["203.0.113.5"], namespace="prod")
    strict_egress(f"{url},https://m.example.com", ["203.0.113.5"], namespace="prod")


def test_the_rule_for_a_service_has_neither_its_address_nor_its_port() -> None:
    """Networks replace both by those of a pod before they apply policies."""
    [_, rule] = policy(strict_egress("https://gusset-manager.gusset.svc", [], namespace="prod"))
    assert list(rule) == ["to"]
    [to] = rule["to"]
    assert to["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "gusset"}
    assert to["podSelector"]["matchLabels"] == MANAGER_LABELS


def test_strict_egress_refuses_addresses_of_one_link() -> None:
    """A NetworkPolicy has no zones: Kubernetes would refuse it."""
    with pytest.raises(UsageError, match="an address with a zone"):
        strict_egress("https://[fe80::1%25eth0]", [], namespace="prod")
    with pytest.raises(UsageError, match="--manager-cidr"):
        strict_egress("https://m.example.com", ["fe80::1%eth0"], namespace="prod")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("Fill mask", "fill-mask"),
        ("ranker_v2", "ranker-v2"),
        ("2nd", "model-2nd"),
        ("Größe", "grosse"),
        ("-x-", "x"),
        ("...", "model"),
        ("a" * 64, "a" * 63),
        ("x\n", "x"),
    ],
)
def test_a_name_that_kubernetes_forbids_is_refused_with_a_suggestion(name: str, suggestion: str) -> None:
    with pytest.raises(UsageError) as refused:
        check_name(name)
    assert str(refused.value.hint).endswith(f"--name {suggestion}")
    check_name(suggestion)


@given(st.text())
def test_every_suggestion_is_accepted(name: str) -> None:
    check_name(suggested_name(name))
    check_namespace(suggested_name(name))


@pytest.mark.parametrize(
    "image",
    [
        "model",
        "model:1",
        "r.example/a/b:1.2",
        "localhost:5000/m",
        "R.example/m@sha256:" + "a" * 64,
        "[::1]:5000/m",
    ],
)
def test_references_of_images_are_accepted(image: str) -> None:
    check_image(image)
    assert has_digest(image) == ("@" in image)


@pytest.mark.parametrize(
    "image", ["", "Model", "a b", "m:", "m@sha256:abc", "m\n", "-m", "m:1@sha256:" + "g" * 64, "a//b"]
)
def test_what_is_no_reference_of_an_image_is_refused(image: str) -> None:
    with pytest.raises(UsageError):
        check_image(image)
