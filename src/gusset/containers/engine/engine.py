"""A container engine, Docker or Podman, over the API that both speak.

This and `container` are the places that know the library and its errors. What
an engine is told and what it keeps never holds a secret's value.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gusset.containers.engine.container import API_SECONDS, Container, reason, translate_engine_errors
from gusset.containers.engine.engine_socket import Service, Tunnel, podman
from gusset.containers.engine.registry import Credentials
from gusset.containers.engine.run_id import OWNER, run_has_ended, run_id
from gusset.containers.network.network import may_enter
from gusset.errors import HostError, ModelFailed, UsageError

log = logging.getLogger("gusset")

_PULL_HINT = (
    "is the name right? A private registry wants a login: base_image.docker_auth, or the engine's own"
)
_PROGRESS_SECONDS = 2.0
_VOLUME = {"type": "tmpfs", "device": "tmpfs", "o": "mode=0755,nosuid,nodev,noexec"}


@dataclass(frozen=True, slots=True)
class Image:
    """An image that the engine has. `user` is as the image says: a name, a number, with a group or empty."""

    id: str
    user: str
    architecture: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """A container to be made. `command` None runs what the image itself runs.

    `secrets`, a folder of this machine's or a volume by its name, is what it
    gets as /secrets; `network` is as the engine's API has it.
    """

    image: str
    command: Sequence[str] | None
    environment: Mapping[str, str]
    user: str | None
    secrets: Path | str
    owner: str
    network: str | None = None
    cpus: float | None = None
    memory: int | None = None
    gpus: int | None = None
    user_namespace: str | None = None
    may_leave_core: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)


class Engine:
    """A connection to an engine that answers. Close it."""

    def __init__(self, address: str, service: Service | None = None) -> None:
        self._client = client = _client(address)
        self._api = client.api
        self.address = address
        self._service = service  # that we have started ourselves
        version, about = client.version(), client.info()
        self.is_podman = any("Podman" in part.get("Name", "") for part in version.get("Components", ()))
        self._machine = version.get("Arch", "")
        options = {option.partition(",")[0] for option in about.get("SecurityOptions") or ()}
        self.is_rootless = "name=rootless" in options or bool(
            about.get("Rootless")
        )  # Docker's way, and Podman's
        self._shares_users = not self.is_rootless and "name=userns" not in options
        self._is_in_a_machine = "Docker Desktop" in about.get("OperatingSystem", "")

    @classmethod
    def find(cls, docker_host: str | None, tell: Callable[[str, str], object]) -> Engine:
        """The engine that `docker_host` names, else the first that answers, else a Podman of our own.

        `tell` hears its address as an "engine", or, before it is started, as a "service".

        Raises:
            UsageError: the library is not installed.
            HostError: none answers; with what was tried.
        """
        _check_library()
        if docker_host and docker_host.startswith("ssh://"):
            return cls._of_ours(Tunnel(docker_host), tell)
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
                tell("engine", address)
                return engine
        if docker_host is None and (program := shutil.which("podman")):
            return cls._of_ours(podman(program), tell)
        raise HostError(
            "no container engine answers" + "".join(f"\n{line}" for line in tried),
            hint="install Docker or Podman, start it, and see that you may use it "
            "(group docker, or be root); DOCKER_HOST names another one",
        )

    @classmethod
    def _of_ours(cls, service: Service, tell: Callable[[str, str], object]) -> Engine:
        tell("service", service.address)
        service.start()
        try:
            return cls(service.address, service)
        except Exception as error:  # whatever the library or the socket says
            raise HostError(f"{service.what} does not answer: {reason(error)}", hint=service.hint) from None

    def keep_up(self) -> None:
        """Start a service of our own again, if it has ended.

        Raises:
            HostError: it does not start.
        """
        if self._service is not None and self._service.start():
            log.warning("The way to the engine had ended (%s); it was started again.", self._service.what)

    @property
    def takes_our_files(self) -> bool:
        """Whether files of ours can be given to its containers' users: it shares our memory and users."""
        if isinstance(self._service, Tunnel) or self._is_in_a_machine:
            return False
        if self.is_rootless:
            return self.is_podman and os.geteuid() != 0
        return self._shares_users and may_enter()

    @property
    def has_our_network(self) -> bool:
        """Whether the network of its host is ours."""
        return self.takes_our_files or not (
            self.is_rootless or self._is_in_a_machine or isinstance(self._service, Tunnel)
        )

    def close(self) -> None:
        """Let go of it. One of our own runs on until the reaper has no more use for it."""
        self._client.close()

    def image(
        self, name: str, tell: Callable[[str], object], credentials: Credentials | None = None
    ) -> Image:
        """The image of that name, pulled when it is not there; `tell` hears how far that is.

        `credentials` are for its registry; without them the engine uses those that it has.

        Raises:
            HostError: there is none, or it is for another kind of machine.
        """
        import docker.errors

        try:
            found = self._client.images.get(name)
        except docker.errors.ImageNotFound:
            self._pull(name, tell, credentials)
            found = self._client.images.get(name)
        config = found.attrs.get("Config") or {}
        image = Image(found.id, config.get("User") or "", found.attrs.get("Architecture") or "")
        if image.architecture and self._machine and image.architecture != self._machine:
            raise HostError(
                f"the image {name} is for {image.architecture}, this machine is {self._machine}",
                hint="use an image that was built for this kind of machine",
            )
        return image

    def _pull(self, name: str, tell: Callable[[str], object], credentials: Credentials | None) -> None:
        import docker.errors

        hint = _PULL_HINT
        if credentials is not None:
            hint = f"is the name right? And the login, which is the secret {credentials.secret}?"
        layers: dict[str, tuple[int, int]] = {}
        told = 0.0
        tell(f"pulling {name}")
        try:
            repository, tag = _with_tag(name)
            login = credentials.auth_config() if credentials else None
            lines = self._api.pull(repository, tag=tag, stream=True, decode=True, auth_config=login)
            for line in lines:
                if line.get("error"):
                    raise HostError(f"the image {name} cannot be pulled: {line['error']}", hint=hint)
                detail = line.get("progressDetail") or {}
                if line.get("id") and detail.get("total"):
                    layers[line["id"]] = (detail.get("current", 0), detail["total"])
                if layers and time.monotonic() - told > _PROGRESS_SECONDS:
                    told = time.monotonic()
                    done, total = (sum(each) / 1e6 for each in zip(*layers.values(), strict=True))
                    tell(f"pulling {name}: {done:.0f} of {total:.0f} MB")
        except docker.errors.APIError as error:
            raise HostError(
                f"the image {name} is not here and cannot be pulled: {reason(error)}", hint=hint
            ) from None

    def create(self, spec: ContainerSpec) -> Container:
        """Make a container, not yet started.

        Raises:
            ModelFailed: the engine refuses it.
            HostError: the engine has gone.
        """
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
        if not (spec.may_leave_core or self.is_podman):
            options["ulimits"] = [Ulimit(name="core", soft=0, hard=0)]
        if spec.cpus is not None:
            options["nano_cpus"] = int(spec.cpus * 1e9)
        if spec.memory is not None:
            options["mem_limit"] = spec.memory
        if spec.gpus is not None:
            options["device_requests"] = [DeviceRequest(count=spec.gpus, capabilities=[["gpu"]])]
        host_config = self._api.create_host_config(**options)
        if spec.user_namespace is not None:
            host_config["UsernsMode"] = spec.user_namespace  # the library knows only Docker's
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
        """A volume in the engine's memory, by its name; it is there while a container has it.

        Raises:
            ModelFailed: the engine refuses it.
            HostError: the engine has gone.
        """
        with translate_engine_errors("a volume for secrets cannot be made"):
            made = self._api.create_volume(driver="local", driver_opts=_VOLUME, labels={OWNER: owner})
        return str(made["Name"])

    def create_sidecar(
        self, image: Image, script: str, *, volume: str, owner: str, port: int | None
    ) -> Container:
        """A container that runs a shell's script as root, with few rights; it can write to that volume only.

        Its standard input closes with the connection that `Container.pipe`
        makes. `port` can be reached on this machine, on a number of its own.

        Raises:
            ModelFailed: the engine refuses it.
            HostError: the engine has gone.
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
        """Where a port that a sidecar publishes is reached from here, as for `socket.connect`.

        Raises:
            ModelFailed: it is not published.
            HostError: the engine has gone.
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
        _remove_volume(self._api, name)

    def files(self, image: Image, *paths: str) -> list[bytes]:
        """Small files of an image's, from a container that never runs; empty for one that it has not.

        Raises:
            ModelFailed: the engine refuses to make the container.
        """
        with translate_engine_errors("the image cannot be looked into"):
            made = self._api.create_container(image.id, entrypoint=["/"], labels={OWNER: run_id()})
        container = Container(self._api, made["Id"])
        try:
            return [container.file(path) for path in paths]
        finally:
            container.remove()

    def remove_ours(self) -> bool:
        """Remove what this process still has there; whether there was anything.

        Raises:
            ModelFailed: the engine refuses it.
            HostError: the engine has gone.
        """
        with translate_engine_errors("what gusset has left at the engine cannot be removed"):
            return _remove_all(self._api, lambda name: name == run_id())

    def remove_orphans(self) -> None:
        """Remove what a gusset has left that has gone without doing so: the second net."""
        with suppress(Exception):  # it may be somebody else's engine by now; never a reason not to serve
            _remove_all(self._api, run_has_ended)


def remove_all_of_run(address: str, owner: str) -> bool:
    """Remove the containers and volumes of that owner's at the engine there; whether there were any.

    Raises whatever the library does, when the engine does not answer.
    """
    return _remove_all(_client(address).api, lambda name: name == owner)


def _remove_all(api: Any, matches: Callable[[str], bool]) -> bool:
    there = False
    containers = api.containers(all=True, filters={"label": [OWNER]})
    containers.sort(key=lambda found: -found["Created"])  # a sidecar goes after the one that has its network
    for found in containers:
        if matches(found["Labels"].get(OWNER, "")):
            there = True
            Container(api, found["Id"]).remove()
    for found in api.volumes(filters={"label": [OWNER]})["Volumes"] or ():
        if matches((found["Labels"] or {}).get(OWNER, "")):
            there = True
            _remove_volume(api, found["Name"])
    return there


def _remove_volume(api: Any, name: str) -> None:
    with suppress(Exception):  # a container has it, or the engine has gone
        api.remove_volume(name)


def _check_library() -> None:
    try:
        import docker  # noqa: F401  # asked for its presence
    except ModuleNotFoundError:
        raise UsageError(
            "custom images need the library docker", hint="pip install 'gusset[containers]'"
        ) from None


def _client(address: str) -> Any:
    import docker

    client = docker.DockerClient(base_url=address, version="auto", timeout=API_SECONDS)
    client.ping()
    return client


def _candidate_sockets() -> list[str]:
    """Where engines listen, as far as there is something."""
    places = [Path("/var/run/docker.sock"), Path("/run/podman/podman.sock")]
    session = Path(f"/run/user/{os.getuid()}")
    places += [session / "docker.sock", session / "podman/podman.sock"]
    places += [Path.home() / ".docker/run/docker.sock", Path.home() / ".docker/desktop/docker.sock"]
    return [f"unix://{place}" for place in places if place.exists()]


def _with_tag(name: str) -> tuple[str, str | None]:
    """A repository and the tag to pull; a digest stands in the repository."""
    if "@" in name:
        return name, None
    repository, colon, tag = name.rpartition(":")
    if colon and "/" not in tag:
        return repository, tag
    return name, "latest"
