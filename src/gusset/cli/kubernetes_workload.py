"""From a model folder and options to what is deployed on Kubernetes, with all problems found first."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gusset.addresses import is_loopback, is_wildcard
from gusset.cli.app import App
from gusset.errors import ConfigInvalid, UsageError

if TYPE_CHECKING:
    from gusset.containers.image_deployment import ImageDeployment
    from gusset.kubernetes.egress import Egress
    from gusset.kubernetes.workload import Agent, Manager, Resources, Server, Workload
    from gusset.package.config import Package
    from gusset.package.problems import ProblemCollector
    from gusset.runtime.declared_secrets import DeclaringDeployment

_MODEL_PORT = 8080  # of the images that `gusset build` makes
_USER = 60000  # of these images, too
_MAX_USER = 2**31 - 1  # Kubernetes' largest
_VARIABLE = re.compile(r"[-._A-Za-z][-._A-Za-z0-9]*")
_MAX_CA_CERTIFICATES = 500_000  # bytes: an object of Kubernetes has at most a million
_MAX_CA_FILE = 10_000_000  # bytes, with comments and whatever else is in it
_LOOPBACK = re.compile(r"(?<![\w.:-])(?:127\.\d+\.\d+\.\d+|localhost|\[?::1\]?)(?![\w.-])")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+\n-----END CERTIFICATE-----")


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesOptions:
    """The options of the command that the manifests depend on."""

    image: str
    namespace: str
    name: str | None
    replicas: int | None
    gpus: int | None
    manager: str | None
    manager_ca: Path | None
    manager_networks: tuple[str, ...]
    sidecar: str
    agent_image: str | None
    user: int | None
    egress: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is deployed, the names of the secrets that it reads, and warnings."""

    workload: Workload
    secrets: tuple[str, ...]
    warnings: tuple[str, ...]


def make_plan(app: App, folder: Path, options: KubernetesOptions) -> Plan:
    """Read and check the folder and the options.

    Raises:
        ConfigInvalid: the folder has errors, or needs what a pod does not have.
        UsageError: an option is missing, or has a name or an address that cannot be used.
        SecretsMissing: the start_command reads a secret that the folder does not declare.
    """
    from gusset.kubernetes.names import check_image, check_name, check_namespace
    from gusset.kubernetes.workload import Workload
    from gusset.package.config import load_package, unsupported_for_serving
    from gusset.runtime.declared_secrets import names_to_read

    package = load_package(folder)
    if refused := unsupported_for_serving(package):
        raise ConfigInvalid(f"{folder} cannot be deployed", problems=[*package.warnings, *refused])
    app.output.problems(package.warnings)
    deployment = _image_deployment(package) if package.is_image else _model_deployment(package)
    secrets = names_to_read(deployment)
    name = options.name or deployment.name
    check_name(name)
    check_namespace(options.namespace)
    check_image(options.image)
    manager = _manager(app, options, secrets)
    workload = Workload(
        name=name,
        namespace=options.namespace,
        image=options.image,
        server=_server(package, deployment),
        resources=_resources(package, options.gpus),
        egress=_egress(options, manager),
        user=_user(package, options),
        manager=manager,
        agent=_agent(deployment, options) if package.is_image and secrets else None,
        replicas=options.replicas,
    )
    return Plan(workload=workload, secrets=secrets, warnings=tuple(_warnings(package, options, workload)))


def _model_deployment(package: Package) -> DeclaringDeployment:
    from gusset.serving.deployment import ModelDeployment

    return ModelDeployment.from_package(package)


def _image_deployment(package: Package) -> DeclaringDeployment:
    """A custom image, which must not need what only `gusset serve` does beside it.

    Raises:
        ConfigInvalid: it does.
        SecretsMissing: its command reads a secret that it does not declare.
    """
    from gusset.containers.image_deployment import ImageDeployment

    deployment = ImageDeployment.from_package(package)
    report = package.problem_collector()
    if deployment.callers:
        report.add(
            ("model_metadata", "gusset", "callers"),
            "gusset's proxy checks the keys of callers, and it is not in the pod of a custom image",
            "leave the callers out, and check them in the server or in a gateway before it",
        )
    if deployment.downloads:
        report.add(
            (),
            "files named by weights and model_cache are not downloaded in the pod of a custom image",
            "put the files into the image, or let the server download them",
        )
    for name in deployment.environment_variables:
        if not _VARIABLE.fullmatch(name):
            report.add(
                ("environment_variables", name),
                "Kubernetes does not accept the name of this variable",
                "use letters, digits, `_`, `-` and `.`, and do not begin with a digit",
                at_key=True,
            )
    if deployment.user_id is not None and deployment.user_id > _MAX_USER:
        report.add(
            ("docker_server", "run_as_user_id"),
            "Kubernetes does not accept this user id",
            f"write a number from 1 to {_MAX_USER}",
        )
    _report_credentials(deployment, report)
    if problems := report.sorted():
        raise ConfigInvalid(f"{package.folder} cannot be deployed", problems=problems)
    deployment.check_command(deployment.declared)
    return deployment


def _report_credentials(deployment: ImageDeployment, report: ProblemCollector) -> None:
    """Refuse the credentials that would be printed: anyone who may read the Deployment would have them."""
    from gusset.secrets.credentials import find_credentials

    for path, text in _printed(deployment.environment_variables, deployment.command):
        if matches := find_credentials(text):
            report.add(
                path,
                f"the manifests would have what looks like {matches[0].kind}; it is not repeated here",
                "have its issuer replace it, declare a secret under `secrets:`, and read /secrets/NAME",
                code="credential",
            )


def _printed(
    variables: Mapping[str, str], command: Sequence[str] | None
) -> Iterator[tuple[tuple[str, str], str]]:
    """The texts of config.yaml that the manifests have, by their paths there."""
    for name, value in variables.items():
        yield ("environment_variables", name), value
    yield ("docker_server", "start_command"), " ".join(command or ())


def _manager(app: App, options: KubernetesOptions, secrets: Sequence[str]) -> Manager | None:
    """The manager of the pods; None if they read no secrets."""
    from gusset.client.manager_client import checked_urls
    from gusset.kubernetes.workload import Manager

    if not secrets:
        return None
    url = options.manager or app.settings.manager
    if url is None:
        raise UsageError(
            f"{', '.join(secrets)}: the pods get secrets from a manager, and none is named",
            hint="--manager https://secrets.example.com",
        )
    urls = checked_urls(url)
    for each in urls:
        host = (urlsplit(each).hostname or "").rstrip(".")
        if is_loopback(host) or is_wildcard(host):
            raise UsageError(
                f"{each} is this machine's own address, which a pod does not reach",
                hint="name the manager as pods reach it: --manager https://secrets.example.com",
            )
    return Manager(url=",".join(urls), ca_certificates=_ca_certificates(options.manager_ca))


def _ca_certificates(file: Path | None) -> str | None:
    """The certificates in a file, without what else it has. Raises UsageError."""
    if file is None:
        return None
    import ssl

    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_CA_FILE)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    found = _CERTIFICATE.findall(content.decode("utf-8", "replace").replace("\r\n", "\n"))
    if not found:
        raise UsageError(
            f"{file} has no certificate", hint="--manager-ca takes PEM: -----BEGIN CERTIFICATE-----"
        )
    certificates = "".join(f"{each}\n" for each in found)
    if len(certificates) > _MAX_CA_CERTIFICATES:
        raise UsageError(
            f"{file} has more certificates than a ConfigMap holds", hint="name only the manager's authority"
        )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=certificates)
    except ssl.SSLError:  # pods would not start; and what else is encoded there might be a key
        raise UsageError(f"{file} has a certificate that cannot be read") from None
    return certificates


def _server(package: Package, deployment: DeclaringDeployment) -> Server:
    """The server, and how Kubernetes finds out whether it is ready and alive."""
    from gusset.containers.image_deployment import Health, ImageDeployment
    from gusset.kubernetes.workload import Probe, Server

    checks = package.config.runtime.health_checks
    health = Health.from_config(checks)
    if isinstance(deployment, ImageDeployment):
        port, command = deployment.port, deployment.command
        ready, alive = (None, None) if deployment.is_grpc else (deployment.readiness, deployment.liveness)
        started = ready
        # The only folder that is writable.
        environment = {"HOME": "/tmp", **deployment.environment_variables}  # noqa: S108
    else:  # its image has the command, and gusset sets the variables of config.yaml
        port, command, environment = _MODEL_PORT, None, {}
        ready, alive, started = "/v1/models/model", "/", "/"
    # Kubernetes' own three failures, unless the config has a threshold: another pod can serve meanwhile.
    stop_traffic = checks.stop_traffic_threshold_seconds
    return Server(
        port=port,
        command=command,
        environment=environment,
        startup=Probe.lasting(started, health.startup),
        readiness=Probe(path=ready) if stop_traffic is None else Probe.lasting(ready, stop_traffic),
        liveness=Probe.lasting(alive, health.restart, delay=health.restart_delay),
    )


def _resources(package: Package, gpus: int | None) -> Resources:
    from gusset.kubernetes.workload import Resources
    from gusset.package.quantity import parse_cpu, parse_memory

    given = package.config.resources
    accelerator = given.accelerator
    if gpus is None:
        gpus = accelerator.count if accelerator is not None and given.use_gpu else 0
    return Resources(
        millicores=round(parse_cpu(given.cpu) * 1000),
        memory=parse_memory(given.memory),
        is_memory_limit="memory" in given.model_fields_set,
        gpus=gpus,
    )


def _egress(options: KubernetesOptions, manager: Manager | None) -> Egress:
    from gusset.kubernetes.egress import Egress, strict_egress

    if options.egress == "open":
        if options.manager_networks:
            raise UsageError("--manager-cidr is for --egress strict", hint="add that, or leave it out")
        return Egress()
    url = manager.url if manager else None
    return strict_egress(url, options.manager_networks, namespace=options.namespace)


def _user(package: Package, options: KubernetesOptions) -> int:
    if not package.is_image:
        if options.user is not None:
            raise UsageError("--user is for custom images", hint=f"a model's image runs as user {_USER}")
        return _USER
    server = package.config.docker_server
    return options.user or (server.run_as_user_id if server else None) or _USER


def _agent(deployment: DeclaringDeployment, options: KubernetesOptions) -> Agent:
    from gusset.kubernetes.names import check_image
    from gusset.kubernetes.workload import Agent

    if options.agent_image is None:
        raise UsageError(
            "a custom image gets its secrets from gusset's agent beside it; the agent's image is not named",
            hint="build gusset's image from packaging/Containerfile, push it, and name it: "
            "--agent-image registry.example/gusset@sha256:...",
        )
    check_image(options.agent_image)
    return Agent(
        image=options.agent_image,
        secrets=tuple(sorted(deployment.declared)),
        optional=tuple(sorted(each.name for each in deployment.secrets if each.optional)),
        is_native=options.sidecar == "native",
    )


def _warnings(package: Package, options: KubernetesOptions, workload: Workload) -> Sequence[str]:
    from gusset.kubernetes.egress import MANAGER
    from gusset.kubernetes.names import has_digest
    from gusset.secrets.credentials import has_random_word
    from gusset.weights.plan import plan_downloads

    images = [workload.image, *([workload.agent.image] if workload.agent else [])]
    found = [
        f"{image} has no digest, so each node may run another image of that name; this prints the digest: "
        f"skopeo inspect --format '{{{{.Digest}}}}' docker://{image}"
        for image in dict.fromkeys(images)
        if not has_digest(image)
    ]
    server, resources = package.config.docker_server, package.config.resources
    if server is not None and server.run_as_user_id is None and options.user is None:
        found.append(f"the server runs as user {_USER}; name the one that its image is made for: --user UID")
    if server is not None and _LOOPBACK.search(server.start_command or ""):
        found.append(
            "the start_command names a loopback address: if the server listens there alone, neither "
            "probes nor the Service reach it; let it listen on 0.0.0.0"
        )
    found += [
        f"{'.'.join(path)} has a long random word, and the manifests repeat it; if it is a key, have its "
        "issuer replace it, declare a secret under `secrets:`, and read /secrets/NAME"
        for path, text in _printed(workload.server.environment, workload.server.command)
        if has_random_word(text)
    ]
    if resources.use_gpu and workload.resources.gpus and resources.accelerator is not None:
        kind = resources.accelerator.accelerator
        found.append(f"the manifests ask for a GPU of any kind; add a nodeSelector for nodes with {kind}")
    if resources.instance_type:
        found.append(
            "resources.instance_type names no machine of a cluster; only cpu, memory and accelerator count"
        )
    if workload.egress.is_strict and plan_downloads(package):
        found.append("--egress strict blocks what the pods download before they load")
    found += [
        f"--egress strict lets the pods connect to those with the label app.kubernetes.io/name: {MANAGER} "
        f"in the namespace {peer.namespace}; if the pods of the service {peer.service} have other labels, "
        "change the policy"
        for peer in workload.egress.managers
        if peer.service and MANAGER not in peer.service
    ]
    return found
