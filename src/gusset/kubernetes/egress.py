"""Where the pods may connect to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

from gusset.errors import UsageError

MANAGER = "gusset-manager"
MANAGER_LABELS = {"app.kubernetes.io/name": MANAGER}  # as packaging/kubernetes/manager.yaml has them
NAMESPACE_LABEL = "kubernetes.io/metadata.name"  # Kubernetes sets it from 1.21 on

# The metadata services of clouds, which give a machine's credentials to every process on it. AWS, Google,
# Azure and others have the first; the IPv6 addresses are those of AWS and Google.
_METADATA = ("169.254.169.254/32",)
_METADATA_6 = ("fd00:ec2::254/128", "fd20:ce::254/128")
_NODE_LOCAL_DNS = "169.254.20.10/32"
_DNS_LABELS = {"k8s-app": "kube-dns"}  # CoreDNS has it, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A manager: the pods with its labels in the namespace of a service, or a network and a port."""

    service: str | None = None
    namespace: str | None = None
    network: str | None = None
    port: int = 443


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """All addresses but the clouds' metadata services; or, if `is_strict`, DNS and these managers alone."""

    is_strict: bool = False
    managers: tuple[Peer, ...] = ()


def strict_egress(url: str | None, networks: Sequence[str], *, namespace: str) -> Egress:
    """DNS and the managers at `url`, which are in `networks` unless their addresses say where they are.

    `namespace` is that of the pods: there they look up a name without a dot.

    Raises:
        UsageError: a network is not one, is needed but missing, or is given but not used.
    """
    urls = [urlsplit(each) for each in url.split(",")] if url else []
    found: list[Peer] = []
    uses_networks = False
    for each in urls:
        host, port = each.hostname or "", each.port or (443 if each.scheme == "https" else 80)
        peer = _peer(host, port)
        if peer is not None:
            found.append(peer)
        elif networks:
            found += [Peer(network=_network(network), port=port) for network in networks]
            uses_networks = True
        elif "." not in host:
            found.append(Peer(service=host, namespace=namespace))
        else:
            raise UsageError(
                f"a NetworkPolicy can only contain addresses, not names such as {host}",
                hint="name the manager's: --manager-cidr 203.0.113.5/32; or, if that is a service of the "
                "cluster, write SERVICE.NAMESPACE.svc in the URL",
            )
    if urls and networks and not uses_networks:
        raise UsageError(
            "--manager-cidr would change nothing: each URL of --manager already has an address or a service",
            hint="leave it out, or write a name in the URL",
        )
    return Egress(is_strict=True, managers=tuple(dict.fromkeys(found)))


def _peer(host: str, port: int) -> Peer | None:
    """The manager at an address or the name of a service; None for other names."""
    try:
        address = ip_address(host)
    except ValueError:
        labels = host.split(".")
    else:
        if "%" in host:
            raise UsageError(f"{host} is an address with a zone, which a NetworkPolicy cannot contain")
        return Peer(network=str(ip_network(address)), port=port)
    return Peer(service=labels[0], namespace=labels[1]) if labels[2:3] == ["svc"] else None


def _network(text: str) -> str:
    try:
        network = None if "%" in text else str(ip_network(text))  # a NetworkPolicy has no zones
    except ValueError:
        network = None
    if network is None:
        raise UsageError(
            "--manager-cidr takes an address or a network", hint="as in --manager-cidr 203.0.113.0/28"
        )
    return network


def egress_rules(egress: Egress) -> list[dict[str, Any]]:
    """The rules of a NetworkPolicy."""
    if not egress.is_strict:
        outside = [
            {"ipBlock": {"cidr": "0.0.0.0/0", "except": list(_METADATA)}},
            {"ipBlock": {"cidr": "::/0", "except": list(_METADATA_6)}},
        ]
        # Some networks, such as Cilium's, do not count pods as addresses.
        return [{"to": [{"namespaceSelector": {}}, *outside]}]
    dns = [
        {"namespaceSelector": {}, "podSelector": {"matchLabels": dict(_DNS_LABELS)}},
        {"ipBlock": {"cidr": _NODE_LOCAL_DNS}},
    ]
    ports = [{"port": 53, "protocol": protocol} for protocol in ("TCP", "UDP")]
    return [{"to": dns, "ports": ports}, *map(_rule, egress.managers)]


def _rule(peer: Peer) -> dict[str, Any]:
    if peer.namespace is None:
        return {
            "to": [{"ipBlock": {"cidr": peer.network}}],
            "ports": [{"port": peer.port, "protocol": "TCP"}],
        }
    # Not the service's address and port: networks replace them by those of a pod before they apply policies.
    namespace = {"matchLabels": {NAMESPACE_LABEL: peer.namespace}}
    return {"to": [{"namespaceSelector": namespace, "podSelector": {"matchLabels": dict(MANAGER_LABELS)}}]}
