"""A container engine, Docker or Podman, over the API that both speak.

Only the modules of this folder import the library and its exceptions. An engine
stores no secret's value; it passes on a registry's login, and the values for sidecars and builds.
"""

# Imports in functions: the library docker is an optional extra.

from __future__ import annotations

import logging
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gusset.containers.engine.container import Container, Notify, creating, reason, translate_engine_errors
from gusset.containers.engine.container_spec import ContainerSpec
from gusset.containers.engine.engine_socket import PodmanService, Service, SshForwarding
from gusset.containers.engine.images import Image, Images
from gusset.containers.engine.library import check_library, connect
from gusset.containers.engine.run_id import RUN_ID_LABEL
from gusset.containers.network.network import may_enter
from gusset.errors import HostError, ModelFailed
from gusset.runtime.environment import child_environment

log = logging.getLogger("gusset")

_VOLUME = {"type": "tmpfs", "device": "tmpfs", "o": "mode=0755,nosuid,nodev,noexec"}
# Bytes, at most. Engines allow 64 MB, too little for libraries that pass tensors between processes.
_SHARED_MEMORY_WITH_GPUS = 16 * 2**30
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _EngineInfo:
    """What an engine reports of itself. `maps_users`: user ids in containers are not those of its machine."""

    architecture: str
    is_podman: bool
    is_rootless: bool
    maps_users: bool
    is_in_vm: bool

    @classmethod
    def from_response(cls, info: Mapping[str, Any], *, is_podman: bool) -> _EngineInfo:
        """From the engine's response to `info`."""
        options = {option.partition(",")[0] for option in info.get("SecurityOptions") or ()}
        is_rootless = "name=rootless" in options or bool(info.get("Rootless"))  # Docker; Podman
        return cls(
            architecture=_architecture(info.get("Architecture", "")),
            is_podman=is_podman,
            is_rootless=is_rootless,
            maps_users=is_rootless or "name=userns" in options,
            is_in_vm="Docker Desktop" in info.get("OperatingSystem", ""),
        )

    @classmethod
    def of_own_podman(cls) -> _EngineInfo:
        """Of a Podman that this process has started.

        `info` takes as long as `version`, see `connect`, and what is needed of it follows from this
        process. Source: `rootless.IsRootless` of Podman.
        """
        is_inside_unshare = "_CONTAINERS_USERNS_CONFIGURED" in child_environment()
        is_rootless = os.geteuid() != 0 or not may_enter() or is_inside_unshare
        return cls(
            architecture=_architecture(platform.machine()),
            is_podman=True,
            is_rootless=is_rootless,
            maps_users=is_rootless,
            is_in_vm=False,
        )


class Engine:
    """A connection to an engine. `api` is the library's low-level client. Close it after use."""

    def __init__(
        self,
        client: Any,
        info: _EngineInfo,
        *,
        address: str,
        service: Service | None,
        notify: Notify,
    ) -> None:
        self._client = client
        self._info = info
        self._service = service
        self._notify = notify
        self.api = client.api
        self.address = address
        self.is_podman = info.is_podman
        self.images = Images(client, info.architecture, notify)

    @classmethod
    def open(cls, address: str, notify: Notify, service: Service | None = None) -> Engine:
        """Connect to the engine at that address; `service` is gusset's own process that makes it reachable.

        `notify` is called around each request that creates something there.

        Exceptions of the library pass through if it does not respond.
        """
        client, is_podman = connect(address)
        if isinstance(service, PodmanService):
            info = _EngineInfo.of_own_podman()
        else:
            info = _EngineInfo.from_response(client.info(), is_podman=is_podman)
        return cls(client, info, address=address, service=service, notify=notify)

    @classmethod
    def find(cls, docker_host: str | None, notify: Notify) -> Engine:
        """Connect to the engine that `docker_host` names, else to the first that responds, else start Podman.

        `notify` is called with "engine" and its address, or with "service" and the address
        before a service of gusset's own is started; later around each request that creates something.

        Raises:
            UsageError: the library is not installed.
            HostError: none responds; the message lists what was tried.
        """
        check_library()
        if docker_host and docker_host.startswith("ssh://"):
            return cls._open_service(SshForwarding.create(docker_host), notify)
        if docker_host and not docker_host.startswith("unix://"):
            raise HostError(
                f"DOCKER_HOST is neither a unix:// nor an ssh:// address: {docker_host}",
                hint="an engine on another machine is reached with ssh://user@machine, which encrypts",
            )
        tried = []
        for address in [docker_host] if docker_host else _candidate_sockets():
            try:
                engine = cls.open(address, notify)
            except Exception as error:  # the library raises many kinds
                tried.append(f"  {address}: {reason(error)}")
            else:
                notify("engine", address)
                return engine
        if docker_host is None and (program := shutil.which("podman")):
            return cls._open_service(PodmanService(program), notify)
        raise HostError(
            "no container engine responds" + "".join(f"\n{line}" for line in tried),
            hint="install Docker or Podman, start it, and see that you may use it "
            "(group docker, or be root); DOCKER_HOST names another one",
        )

    @classmethod
    def _open_service(cls, service: Service, notify: Notify) -> Engine:
        notify("service", service.address)
        service.start()
        try:
            return cls.open(service.address, notify, service)
        except Exception as error:  # the library raises many kinds
            raise HostError(f"{service.what} does not respond: {reason(error)}", hint=service.hint) from None

    def keep_up(self) -> None:
        """Restart gusset's own service if it has ended.

        Raises:
            HostError: it does not start.
        """
        if self._service is not None and self._service.start():
            log.warning("The connection to the engine had ended (%s) and was restarted.", self._service.what)

    @property
    def is_remote(self) -> bool:
        """Whether it runs on another machine, which may be a virtual one."""
        return isinstance(self._service, SshForwarding) or self._info.is_in_vm

    @property
    def can_mount_our_files(self) -> bool:
        """Whether its containers can use files of this process: it shares this machine's memory and users."""
        if self.is_remote:
            return False
        if self._info.is_rootless:
            return self.is_podman and os.geteuid() != 0
        return not self._info.maps_users and may_enter()

    @property
    def is_on_our_network(self) -> bool:
        """Whether it runs in this process's network."""
        return self.can_mount_our_files or not (self._info.is_rootless or self.is_remote)

    def close(self) -> None:
        """Close the connection. A service of gusset's own runs until the reaper ends it."""
        self._client.close()

    def create(self, spec: ContainerSpec) -> Container:
        """Create a container without starting it.

        Raises:
            ModelFailed: the engine refuses it.
            HostError: the engine does not respond.
        """
        host_config = _host_config(self.api, spec, is_podman=self.is_podman)
        with creating(self._notify, "the container cannot be created"):
            made = self.api.create_container(
                spec.image,
                entrypoint=list(spec.command) if spec.command is not None else None,
                command=[] if spec.command is not None else None,
                environment=dict(spec.environment),
                user=spec.user,
                labels={**spec.labels, RUN_ID_LABEL: spec.run_id},
                host_config=host_config,
            )
        return Container(self.api, made["Id"])

    def create_volume(self, run_id: str) -> str:
        """Create a volume in the engine's memory; its name. The content lasts while a container uses it.

        Raises:
            ModelFailed: the engine refuses it.
            HostError: the engine does not respond.
        """
        with creating(self._notify, "a volume for secrets cannot be created"):
            made = self.api.create_volume(driver="local", driver_opts=_VOLUME, labels={RUN_ID_LABEL: run_id})
        return str(made["Name"])

    def create_sidecar(
        self, image: Image, script: str, *, volume: str, run_id: str, port: int | None
    ) -> Container:
        """Create a container that runs a shell script as root; it can write to `volume` only.

        Its standard input closes with the connection that `Container.pipe` opens. `port` is
        published on 127.0.0.1 of the engine's machine, as a port that the engine chooses.

        Raises:
            ModelFailed: the engine refuses it.
            HostError: the engine does not respond.
        """
        from docker.types import LogConfig

        host_config = self.api.create_host_config(
            log_config=LogConfig(type="none"),
            binds=[f"{volume}:/secrets:rw,z"],
            network_mode="none" if port is None else None,
            cap_drop=["ALL"],
            cap_add=["CHOWN"],
            security_opt=["no-new-privileges"],
            read_only=True,
            port_bindings=None if port is None else {port: ("127.0.0.1", None)},
        )
        with creating(self._notify, "the sidecar of the container cannot be created"):
            made = self.api.create_container(
                image.id,
                entrypoint=["sh", "-c", script],
                command=[],
                user="0:0",
                stdin_open=True,
                ports=None if port is None else [port],
                labels={RUN_ID_LABEL: run_id},
                host_config=host_config,
            )
        return Container(self.api, made["Id"])

    def published(self, container: Container, port: int) -> tuple[str, int] | str:
        """The address of a published port as seen from this process, as `socket.connect` takes it.

        Raises:
            ModelFailed: it is not published.
            HostError: the engine does not respond.
        """
        with translate_engine_errors("the sidecar of the container cannot be inspected"):
            ports = self.api.inspect_container(container.id)["NetworkSettings"]["Ports"]
        bound = ports.get(f"{port}/tcp")
        if not bound:
            raise ModelFailed("the sidecar of the container has ended")
        number = int(bound[0]["HostPort"])
        if isinstance(self._service, SshForwarding):
            return str(self._service.forward(number))
        return "127.0.0.1", number


def _architecture(machine: str) -> str:
    """The name that images have for what `uname -m` prints. Podman uses the names of images itself."""
    return _ARCHITECTURES.get(machine, machine)


def _candidate_sockets() -> list[str]:
    """The usual sockets of engines that exist on this machine."""
    session, home = Path(f"/run/user/{os.getuid()}"), Path.home()
    paths = [
        Path("/var/run/docker.sock"),
        Path("/run/podman/podman.sock"),
        session / "docker.sock",
        session / "podman/podman.sock",
        home / ".docker/run/docker.sock",
        home / ".docker/desktop/docker.sock",
    ]
    return [f"unix://{path}" for path in paths if path.exists()]


def _host_config(api: Any, spec: ContainerSpec, *, is_podman: bool) -> Any:
    from docker.types import DeviceRequest, LogConfig, Ulimit

    options: dict[str, Any] = {
        "log_config": LogConfig(type="none"),  # else the engine writes the output to disk, unmasked
        "network_mode": spec.network,
        **_mount_options(spec),
    }
    # Podman, given one limit, drops those that it is configured with: see `Container.leave_no_core`.
    if not (spec.may_leave_core or is_podman):
        options["ulimits"] = [Ulimit(name="core", soft=0, hard=0)]
    if spec.cpus is not None:
        options["nano_cpus"] = int(spec.cpus * 1e9)
    if spec.memory is not None:
        options["mem_limit"] = spec.memory
    if spec.gpus is not None:
        options["device_requests"] = [DeviceRequest(count=spec.gpus, capabilities=[["gpu"]])]
        options["shm_size"] = _SHARED_MEMORY_WITH_GPUS
    host_config = api.create_host_config(**options)
    if spec.user_namespace is not None:
        host_config["UsernsMode"] = spec.user_namespace  # the library knows only Docker's
    return host_config


def _mount_options(spec: ContainerSpec) -> dict[str, Any]:
    """How the container gets its folders and secrets: only binds can have the labels that SELinux demands."""
    from docker.types import Mount

    has_selinux = Path("/sys/fs/selinux/enforce").exists()
    mounts = [] if has_selinux else list(spec.folders.items())
    binds = [f"{folder}:{path}:ro,z" for path, folder in spec.folders.items()] if has_selinux else []
    if isinstance(spec.secrets, str):
        binds.append(f"{spec.secrets}:/secrets:ro,nocopy,z")
    elif has_selinux:
        binds.append(f"{spec.secrets}:/secrets:ro,Z")
    else:
        mounts.append(("/secrets", spec.secrets))
    return {
        "binds": binds or None,
        "mounts": [Mount(path, str(folder), type="bind", read_only=True) for path, folder in mounts] or None,
    }
