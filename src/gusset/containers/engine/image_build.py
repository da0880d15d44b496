"""Builds an image from the base image of a folder whose config adds packages, data or commands to it.

Writes a Containerfile and runs the engine's own build command. No secret takes
part in a build.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gusset.containers.engine.engine import Engine
from gusset.containers.engine.images import Image
from gusset.errors import HostError, ModelFailed
from gusset.runtime.environment import child_environment

if TYPE_CHECKING:
    from gusset.package.config import Package
    from gusset.package.problems import ProblemCollector

log = logging.getLogger("gusset")

DATA = "/app/data"  # as Truss has it
PACKAGES = "/packages"

_LAST_LINES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is added to a base image. `requirements` is the text of a requirements file."""

    system_packages: tuple[str, ...] = ()
    requirements: str = ""
    data: Path | None = None
    packages: tuple[Path, ...] = ()
    commands: tuple[str, ...] = ()
    python: str = "python3"
    no_cache: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing is added to the base image."""
        return not (self.system_packages or self.requirements or self.data or self.packages or self.commands)

    @classmethod
    def from_package(cls, package: Package, report: ProblemCollector) -> Recipe:
        """The recipe of a checked folder. Problems are added to `report`."""
        config = package.config
        if config.build.secret_to_path_mapping:
            report.add(
                ("build", "secret_to_path_mapping"),
                "builds are not given secrets yet",
                "remove it, or build the image yourself and name it under base_image.image",
                at_key=True,
            )
        return cls(
            system_packages=tuple(config.system_packages),
            requirements=_requirements(package, report),
            data=package.data_dir if _has_files(package.data_dir, ("data_dir",), report) else None,
            packages=_packages(package, report),
            commands=tuple(config.build_commands),
            python=config.base_image.python_executable_path if config.base_image else "",
            no_cache=config.build.no_cache,
        )

    def text(self, base: str, user: str) -> str:
        """The Containerfile, from the image `base`, for an image that runs as `user` (empty: root).

        Commands are written as JSON, which keeps their line breaks and quotes.
        """
        lines = [f"FROM {base}"]
        if user:
            lines.append("USER 0")
        if self.system_packages:
            names = shlex.join(self.system_packages)
            lines.append(
                _run(
                    "export DEBIAN_FRONTEND=noninteractive; apt-get update && "
                    f"apt-get install -y --no-install-recommends {names} && rm -rf /var/lib/apt/lists/*"
                )
            )
        if self.packages:
            lines += [f"COPY packages {PACKAGES}", f"ENV PYTHONPATH={PACKAGES}"]
        if self.requirements:
            lines.append("COPY requirements.txt /tmp/gusset-requirements.txt")
            lines.append(
                _run(
                    # The pip of a distribution's own Python refuses to install without this variable.
                    f"PIP_BREAK_SYSTEM_PACKAGES=1 {shlex.quote(self.python or 'python3')} -m pip install "
                    "--no-cache-dir -r /tmp/gusset-requirements.txt && rm /tmp/gusset-requirements.txt"
                )
            )
        if self.data:
            lines.append(f"COPY data {DATA}")
        lines += [_run(command) for command in self.commands]
        if user:
            lines.append(f"USER {user}")
        return "\n".join(lines) + "\n"

    def write_context(self, context: Path, text: str) -> None:
        """Write the Containerfile, with this text, and everything that it copies into the folder `context`.

        Raises:
            HostError: a folder cannot be copied.
        """
        (context / "Containerfile").write_text(text)
        (context / "requirements.txt").write_text(self.requirements)
        if self.data:
            _copy(self.data, context / "data")
        for folder in self.packages:
            _copy(folder, context / "packages")


def build(
    engine: Engine, recipe: Recipe, *, base: str, user: str, model: Path, mask: Callable[[str], str]
) -> Image:
    """Build the recipe on the image `base`, for the model in the folder `model`.

    The engine's cache makes this quick if nothing has changed. The build's output
    goes to the log, each line through `mask`.

    Raises:
        HostError: the engine's command is not installed, or a folder cannot be copied.
        ModelFailed: the build fails; the message has its last lines.
    """
    last = collections.deque[str](maxlen=_LAST_LINES)
    with tempfile.TemporaryDirectory(prefix="gusset-build-") as folder:
        context, result = Path(folder) / "context", Path(folder) / "id"
        context.mkdir()
        recipe.write_context(context, recipe.text(base, user))
        log.info("Building the image of %s.", model)
        with subprocess.Popen(
            _command(engine, context, tag=_tag(model), result=result, no_cache=recipe.no_cache),
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            for line in process.stdout or ():
                last.append(mask(line.rstrip()))
                log.info("build: %s", last[-1])
        if process.returncode:
            lines = "\n".join(f"  {line}" for line in last)
            raise ModelFailed(
                f"the image cannot be built; the last lines:\n{lines}",
                hint="see system_packages, requirements and build_commands in config.yaml",
            )
        return engine.images.get(result.read_text().strip(), log.info)


def _command(engine: Engine, context: Path, *, tag: str, result: Path, no_cache: bool) -> list[str]:
    """The build command. It writes the image's id to the file `result`: another build may move the tag."""
    tool, option = ("podman", "--url") if engine.is_podman else ("docker", "--host")
    program = shutil.which(tool)
    if program is None:
        raise HostError(
            f"to build the image the command {tool} is needed",
            hint="install it, or build the image yourself and set docker_server.no_build",
        )
    command = [program, option, engine.address, "build", "--tag", tag, "--iidfile", str(result)]
    command += ["--file", f"{context}/Containerfile"]
    return [*command, *(["--no-cache"] if no_cache else []), str(context)]


def _requirements(package: Package, report: ProblemCollector) -> str:
    config = package.config
    if config.requirements:
        return "\n".join(config.requirements) + "\n"
    if not config.requirements_file:
        return ""
    file = package.folder / config.requirements_file
    if file.name in ("pyproject.toml", "uv.lock"):
        report.add(("requirements_file",), "only a file for `pip install -r` can be built", "name one")
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


def _run(command: str) -> str:
    return "RUN " + json.dumps(["/bin/sh", "-c", command], ensure_ascii=False)


def _copy(source: Path, target: Path) -> None:
    """Copy a folder, with hard links where possible: models' data is large.

    Raises:
        HostError: it cannot be read, or there is no room.
    """

    def link(file: str, copy: str) -> None:
        with contextlib.suppress(FileExistsError):  # the first of several folders with packages wins
            try:
                os.link(file, copy, follow_symlinks=False)
            except FileExistsError:
                raise
            except OSError:
                shutil.copy2(file, copy, follow_symlinks=False)

    try:
        shutil.copytree(source, target, symlinks=True, copy_function=link, dirs_exist_ok=True)
    except OSError as error:
        raise HostError(
            f"{source} cannot be copied for the build of the image: {_reason_of_copy(error)}",
            hint="let the account that runs gusset read all of it; "
            f"{tempfile.gettempdir()} needs room for a copy if it is on another file system",
        ) from None


def _reason_of_copy(error: OSError) -> str:
    """The first of the failures that `shutil.copytree` has collected."""
    if isinstance(error, shutil.Error):
        return str(error.args[0][0][2])
    return str(error)


def _tag(model: Path) -> str:
    """A name for the image, different for each folder. The engine's pruning spares images with a name."""
    path = model.resolve()
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in path.name.lower()).strip("-")
    return f"localhost/gusset-{plain or 'model'}-{hashlib.sha256(bytes(path)).hexdigest()[:12]}:latest"
