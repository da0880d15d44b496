"""What is deployed, as plain data: a model or a custom image, its server, its resources and its manager."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gusset.kubernetes.egress import Egress

PERIOD = 5  # seconds between two probes


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A request to the server. `path` None: a call of the health service of gRPC.

    One is sent every `PERIOD` seconds, but none before `delay` seconds. It fails after `failures` in a row.
    """

    path: str | None
    failures: int = 3
    delay: int = 0

    @classmethod
    def lasting(cls, path: str | None, seconds: float, *, delay: float = 0) -> Probe:
        """A probe that counts as failed after `seconds` of failures."""
        return cls(path=path, failures=max(1, -int(-seconds // PERIOD)), delay=int(delay))


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The server in the container. `command` None runs the image's own; `environment` is added to its own."""

    port: int
    startup: Probe
    readiness: Probe
    liveness: Probe
    command: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a pod needs: CPU in thousandths of a core, memory in bytes, and GPUs.

    `is_memory_limit`: it may not use more memory either.
    """

    millicores: int
    memory: int
    is_memory_limit: bool = False
    gpus: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """The container that keeps the files of `secrets` current; those that are `optional` may be missing.

    `is_native`: a sidecar that Kubernetes starts before the server and stops after it (from 1.29 on).
    """

    image: str
    secrets: tuple[str, ...]
    optional: tuple[str, ...] = ()
    is_native: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Manager:
    """Where the pod gets its secrets: the addresses of managers, with commas between them.

    `ca_certificates` are certificates in PEM. They are trusted for the managers, besides the public ones.
    """

    url: str
    ca_certificates: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A model folder as it is deployed.

    `manager` is None if it declares no secrets. With an `agent` the secrets are files in `/secrets`, else the
    image's own gusset gets them. `replicas` None leaves their number to whatever scales the deployment.
    `user` is the user and group that all containers run as.
    """

    name: str
    namespace: str
    image: str
    server: Server
    resources: Resources
    egress: Egress
    user: int
    manager: Manager | None = None
    agent: Agent | None = None
    replicas: int | None = None
