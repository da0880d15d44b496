"""A container engine, Docker or Podman, over the API that both speak.

This and `container` are the places that know the library and its errors. What
an engine is told and what it keeps never holds a secret's value.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gusset.containers.engine import leftovers
from gusset.containers.engine.container import Container, reason, translate_engine_errors
from gusset.containers.engine.container_spec import ContainerSpec
from gusset.containers.engine.engine_socket import Service, Tunnel, podman
from gusset.containers.engine.images import Image, Images
from gusset.containers.engine.library import check_library, connect
from gusset.containers.engine.run_id import OWNER
from gusset.containers.network.network import may_enter
from gusset.errors import HostError, ModelFailed

log = logging.getLogger("gusset")

_VOLUME = {"type": "tmpfs", "device": "tmpfs", "o": "mode=0755,nosuid,nodev,noexec"}


class Engine:
    """A connection to an engine. Close it after use."""

    def __init__(self, address: str, service: Service | None = None) -> None:
        self._client = client = connect(address)
        self._api = client.api
        self.address = address
        self._service = service  # that we have started ourselves
        version, about = client.version(), client.info()
        self.is_podman = any("Podman" in part.get("Name", "") for part in version.get("Components", ()))
        self.images = Images(client, version.get("Arch", ""))
        options = {option.partition(",")[0] for option in about.get("SecurityOptions") or ()}
        self.is_rootless = "name=rootless" in options or bool(
            about.get("Rootless")
        )  # Docker's way, and Podman's
        self._shares_users = not self.is_rootless and "name=userns" not in options
        self._is_in_a_machine = "Docker Desktop" in about.get("OperatingSystem", "")

    @classmethod
    def find(cls, docker_host: str | None, on_address: Callable[[str, str], object]) -> Engine:
        """Connect to the engine that `docker_host` names, else to the first that responds, else start Podman.

        `on_address` is called with "engine" and its address, or with "service" and the
        address before a service of gusset's own is started.

        Raises:
            UsageError: the library is not installed.
            HostError: none responds; the message lists what was tried.
        """
        check_library()
        if docker_host and docker_host.startswith("ssh://"):
            return cls._of_ours(Tunnel(docker_host), on_address)
        if docker_host and not docker_host.startswith("unix://"):
            raise HostError(
                f"DOCKER_HOST is neither a unix:// nor an ssh:// address: {docker_host}",
                hint="an engine on another machine is reached with ssh://user@machine, which encrypts",
            )
        tried = []
        for address in [docker_host] if docker_host else _candidate_sockets():
            try:
                engine = cls(address)
            except Exception as error:  # whatever the library or the socket says
                tried.append(f"  {address}: {reason(error)}")
            else:
                on_address("engine", address)
                return engine
        if docker_host is None and (program := shutil.which("podman")):
            return cls._of_ours(podman(program), on_address)
        raise HostError(
            "no container engine responds" + "".join(f"\n{line}" for line in tried),
            hint="install Docker or Podman, start it, and see that you may use it "
            "(group docker, or be root); DOCKER_HOST names another one",
        )

    @classmethod
    def _of_ours(cls, service: Service, on_address: Callable[[str, str], object]) -> Engine:
        on_address("service", service.address)
        service.start()
        try:
            return cls(service.address, service)
        except Exception as error:  # whatever the library or the socket says
            raise HostError(f"{service.what} does not respond: {reason(error)}", hint=service.hint) from None

    def keep_up(self) -> None:
        """Restart gusset's own service if it has ended.

        Raises:
            HostError: it does not start.
        """
        if self._service is not None and self._service.start():
            log.warning("The connection to the engine had ended (%s) and was restarted.", self._service.what)

    @property
    def takes_our_files(self) -> bool:
        """Whether its containers can use files of this process: it shares this machine's memory and users."""
        if isinstance(self._service, Tunnel) or self._is_in_a_machine:
            return False
        if self.is_rootless:
            return self.is_podman and os.geteuid() != 0
        return self._shares_users and may_enter()

    @property
    def has_our_network(self) -> bool:
        """Whether it runs in this process's network."""
        return self.takes_our_files or not (
            self.is_rootless or self._is_in_a_machine or isinstance(self._service, Tunnel)
        )

    def close(self) -> None:
        """Close the connection. A service of gusset's own runs until the reaper no longer needs it."""
        self._client.close()

    def create(self, spec: ContainerSpec) -> Container:
        """Create a container without starting it.

        Raises:
            ModelFailed: the engine refuses it.
            HostError: the engine does not respond.
        """
        host_config = _host_config(self._api, spec, is_podman=self.is_podman)
        with translate_engine_errors("the container cannot be made"):
            made = self._api.create_container(
                spec.image,
                entrypoint=list(spec.command) if spec.command is not None else None,
                command=[] if spec.command is not None else None,
                environment=dict(spec.environment),
                user=spec.user,
                labels={**spec.labels, OWNER: spec.owner},
                host_config=host_config,
            )
        return Container(self._api, made["Id"])

    def create_volume(self, owner: str) -> str:
        """Create a volume in the engine's memory, which lasts while a container uses it; its name.

        Raises:
            ModelFailed: the engine refuses it.
            HostError: the engine does not respond.
        """
        with translate_engine_errors("a volume for secrets cannot be made"):
            made = self._api.create_volume(driver="local", driver_opts=_VOLUME, labels={OWNER: owner})
        return str(made["Name"])

    def create_sidecar(
        self, image: Image, script: str, *, volume: str, owner: str, port: int | None
    ) -> Container:
        """Create a container that runs a shell script as root; it can write to `volume` only.

        Its standard input closes with the connection that `Container.pipe` opens.
        `port` is published on this machine, under a number that the engine chooses.

        Raises:
            ModelFailed: the engine refuses it.
            HostError: the engine does not respond.
        """
        from docker.types import LogConfig

        host_config = self._api.create_host_config(
            log_config=LogConfig(type="none"),
            binds=[f"{volume}:/secrets:rw,z"],
            network_mode="none" if port is None else None,
            cap_drop=["ALL"],
            cap_add=["CHOWN"],
            security_opt=["no-new-privileges"],
            read_only=True,
            port_bindings=None if port is None else {port: ("127.0.0.1", None)},
        )
        with translate_engine_errors("the sidecar of the container cannot be made"):
            made = self._api.create_container(
                image.id,
                entrypoint=["sh", "-c", script],
                command=[],
                user="0:0",
                stdin_open=True,
                ports=None if port is None else [port],
                labels={OWNER: owner},
                host_config=host_config,
            )
        return Container(self._api, made["Id"])

    def published(self, container: Container, port: int) -> tuple[str, int] | str:
        """The address at which a published port is reached from here, as `socket.connect` takes it.

        Raises:
            ModelFailed: it is not published.
            HostError: the engine does not respond.
        """
        with translate_engine_errors("the sidecar of the container is not there"):
            ports = self._api.inspect_container(container.id)["NetworkSettings"]["Ports"]
        bound = ports.get(f"{port}/tcp")
        if not bound:
            raise ModelFailed("the sidecar of the container has ended")
        number = int(bound[0]["HostPort"])
        if isinstance(self._service, Tunnel):
            return str(self._service.forward(number))
        return "127.0.0.1", number

    def remove_volume(self, name: str) -> None:
        """Remove a volume; one that a container still has stays."""
        leftovers.remove_volume(self._api, name)

    def remove_ours(self) -> bool:
        """See `leftovers.remove_ours`."""
        return leftovers.remove_ours(self._api)

    def remove_orphans(self) -> None:
        """See `leftovers.remove_orphans`."""
        leftovers.remove_orphans(self._api)


def _candidate_sockets() -> list[str]:
    """The usual sockets of engines that exist on this machine."""
    places = [Path("/var/run/docker.sock"), Path("/run/podman/podman.sock")]
    session = Path(f"/run/user/{os.getuid()}")
    places += [session / "docker.sock", session / "podman/podman.sock"]
    places += [Path.home() / ".docker/run/docker.sock", Path.home() / ".docker/desktop/docker.sock"]
    return [f"unix://{place}" for place in places if place.exists()]


def _host_config(api: Any, spec: ContainerSpec, *, is_podman: bool) -> Any:
    from docker.types import DeviceRequest, LogConfig, Mount, Ulimit

    options: dict[str, Any] = {
        "log_config": LogConfig(type="none"),  # an engine writes to disk what is printed, unmasked
        "network_mode": spec.network,
    }
    if isinstance(spec.secrets, str):
        options["binds"] = [f"{spec.secrets}:/secrets:ro,nocopy,z"]
    elif Path("/sys/fs/selinux/enforce").exists():
        options["binds"] = [f"{spec.secrets}:/secrets:ro,Z"]
    else:
        options["mounts"] = [Mount("/secrets", str(spec.secrets), type="bind", read_only=True)]
    # Podman, given one limit, drops those that it is configured with.
    if not (spec.may_leave_core or is_podman):
        options["ulimits"] = [Ulimit(name="core", soft=0, hard=0)]
    if spec.cpus is not None:
        options["nano_cpus"] = int(spec.cpus * 1e9)
    if spec.memory is not None:
        options["mem_limit"] = spec.memory
    if spec.gpus is not None:
        options["device_requests"] = [DeviceRequest(count=spec.gpus, capabilities=[["gpu"]])]
    host_config = api.create_host_config(**options)
    if spec.user_namespace is not None:
        host_config["UsernsMode"] = spec.user_namespace  # the library knows only Docker's
    return host_config
