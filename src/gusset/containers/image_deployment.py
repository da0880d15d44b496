"""A model folder with a custom image, as plain data for running it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gusset.containers.build.image_recipe import ImageRecipe
from gusset.containers.build.secret_mounts import BuildSecretNames
from gusset.containers.engine.registry import RegistryLogin
from gusset.errors import ConfigInvalid, ModelFailed, Problem, SecretsMissing
from gusset.package.model_code import secret_files_in_command
from gusset.package.quantity import MAX_SECONDS, parse_cpu, parse_memory
from gusset.runtime.declared_secrets import DeclaredSecret
from gusset.weights.download import Download, credential_names
from gusset.weights.plan import plan_downloads

if TYPE_CHECKING:
    from gusset.package.config import Package
    from gusset.package.problems import ProblemCollector
    from gusset.package.schema import DockerServer, HealthChecks

_MAX_USER_ID = 2**32 - 2  # the next one means "unchanged" to chown
_PATH = re.compile(r"[^\x00-\x20\x7f]*")

# Defaults of `runtime.health_checks`, in seconds.
STARTUP = 1800
RESTART = 1800
STOP_TRAFFIC = 1800


@dataclass(frozen=True, slots=True)
class Health:
    """Thresholds of the probes, in seconds.

    A container has to become ready within `startup`. It is restarted after
    `restart` without liveness, which is not checked before `restart_delay`, and
    gets no requests after `stop_traffic` without readiness.
    """

    startup: float = STARTUP
    restart_delay: float = 0
    restart: float = RESTART
    stop_traffic: float = STOP_TRAFFIC

    @classmethod
    def from_config(cls, checks: HealthChecks) -> Health:
        return cls(
            startup=_or_default(checks.startup_threshold_seconds, STARTUP),
            restart_delay=_or_default(checks.restart_check_delay_seconds, 0),
            restart=_or_default(checks.restart_threshold_seconds, RESTART),
            stop_traffic=_or_default(checks.stop_traffic_threshold_seconds, STOP_TRAFFIC),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDeployment:
    """A custom image to be served.

    `command` None runs the image's own command; `memory` is in bytes. `callers`
    are the secrets that callers present, which the container does not get.
    `downloads` are mounted into the container. With `is_grpc` its server speaks gRPC, and not HTTP/1.
    """

    name: str
    folder: Path
    image: str
    command: tuple[str, ...] | None
    port: int
    predict: str
    readiness: str
    liveness: str
    config_file: str = "config.yaml"
    user_id: int | None = None
    secrets: tuple[DeclaredSecret, ...] = ()
    callers: tuple[DeclaredSecret, ...] = ()
    environment_variables: Mapping[str, str] = field(default_factory=dict)
    cpus: float | None = None
    memory: int | None = None
    health: Health = field(default_factory=Health)
    recipe: ImageRecipe = field(default_factory=ImageRecipe)
    build_secrets: BuildSecretNames = field(default_factory=BuildSecretNames)
    login: RegistryLogin | None = None
    downloads: tuple[Download, ...] = ()
    is_grpc: bool = False

    @property
    def declared(self) -> tuple[str, ...]:
        """The names of all declared secrets, in the config's order."""
        return tuple(secret.name for secret in self.secrets)

    @property
    def download_secrets(self) -> tuple[str, ...]:
        """The names of the secrets that its downloads log in with."""
        return credential_names(self.downloads)

    @classmethod
    def from_package(cls, package: Package) -> ImageDeployment:
        """The deployment of a checked folder with `docker_server`.

        Raises:
            ConfigInvalid: it is not a custom image, or its config has values that cannot be used or built.
        """
        config = package.config
        server, base = config.docker_server, config.base_image
        report = package.problem_collector()
        if server is None:
            raise ConfigInvalid(f"{package.folder} is not a custom image")
        if base is None or not base.image:
            report.add(("base_image",), "a custom image needs base_image.image", "name the image that is run")
        _check_server(server, report)
        _check_health(config.runtime.health_checks, report)
        is_grpc = config.runtime.transport.kind == "grpc"
        if is_grpc and package.callers:
            report.add(
                ("runtime", "transport", "kind"),
                "gusset does not read the metadata of gRPC calls, so it cannot check the keys of callers",
                "leave the callers out, and check them in the server or in a proxy that speaks gRPC",
            )
        command = _split(server.start_command, report)
        login = RegistryLogin.from_package(package, report)
        recipe = (
            ImageRecipe() if server.no_build else ImageRecipe.from_package(package, report, command=command)
        )
        problems: list[Problem] = report.sorted()
        if problems or base is None:
            raise ConfigInvalid(f"{package.folder} cannot be served", problems=problems)
        given = config.resources.model_fields_set
        return cls(
            name=config.model_name or package.folder.resolve().name,
            folder=package.folder.resolve(),
            image=base.image,
            command=command,
            port=server.server_port,
            predict=_path(server.predict_endpoint),
            readiness=_path(server.readiness_endpoint),
            liveness=_path(server.liveness_endpoint),
            config_file=str(package.config_file),
            user_id=server.run_as_user_id,
            secrets=tuple(
                DeclaredSecret(slot.name, slot.line, slot.optional) for slot in package.secrets.values()
            ),
            callers=tuple(DeclaredSecret(each.name, each.line) for each in package.callers.values()),
            environment_variables=package.environment_variables,
            cpus=parse_cpu(config.resources.cpu) if "cpu" in given else None,
            memory=parse_memory(config.resources.memory) if "memory" in given else None,
            health=Health.from_config(config.runtime.health_checks),
            recipe=recipe,
            build_secrets=BuildSecretNames.from_package(package, recipe.secrets.names),
            login=login,
            downloads=plan_downloads(package),
            is_grpc=is_grpc,
        )

    def check_command(self, with_value: Collection[str]) -> None:
        """Check that every secret that the command reads has a value; `with_value` names those that do.

        Raises:
            SecretsMissing: one has no value; the shell would replace it with an empty text.
        """
        missing = [
            name for name in secret_files_in_command("\n".join(self.command or ())) if name not in with_value
        ]
        if missing:
            lines = [
                f"  /secrets/{name}: "
                + ("it has no value" if name in self.declared else "config.yaml does not declare it")
                for name in missing
            ]
            raise SecretsMissing(
                f"the start_command of {self.name} reads secrets that are missing:\n" + "\n".join(lines),
                names=missing,
                hint="declare it under secrets, and add its value: gusset secret set NAME",
            )


def user_ids(user: str, passwd: bytes, group: bytes) -> tuple[int, int]:
    """The user and group id of an image's user: USER or USER:GROUP, in names or numbers; empty is root.

    `passwd` and `group` are the contents of the image's files of these names.

    Raises:
        ModelFailed: the name is in neither, or not with numbers that can be ids.
    """
    name, _, group_name = user.partition(":")
    if not name:
        return 0, 0
    rows = [line.split(":") for line in passwd.decode("utf-8", "replace").splitlines()]
    row = next((row for row in rows if len(row) > 3 and name in (row[0], row[2])), None)
    if not all(map(_is_id, row[2:4] if row else [name])):
        raise _no_such("user", name, "/etc/passwd")
    uid, gid = (int(row[2]), int(row[3])) if row else (int(name), 0)
    if not group_name:
        return uid, gid
    lines = group.decode("utf-8", "replace").splitlines()
    groups = {row[0]: row[2] for row in (line.split(":") for line in lines) if row[2:]}
    number = group_name if group_name.isdecimal() else groups.get(group_name)
    if number is None or not _is_id(number):
        raise _no_such("group", group_name, "/etc/group")
    return uid, int(number)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= _MAX_USER_ID


def _no_such(kind: str, name: str, file: str) -> ModelFailed:
    return ModelFailed(
        f"the image runs as the {kind} {name}, which is not in its {file}",
        hint="give the user as a number: docker_server.run_as_user_id",
    )


def _check_server(server: DockerServer, report: ProblemCollector) -> None:
    if not 0 < server.server_port < 65536:
        report.add(("docker_server", "server_port"), "not a port", "write a number from 1 to 65535")
    if server.run_as_user_id is not None and not 0 < server.run_as_user_id <= _MAX_USER_ID:
        path = ("docker_server", "run_as_user_id")
        report.add(path, "not a user id", f"write a number from 1 to {_MAX_USER_ID}")
    for key in ("predict_endpoint", "readiness_endpoint", "liveness_endpoint"):
        if not _PATH.fullmatch(getattr(server, key)):
            hint = "write it without spaces and control characters, as in /predict"
            report.add(("docker_server", key), "not the path of a URL", hint)


def _check_health(checks: HealthChecks, report: ProblemCollector) -> None:
    for key in type(checks).model_fields:
        if not 0 <= (getattr(checks, key) or 0) <= MAX_SECONDS:
            hint = f"write a number of seconds from 0 to {MAX_SECONDS}"
            report.add(("runtime", "health_checks", key), "not a duration", hint)


def _split(command: str | None, report: ProblemCollector) -> tuple[str, ...] | None:
    """The words of the command. Problems are added to `report`."""
    path = ("docker_server", "start_command")
    if not command or not command.strip():
        return None
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        message = f"the command cannot be split into words as a shell does: {str(error).lower()}"
        report.add(path, message, "check its quotes and backslashes")
        return None
    if "\0" in command:
        report.add(path, "a command cannot contain NUL", "remove it")
    return words


def _path(endpoint: str) -> str:
    return endpoint if endpoint.startswith("/") else f"/{endpoint}"


def _or_default(seconds: int | None, otherwise: float) -> float:
    return otherwise if seconds is None else seconds
