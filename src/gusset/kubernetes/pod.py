"""The pods of a deployment, which the restricted Pod Security Standard admits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gusset.kubernetes.workload import PERIOD, Agent, Manager, Probe, Resources, Server, Workload

AUDIENCE = "gusset"
CA_CERTIFICATES_KEY = "ca.crt"
SECRETS = "/secrets"

_TOKEN_FOLDER = "/var/run/secrets/gusset"  # noqa: S105  # a path
_CA_CERTIFICATES_FOLDER = "/etc/gusset/manager-ca"
_TOKEN_SECONDS = 3600
_PROBE_TIMEOUT = 5  # seconds
_STARTUP_OF_AGENT = 3600  # seconds: it waits for a manager that is away
_PAUSE = 5  # seconds in which Kubernetes stops sending requests to a pod, before the server is stopped
_DRAIN = 30  # seconds that `gusset serve` gives to requests in flight
_RESERVE = 10  # seconds for all else that ends
GRACE_PERIOD = _PAUSE + _DRAIN + _RESERVE

_TMP = {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108  # in the container
_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def pod_spec(workload: Workload) -> dict[str, Any]:
    """The specification of the pods."""
    agent, manager = workload.agent, workload.manager
    before, sidecars = [], []
    if agent is not None and manager is not None:
        if agent.is_native:
            before = [_native_agent(workload.name, agent, manager)]
        else:
            before = [_agent(workload.name, agent, manager, "secrets-at-start", "--once")]
            sidecars = [_agent(workload.name, agent, manager, "secrets", "--keep-files")]
    spec: dict[str, Any] = {
        "serviceAccountName": workload.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _security_context(workload),
        "terminationGracePeriodSeconds": GRACE_PERIOD,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(workload.name)},
            }
        ],
    }
    if workload.resources.gpus:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if before:
        spec["initContainers"] = before
    return spec | {"containers": [_server(workload), *sidecars], "volumes": list(_volumes(workload))}


def selector(name: str) -> dict[str, str]:
    """The label by which objects find the pods. It must never change: a Deployment keeps its selector."""
    return {"gusset.dev/deployment": name}


def ca_certificates_name(name: str) -> str:
    """The name of the ConfigMap with the authorities of the manager's certificate."""
    return f"{name}-manager-ca"


def _security_context(workload: Workload) -> dict[str, Any]:
    found: dict[str, Any] = {
        "runAsNonRoot": True,
        "runAsUser": workload.user,
        "runAsGroup": workload.user,
        "fsGroup": workload.user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if workload.server.port < 1024:  # which else only root may listen on
        found["sysctls"] = [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]
    return found


def _server(workload: Workload) -> dict[str, Any]:
    server, manager = workload.server, workload.manager
    variables = dict(server.environment)
    mounts: list[dict[str, Any]] = [_TMP]
    if workload.resources.gpus:
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})  # noqa: S108
    if workload.agent is not None:
        mounts.append({"name": "secrets", "mountPath": SECRETS, "readOnly": True})
    elif manager is not None:
        variables |= _manager_variables(manager)
        mounts += _manager_mounts(manager)
    container: dict[str, Any] = {"name": "server", "image": workload.image}
    if server.command is not None:
        container["command"] = [_literal(word) for word in server.command]
    if variables:
        container["env"] = _environment(variables)
    return container | {
        "ports": [{"name": "http", "containerPort": server.port, "protocol": "TCP"}],
        "startupProbe": _probe(server, server.startup),
        "readinessProbe": _probe(server, server.readiness),
        "livenessProbe": _probe(server, server.liveness),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_PAUSE)]}}},
        "resources": _resources(workload.resources),
        "securityContext": dict(_RESTRICTED),
        "volumeMounts": mounts,
    }


def _native_agent(deployment: str, agent: Agent, manager: Manager) -> dict[str, Any]:
    """An agent that the server waits for: the probe succeeds when the files are there."""
    is_filled = {"exec": {"command": ["test", "-e", f"{SECRETS}/..data"]}}
    startup = {**is_filled, "periodSeconds": 1, "failureThreshold": _STARTUP_OF_AGENT}
    return _agent(deployment, agent, manager, "secrets") | {
        "restartPolicy": "Always",
        "startupProbe": startup,
    }


def _agent(deployment: str, agent: Agent, manager: Manager, name: str, *options: str) -> dict[str, Any]:
    arguments = ["agent", f"--deployment={deployment}", f"--dir={SECRETS}"]
    arguments += [f"--secret={secret}" for secret in agent.secrets]
    arguments += [f"--allow-missing={secret}" for secret in agent.optional]
    # Its image has the vault's folder for another user.
    own = {"GUSSET_HOME": "/tmp/gusset", "GUSSET_SETTINGS": "/tmp/gusset/settings.toml", "HOME": "/tmp"}  # noqa: S108
    return {
        "name": name,
        "image": agent.image,
        "args": [*arguments, *options],
        "env": _environment(own | _manager_variables(manager)),
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
        "securityContext": dict(_RESTRICTED),
        "volumeMounts": [
            {"name": "agent-tmp", "mountPath": "/tmp"},  # noqa: S108
            {"name": "secrets", "mountPath": SECRETS},
            *_manager_mounts(manager),
        ],
    }


def _manager_variables(manager: Manager) -> dict[str, str]:
    found = {"GUSSET_MANAGER": manager.url, "GUSSET_IDENTITY_TOKEN_FILE": f"{_TOKEN_FOLDER}/token"}
    if manager.ca_certificates is not None:
        found["GUSSET_MANAGER_CA"] = f"{_CA_CERTIFICATES_FOLDER}/{CA_CERTIFICATES_KEY}"
    return found


def _manager_mounts(manager: Manager) -> Iterator[dict[str, Any]]:
    yield {"name": "gusset-token", "mountPath": _TOKEN_FOLDER, "readOnly": True}
    if manager.ca_certificates is not None:
        yield {"name": "manager-ca", "mountPath": _CA_CERTIFICATES_FOLDER, "readOnly": True}


def _volumes(workload: Workload) -> Iterator[dict[str, Any]]:
    yield {"name": "tmp", "emptyDir": {}}
    if workload.resources.gpus:  # processes of one model exchange tensors there
        yield {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}
    if (agent := workload.agent) is not None:
        # Room for each value four times: old and new, with a value that a rotation keeps for each.
        size = f"{16 + len(agent.secrets) // 4}Mi"
        yield {"name": "agent-tmp", "emptyDir": {}}
        yield {"name": "secrets", "emptyDir": {"medium": "Memory", "sizeLimit": size}}
    if workload.manager is not None:
        token = {"audience": AUDIENCE, "expirationSeconds": _TOKEN_SECONDS, "path": "token"}
        yield {"name": "gusset-token", "projected": {"sources": [{"serviceAccountToken": token}]}}
        if workload.manager.ca_certificates is not None:
            yield {"name": "manager-ca", "configMap": {"name": ca_certificates_name(workload.name)}}


def _probe(server: Server, probe: Probe) -> dict[str, Any]:
    how: dict[str, Any]
    if probe.path is None:
        how = {"grpc": {"port": server.port}}
    else:
        how = {"httpGet": {"path": probe.path, "port": "http"}}
    delay = {"initialDelaySeconds": probe.delay} if probe.delay else {}
    return (
        how
        | delay
        | {
            "periodSeconds": PERIOD,
            "timeoutSeconds": _PROBE_TIMEOUT,
            "failureThreshold": probe.failures,
        }
    )


def _resources(resources: Resources) -> dict[str, Any]:
    cpu, memory = _cpu(resources.millicores), _memory(resources.memory)
    requests = {"cpu": cpu, "memory": memory}
    limits = {"memory": memory} if resources.is_memory_limit else {}
    if resources.gpus:
        limits["nvidia.com/gpu"] = requests["nvidia.com/gpu"] = str(resources.gpus)
    return {"requests": requests} | ({"limits": limits} if limits else {})


def _cpu(millicores: int) -> str:
    return f"{millicores}m" if millicores % 1000 else str(millicores // 1000)


def _memory(size: int) -> str:
    for unit, factor in (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def _environment(variables: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": _literal(variables[name])} for name in sorted(variables)]


def _literal(text: str) -> str:
    """The text, escaped so that Kubernetes does not replace `$(NAME)` with a variable."""
    return text.replace("$", "$$")
