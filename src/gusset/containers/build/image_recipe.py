"""The recipe of a custom image: what the config adds to its base image."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gusset.containers.build.build_plan import BuildPlan, ContextCopy, ContextFile
from gusset.containers.build.instructions import (
    copy,
    entrypoint,
    env,
    labels,
    run,
    secrets_argument,
    system_packages,
)
from gusset.containers.build.secret_mounts import MountedSecrets

if TYPE_CHECKING:
    from gusset.package.config import Package
    from gusset.package.problems import ProblemCollector

DATA = "/app/data"  # as Truss has it
PACKAGES = "/packages"
_REQUIREMENTS = "/tmp/gusset-requirements.txt"  # noqa: S108  # in the image


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecipe:
    """What is added to the image `base`. `requirements` is the text of a requirements file.

    `command`, `environment` and `port` are how the server is run.
    """

    name: str = ""
    folder: Path = Path()
    base: str = ""
    system_packages: tuple[str, ...] = ()
    requirements: str = ""
    data: Path | None = None
    packages: tuple[Path, ...] = ()
    commands: tuple[str, ...] = ()
    secrets: MountedSecrets = field(default_factory=MountedSecrets)
    python: str = "python3"
    command: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None
    user_id: int | None = None
    no_cache: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing is added to the base image."""
        return not (self.system_packages or self.requirements or self.data or self.packages or self.commands)

    @classmethod
    def from_package(
        cls, package: Package, report: ProblemCollector, *, command: tuple[str, ...] | None = None
    ) -> ImageRecipe:
        """The recipe of a checked folder, run by `command`. Problems are added to `report`."""
        config = package.config
        requirements = _requirements(package, report)
        secrets = MountedSecrets.from_package(package, report, installer="pip")
        server = config.docker_server
        return cls(
            name=config.model_name or package.folder.resolve().name,
            folder=package.folder.resolve(),
            base=config.base_image.image if config.base_image else "",
            system_packages=tuple(config.system_packages),
            requirements=requirements,
            data=package.data_dir if _has_files(package.data_dir, ("data_dir",), report) else None,
            packages=_packages(package, report),
            commands=tuple(config.build_commands),
            secrets=secrets if requirements else secrets.without_installation(),
            python=(config.base_image.python_executable_path if config.base_image else "") or "python3",
            command=command,
            environment=package.environment_variables,
            port=server.server_port if server else None,
            user_id=server.run_as_user_id if server else None,
            no_cache=config.build.no_cache,
        )

    def plan(self, user: str) -> BuildPlan:
        """The plan of the build on a base image that runs as `user` (empty: root)."""
        return BuildPlan(
            name=self.name,
            folder=self.folder,
            base=self.base,
            instructions=tuple(self._instructions(user)),
            context=tuple(self._context()),
            secrets=self.secrets.secrets,
            needs_mounts=bool(self.secrets.secrets),
            no_cache=self.no_cache,
        )

    def _instructions(self, user: str) -> list[str]:
        lines = [f"FROM {self.base}", "USER 0"]
        if self.system_packages:
            lines.append(system_packages(self.system_packages))
        if self.packages:
            lines += [copy("packages", PACKAGES), f"ENV PYTHONPATH={PACKAGES}"]
        if self.secrets.secrets:
            lines.append(secrets_argument())
        if self.requirements:
            # The pip of a distribution's own Python refuses to install without this variable.
            words = ["PIP_BREAK_SYSTEM_PACKAGES=1", *self.secrets.for_installation()]
            words += [shlex.quote(self.python), "-m pip install --no-cache-dir -r", _REQUIREMENTS]
            command = f"{' '.join(words)} && rm {_REQUIREMENTS}"
            lines += [copy("requirements.txt", _REQUIREMENTS), run(command, self.secrets.installation)]
        if self.data:
            lines.append(copy("data", DATA))
        lines += [run(command, self.secrets.commands) for command in self.commands]
        lines += [*env(self.environment), *labels(self.name, self.base)]
        if self.port is not None:
            lines.append(f"EXPOSE {self.port}")
        if self.command is not None:
            lines += [entrypoint(self.command), "CMD []"]
        return [*lines, f"USER {self.user_id or user or 0}"]

    def _context(self) -> list[ContextFile | ContextCopy]:
        found: list[ContextFile | ContextCopy] = []
        if self.requirements:
            found.append(ContextFile(path="requirements.txt", content=self.requirements.encode()))
        if self.data:
            found.append(ContextCopy(path="data", source=self.data, is_model=True))
        # The first of several folders with packages wins.
        return found + [ContextCopy(path="packages", source=each, is_model=True) for each in self.packages]


def _requirements(package: Package, report: ProblemCollector) -> str:
    config = package.config
    if config.requirements:
        return "\n".join(config.requirements) + "\n"
    if not config.requirements_file:
        return ""
    file = package.folder / config.requirements_file
    if file.name in ("pyproject.toml", "uv.lock"):
        report.add(("requirements_file",), "an image needs a file for `pip install -r`", "name one")
        return ""
    try:
        return file.read_text("utf-8")
    except (OSError, ValueError):
        report.add(("requirements_file",), "there is no such text file", "name one in the model folder")
        return ""


def _packages(package: Package, report: ProblemCollector) -> tuple[Path, ...]:
    """The folders with packages that are not empty, in their order on the import path."""
    keys: list[tuple[str | int, ...]] = [("bundled_packages_dir",)]
    keys += [("external_package_dirs", index) for index in range(len(package.config.external_package_dirs))]
    return tuple(
        path for path, key in zip(package.packages_dirs, keys, strict=True) if _has_files(path, key, report)
    )


def _has_files(folder: Path, key: tuple[str | int, ...], report: ProblemCollector) -> bool:
    """Whether it is a folder that is not empty; a problem with `key` if it cannot be read."""
    try:
        return folder.is_dir() and any(folder.iterdir())
    except OSError as error:
        hint = "let the account that runs gusset read it, or remove it"
        report.add(key, f"the folder {folder} cannot be read: {error.strerror}", hint)
        return False
