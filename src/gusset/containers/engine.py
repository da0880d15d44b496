"""A container engine, Docker or Podman, over the API that both speak.

The one place that knows the library and its errors. What it is told and what
it keeps never holds a secret's value.
"""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from gusset.containers.service import Service
from gusset.errors import HostError, ModelFailed, UsageError

log = logging.getLogger("gusset.containers")

OWNER = "gusset.owner"  # the label that names the process which a container belongs to

_API_SECONDS = 60
_PULL_HINT = "is the name right? To a private registry log in with `podman login` or `docker login`"
_START_HINT = (
    "is the first word of docker_server.start_command a program of the image's? "
    "There may be no shell in it: then name the server itself"
)
_PROGRESS_SECONDS = 2.0
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64", "armv7l": "arm"}


@dataclass(frozen=True, slots=True)
class Image:
    """An image that the engine has. `user` is as the image says: a name, a number, with a group or empty."""

    id: str
    user: str
    architecture: str


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """A container to be made. `command` None runs what the image itself runs."""

    image: str
    command: Sequence[str] | None
    environment: Mapping[str, str]
    user: str | None
    secrets_folder: Path
    owner: str
    host_network: bool = False
    cpus: float | None = None
    memory: int | None = None
    gpus: int | None = None
    user_namespace: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


class Engine:
    """A connection to an engine that answers. Close it."""

    def __init__(self, address: str, service: Service | None = None) -> None:
        self._client = client = _client(address)
        self._api = client.api
        self.address = address
        self._service = service  # a Podman that we have started ourselves
        version = client.version()
        self.is_podman = any("Podman" in part.get("Name", "") for part in version.get("Components", ()))

    @classmethod
    def find(cls, docker_host: str | None, tell: Callable[[str, str], object]) -> Engine:
        """The engine that `docker_host` names, else the first that answers, else a Podman of our own.

        `tell` hears its address as an "engine", or, before it is started, as a "service".

        Raises:
            UsageError: the library is not installed.
            HostError: none answers; with what was tried.
        """
        if docker_host and not docker_host.startswith("unix://"):
            raise HostError(
                "DOCKER_HOST names an engine on another machine, whose memory gusset cannot put secrets into",
                hint="run `gusset serve` on that machine; here only unix:// addresses are used",
            )
        _check_library()
        tried = []
        for address in [docker_host] if docker_host else _sockets():
            try:
                engine = cls(address)
            except Exception as error:  # whatever the library or the socket says
                tried.append(f"  {address}: {_reason(error)}")
            else:
                tell("engine", address)
                return engine
        if docker_host is None and (podman := shutil.which("podman")):
            service = Service(podman)
            tell("service", service.address)
            service.start()
            with _telling("Podman's service does not answer"):
                return cls(service.address, service)
        raise HostError(
            "no container engine answers" + "".join(f"\n{line}" for line in tried),
            hint="install Docker or Podman, start it, and see that you may use it "
            "(group docker, or be root); DOCKER_HOST names another one",
        )

    def keep_up(self) -> None:
        """Start an engine of our own again, if it has ended.

        Raises:
            HostError: it does not start.
        """
        if self._service is not None and self._service.start():
            log.warning("Podman's service had ended; it was started again.")

    def close(self) -> None:
        """Let go of it. One of our own runs on until the reaper has no more use for it."""
        self._client.close()

    def image(self, name: str, tell: Callable[[str], object]) -> Image:
        """The image of that name, pulled when it is not there; `tell` hears how far that is.

        Raises:
            HostError: there is none, or it is for another kind of machine.
        """
        import docker.errors

        try:
            found = self._client.images.get(name)
        except docker.errors.ImageNotFound:
            self._pull(name, tell)
            found = self._client.images.get(name)
        config = found.attrs.get("Config") or {}
        image = Image(found.id, config.get("User") or "", found.attrs.get("Architecture") or "")
        ours = _MACHINES.get(os.uname().machine, os.uname().machine)
        if image.architecture and image.architecture != ours:
            raise HostError(
                f"the image {name} is for {image.architecture}, this machine is {ours}",
                hint="use an image that was built for this kind of machine",
            )
        return image

    def _pull(self, name: str, tell: Callable[[str], object]) -> None:
        import docker.errors

        layers: dict[str, tuple[int, int]] = {}
        told = 0.0
        tell(f"pulling {name}")
        try:
            repository, tag = _tagged(name)
            lines = self._api.pull(repository, tag=tag, stream=True, decode=True)
            for line in lines:
                if line.get("error"):
                    raise HostError(f"the image {name} cannot be pulled: {line['error']}", hint=_PULL_HINT)
                detail = line.get("progressDetail") or {}
                if line.get("id") and detail.get("total"):
                    layers[line["id"]] = (detail.get("current", 0), detail["total"])
                if layers and time.monotonic() - told > _PROGRESS_SECONDS:
                    told = time.monotonic()
                    done, total = (sum(each) / 1e6 for each in zip(*layers.values(), strict=True))
                    tell(f"pulling {name}: {done:.0f} of {total:.0f} MB")
        except docker.errors.APIError as error:
            raise HostError(
                f"the image {name} is not here and cannot be pulled: {_reason(error)}", hint=_PULL_HINT
            ) from None

    def create(self, spec: ContainerSpec) -> Container:
        """Make a container, not yet started.

        Raises:
            ModelFailed: the engine refuses it.
            HostError: the engine has gone.
        """
        from docker.types import DeviceRequest, LogConfig, Mount

        options: dict[str, Any] = {
            "log_config": LogConfig(type="none"),  # an engine writes to disk what is printed, unmasked
            "mounts": [Mount("/secrets", str(spec.secrets_folder), type="bind", read_only=True)],
            "network_mode": "host" if spec.host_network else None,
        }
        if Path("/sys/fs/selinux/enforce").exists():
            options["mounts"] = []
            options["binds"] = [f"{spec.secrets_folder}:/secrets:ro,Z"]
        if spec.cpus is not None:
            options["nano_cpus"] = int(spec.cpus * 1e9)
        if spec.memory is not None:
            options["mem_limit"] = spec.memory
        if spec.gpus is not None:
            options["device_requests"] = [DeviceRequest(count=spec.gpus, capabilities=[["gpu"]])]
        host_config = self._api.create_host_config(**options)
        if spec.user_namespace is not None:
            host_config["UsernsMode"] = spec.user_namespace  # the library knows only Docker's
        with _telling("the container cannot be made"):
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

    def files(self, image: Image, *paths: str) -> list[bytes]:
        """Small files of an image's, from a container that never runs; empty for one that it has not.

        Raises:
            ModelFailed: the engine refuses to make the container.
        """
        with _telling("the image cannot be looked into"):
            made = self._api.create_container(image.id, entrypoint=["/"], labels={OWNER: our_name()})
        container = Container(self._api, made["Id"])
        try:
            return [container.file(path) for path in paths]
        finally:
            container.remove()

    def remove_orphans(self) -> None:
        """Remove containers whose gusset has gone without doing so: the second net."""
        with suppress(Exception):  # it may be somebody else's engine by now; never a reason not to serve
            for found in self._api.containers(all=True, filters={"label": [OWNER]}):
                owner = found["Labels"].get(OWNER, "")
                if is_gone(owner):
                    Container(self._api, found["Id"]).remove()


class Container:
    """One container of an engine's."""

    def __init__(self, api: Any, id_: str) -> None:
        self._api = api
        self.id = id_

    def file(self, path: str) -> bytes:
        """A small file of the container's; empty when there is none."""
        import io
        import tarfile

        import docker.errors

        try:
            parts, _ = self._api.get_archive(self.id, path)
        except docker.errors.APIError:
            return b""
        with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as archive:
            member = next((each for each in archive if each.isfile()), None)
            file = archive.extractfile(member) if member else None
            return file.read() if file else b""

    def attach(self, out: int, err: int) -> None:
        """Carry all that the container prints to these descriptors, from its first byte; before `start`.

        They are ours from now on, and closed when it prints no more.

        Raises:
            ModelFailed: its command or its user cannot be had; Podman looks for them now, Docker in `start`.
            HostError: the engine has gone.
        """
        targets = [os.fdopen(out, "wb", buffering=0), os.fdopen(err, "wb", buffering=0)]
        try:
            with _telling("the container does not start", _START_HINT):
                stream = self._api.attach(
                    self.id, stdout=True, stderr=True, stream=True, logs=False, demux=True
                )
        except BaseException:
            _carry((), targets)
            raise
        threading.Thread(target=_carry, args=(stream, targets), name="gusset-attach", daemon=True).start()

    def start(self) -> None:
        """Start it.

        Raises:
            ModelFailed: its command cannot be run.
        """
        with _telling("the container does not start", _START_HINT):
            self._api.start(self.id)

    def wait(self) -> int | None:
        """Its exit status, once it has ended; None when that cannot be known."""
        try:
            return int(self._api.wait(self.id, timeout=None)["StatusCode"])
        except Exception:  # removed, or the engine has gone
            return None

    def pid(self) -> int:
        """The process id of its first process, as this machine has it; 0 when it does not run."""
        try:
            return int(self._api.inspect_container(self.id)["State"]["Pid"])
        except Exception:  # removed, or the engine has gone
            return 0

    def leave_no_core(self) -> None:
        """Have it write no core file, which would have the values in it; best as soon as it has started.

        Not by a limit of the container's: giving one drops those that the engine is configured with.
        """
        if pid := self.pid():
            with suppress(OSError):  # it has ended, or is not ours to limit
                resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))

    def stop(self, seconds: int) -> None:
        """SIGTERM, and SIGKILL when it has not ended after so many seconds."""
        with suppress(Exception):  # it has ended by itself
            self._api.stop(self.id, timeout=seconds)

    def kill(self) -> None:
        """End it at once."""
        with suppress(Exception):  # it has ended by itself
            self._api.kill(self.id)

    def remove(self) -> bool:
        """Kill it if it runs, and remove it; whether it is gone now."""
        import docker.errors

        try:
            self._api.remove_container(self.id, force=True, v=True)
        except docker.errors.NotFound:
            return True
        except (docker.errors.DockerException, OSError):
            return False
        return True


@contextmanager
def _telling(what: str, hint: str | None = None) -> Iterator[None]:
    """Say in our words what the engine refused, or that it is not there any more."""
    import docker.errors

    try:
        yield
    except docker.errors.APIError as error:
        raise ModelFailed(f"{what}: {_reason(error)}", hint=hint) from None
    except (docker.errors.DockerException, OSError) as error:
        raise HostError(f"the container engine does not answer any more: {_reason(error)}") from None


def our_name() -> str:
    """What stands for this process in labels and folders: its number, when it began, and where."""
    return f"{os.getpid()}-{_began(os.getpid())}-{_where()}"


def is_gone(name: str) -> bool:
    """Whether the process of that `our_name` has surely ended; of another machine's that is not known."""
    pid, _, rest = name.partition("-")
    began, _, where = rest.partition("-")
    return pid.isdecimal() and where == _where() and _began(int(pid)) != began


@cache
def _where() -> str:
    """A name for this machine and for what its process numbers mean: in a container they mean other ones."""
    try:
        machine = Path("/etc/machine-id").read_text("utf-8", "replace").strip()
    except OSError:
        machine = ""
    processes = Path("/proc/self/ns/pid").stat().st_ino
    return hashlib.sha256(f"{machine or os.uname().nodename} {processes}".encode()).hexdigest()[:16]


def container_of(address: str, id_: str) -> Container:
    """A container of the engine there, for whoever cleans up."""
    return Container(_client(address).api, id_)


def _began(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _check_library() -> None:
    try:
        import docker  # noqa: F401  # asked for its presence
    except ModuleNotFoundError:
        raise UsageError(
            "custom images need the library docker", hint="pip install 'gusset[containers]'"
        ) from None


def _client(address: str) -> Any:
    import docker

    client = docker.DockerClient(base_url=address, version="auto", timeout=_API_SECONDS)
    client.ping()
    return client


def _sockets() -> list[str]:
    """Where engines listen, as far as there is something."""
    places = [Path("/var/run/docker.sock"), Path("/run/podman/podman.sock")]
    places.append(Path(f"/run/user/{os.getuid()}/podman/podman.sock"))
    return [f"unix://{place}" for place in places if place.exists()]


def _tagged(name: str) -> tuple[str, str | None]:
    """A repository and the tag to pull; a digest stands in the repository."""
    if "@" in name:
        return name, None
    repository, colon, tag = name.rpartition(":")
    if colon and "/" not in tag:
        return repository, tag
    return name, "latest"


def _reason(error: Exception) -> str:
    explanation = getattr(error, "explanation", None) or getattr(error, "strerror", None)
    return str(explanation or error).strip().splitlines()[0][:400] if str(error) else type(error).__name__


def _carry(stream: Iterable[Sequence[bytes | None]], targets: Sequence[BinaryIO]) -> None:
    """Write what comes in pairs each to its target; then close them."""
    with ExitStack() as stack:
        for target in targets:
            stack.enter_context(target)
        with suppress(Exception):  # the engine has gone; so has the container
            for pair in stream:
                for target, data in zip(targets, pair, strict=True):
                    view = memoryview(data or b"")
                    while view:
                        view = view[target.write(view) :]
