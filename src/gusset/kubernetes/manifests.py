"""The objects of a workload, in the order in which they are applied."""

from __future__ import annotations

import hashlib
from typing import Any

from gusset.kubernetes.egress import egress_rules
from gusset.kubernetes.pod import CA_CERTIFICATES_KEY, ca_certificates_name, pod_spec, selector
from gusset.kubernetes.workload import PERIOD, Workload

SERVICE_PORT = 80
# Seconds that a new pod may need before its server starts: for the image and the manager. Kubernetes reports
# a pod that is not ready after these and the time that its server may take to start.
_BEFORE_START = 900

Object = dict[str, Any]


def objects(workload: Workload) -> list[Object]:
    """All objects. The same workload always gives the same ones."""
    found = [_service_account(workload), _network_policy(workload), _service(workload)]
    if workload.manager is not None and workload.manager.ca_certificates is not None:
        found.insert(1, _ca_certificates(workload, workload.manager.ca_certificates))
    return [*found, _disruption_budget(workload), _deployment(workload)]


def subject(workload: Workload) -> str:
    """The subject of the pods' tokens."""
    return f"system:serviceaccount:{workload.namespace}:{workload.name}"


def _object(workload: Workload, version: str, kind: str, name: str | None = None, **body: Any) -> Object:
    metadata = {"name": name or workload.name, "namespace": workload.namespace, "labels": _labels(workload)}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **body}


def _labels(workload: Workload) -> dict[str, str]:
    return {
        "app.kubernetes.io/managed-by": "gusset",
        "app.kubernetes.io/name": workload.name,
        **selector(workload.name),
    }


def _service_account(workload: Workload) -> Object:
    return _object(workload, "v1", "ServiceAccount", automountServiceAccountToken=False)


def _ca_certificates(workload: Workload, certificates: str) -> Object:
    data = {CA_CERTIFICATES_KEY: certificates}
    return _object(workload, "v1", "ConfigMap", ca_certificates_name(workload.name), data=data)


def _network_policy(workload: Workload) -> Object:
    spec = {
        "podSelector": {"matchLabels": selector(workload.name)},
        "policyTypes": ["Egress"],
        "egress": egress_rules(workload.egress),
    }
    return _object(workload, "networking.k8s.io/v1", "NetworkPolicy", spec=spec)


def _service(workload: Workload) -> Object:
    port: dict[str, Any] = {"name": "http", "port": SERVICE_PORT, "targetPort": "http", "protocol": "TCP"}
    if workload.server.readiness.path is None:
        port["appProtocol"] = "kubernetes.io/h2c"
    return _object(workload, "v1", "Service", spec={"selector": selector(workload.name), "ports": [port]})


def _disruption_budget(workload: Workload) -> Object:
    # Not `minAvailable`: with one replica, no node could be drained.
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": selector(workload.name)}}
    return _object(workload, "policy/v1", "PodDisruptionBudget", spec=spec)


def _deployment(workload: Workload) -> Object:
    annotations = {"kubectl.kubernetes.io/default-container": "server"}
    if workload.manager is not None and workload.manager.ca_certificates is not None:
        # Pods read the file only when they start, so new content must replace them.
        digest = hashlib.sha256(workload.manager.ca_certificates.encode()).hexdigest()
        annotations["gusset.dev/manager-ca"] = f"sha256:{digest}"
    template = {
        "metadata": {"labels": _labels(workload), "annotations": annotations},
        "spec": pod_spec(workload),
    }
    replicas = {} if workload.replicas is None else {"replicas": workload.replicas}
    spec = {
        **replicas,
        "selector": {"matchLabels": selector(workload.name)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "progressDeadlineSeconds": workload.server.startup.failures * PERIOD + _BEFORE_START,
        "template": template,
    }
    return _object(workload, "apps/v1", "Deployment", spec=spec)
