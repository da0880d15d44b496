"""Builds the image of a folder that asks for more in it than its base image has.

A recipe is written, and built by the engine's own command. No secret is part
of either.
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

DATA = "/app/data"  # where Truss puts them
PACKAGES = "/packages"

_LAST_LINES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is added to the base image. `requirements` is the text of a requirements file."""

    system_packages: tuple[str, ...] = ()
    requirements: str = ""
    data: Path | None = None
    packages: tuple[Path, ...] = ()
    commands: tuple[str, ...] = ()
    python: str = "python3"
    no_cache: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether the base image is all that is asked for."""
        return not (self.system_packages or self.requirements or self.data or self.packages or self.commands)

    @classmethod
    def of_package(cls, package: Package, report: ProblemCollector) -> Recipe:
        """What a checked folder asks for; what cannot be built goes to `report`."""
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
            data=package.data_dir if _has_files(package.data_dir) else None,
            packages=tuple(path for path in package.packages_dirs if _has_files(path)),
            commands=tuple(config.build_commands),
            python=config.base_image.python_executable_path if config.base_image else "",
            no_cache=config.build.no_cache,
        )

    def text(self, base: str, user: str) -> str:
        """As a Containerfile for an image that runs as `user` (empty: as root).

        Commands stand in JSON, so that their line ends and quotes stay theirs.
        """
        lines = [f"FROM {base}"]
        if user:
            lines.append("USER 0")
        if self.system_packages:
            wanted = shlex.join(self.system_packages)
            lines.append(
                _run(
                    "export DEBIAN_FRONTEND=noninteractive; apt-get update && "
                    f"apt-get install -y --no-install-recommends {wanted} && rm -rf /var/lib/apt/lists/*"
                )
            )
        if self.packages:
            lines += [f"COPY packages {PACKAGES}", f"ENV PYTHONPATH={PACKAGES}"]
        if self.requirements:
            lines.append("COPY requirements.txt /tmp/gusset-requirements.txt")
            lines.append(
                _run(
                    # A distribution's own Python wants to be asked twice.
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

    def fill(self, context: Path, text: str) -> None:
        """Put the recipe and all that it copies into a folder."""
        (context / "Containerfile").write_text(text)
        (context / "requirements.txt").write_text(self.requirements)
        if self.data:
            _copy(self.data, context / "data")
        for folder in self.packages:
            _copy(folder, context / "packages")


def build(
    engine: Engine, recipe: Recipe, *, base: str, user: str, model: Path, mask: Callable[[str], str]
) -> Image:
    """What the recipe makes of the image `base`, for the model in that folder.

    Quick when nothing has changed since it was last built. What the build
    prints is logged, as `mask` gives it.

    Raises:
        HostError: the engine's command is not installed.
        ModelFailed: the build fails; with its last lines.
    """
    last = collections.deque[str](maxlen=_LAST_LINES)
    with tempfile.TemporaryDirectory(prefix="gusset-build-") as folder:
        context, result = Path(folder) / "context", Path(folder) / "id"
        context.mkdir()
        recipe.fill(context, recipe.text(base, user))
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
    """`result` is the file that gets the image's id: the tag may be another build's by then."""
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
        report.add(("requirements_file",), "only a file that pip installs with -r is built", "name one")
        return ""
    try:
        return file.read_text("utf-8")
    except (OSError, ValueError):
        report.add(("requirements_file",), "there is no such text file", "name one, from the model folder")
        return ""


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _run(command: str) -> str:
    return "RUN " + json.dumps(["/bin/sh", "-c", command], ensure_ascii=False)


def _copy(source: Path, target: Path) -> None:
    """As links where that works: models' data is large."""

    def link(one: str, other: str) -> None:
        with contextlib.suppress(FileExistsError):  # the first of several folders with packages wins
            try:
                os.link(one, other, follow_symlinks=False)
            except FileExistsError:
                raise
            except OSError:
                shutil.copy2(one, other, follow_symlinks=False)

    shutil.copytree(source, target, symlinks=True, copy_function=link, dirs_exist_ok=True)


def _tag(model: Path) -> str:
    """The image's name, which keeps it from being pruned; each folder has its own, whatever it is called."""
    path = model.resolve()
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in path.name.lower()).strip("-")
    return f"localhost/gusset-{plain or 'model'}-{hashlib.sha256(bytes(path)).hexdigest()[:12]}:latest"
