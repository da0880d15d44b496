"""What Kubernetes accepts: the schemas of its API, and its restricted Pod Security Standard."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import kubernetes_validate
from kubernetes_validate import utils

Object = dict[str, Any]

VERSIONS = list(dict.fromkeys(map(utils.major_minor, utils.all_versions())))  # oldest first
WITH_NATIVE_SIDECARS = [version for version in VERSIONS if int(version.split(".")[1]) >= 29]

# It reads the schemas, some megabytes, for each object.
utils.schema_contents = functools.cache(utils.schema_contents)


def check_schemas(objects: Sequence[Object], versions: Sequence[str]) -> None:
    """Every field is known in these versions of Kubernetes, and has the right type."""
    for version in versions:
        for each in objects:
            kubernetes_validate.validate(each, version, strict=True)


def pod_of(objects: Sequence[Object]) -> Object:
    """The specification of a workload's pods."""
    [found] = [each for each in objects if each["kind"] in ("Deployment", "Pod", "Job", "StatefulSet")]
    return found["spec"] if found["kind"] == "Pod" else found["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def containers_of(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SYSCTLS = {"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range", "net.ipv4.tcp_syncookies"}

# The controls of https://kubernetes.io/docs/concepts/security/pod-security-standards/, Baseline and Restricted.
_OF_POD: dict[str, Callable[[Object], bool]] = {
    "no namespaces of the host": lambda pod: (
        not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
    ),
    "only some types of volumes": lambda pod: all(
        set(v) - {"name"} <= _VOLUMES for v in pod.get("volumes", ())
    ),
    "runs as non-root": lambda pod: pod["securityContext"]["runAsNonRoot"] is True,
    "a user that is not root": lambda pod: pod["securityContext"]["runAsUser"] != 0,
    "the runtime's seccomp profile": lambda pod: (
        pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    ),
    "only safe sysctls": lambda pod: (
        {s["name"] for s in pod["securityContext"].get("sysctls", ())} <= _SYSCTLS
    ),
}
_OF_CONTAINER: dict[str, Callable[[Object], bool]] = {
    "no port of the host": lambda c: not any(port.get("hostPort") for port in c.get("ports", ())),
    "not privileged": lambda c: not c["securityContext"].get("privileged"),
    "no more privileges than its parent": lambda c: c["securityContext"]["allowPrivilegeEscalation"] is False,
    "no capabilities": lambda c: c["securityContext"]["capabilities"] == {"drop": ["ALL"]},
    "nothing that overrides the pod's": lambda c: (
        not {"runAsUser", "runAsNonRoot", "seccompProfile", "procMount"} & set(c["securityContext"])
    ),
    # Not in the standard, but a promise of gusset's.
    "a root that is read-only": lambda c: c["securityContext"]["readOnlyRootFilesystem"] is True,
}


def violations(pod: Object) -> Iterator[str]:
    """The controls of the restricted standard that the pod breaks."""
    yield from (control for control, holds in _OF_POD.items() if not holds(pod))
    for container in containers_of(pod):
        yield from (f"{container['name']}: {c}" for c, holds in _OF_CONTAINER.items() if not holds(container))
