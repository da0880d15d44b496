"""The recipe of a Python model's image: its Python, its requirements, the folder and gusset."""

from __future__ import annotations

import posixpath
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gusset
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
from gusset.containers.build.model_requirements import GUSSET, GUSSET_PYTHON, Installation
from gusset.containers.build.secret_mounts import MountedSecrets
from gusset.environments.plan import OLDEST, text_of
from gusset.environments.requested import Request
from gusset.portable import real_path

if TYPE_CHECKING:
    from gusset.package.config import Package
    from gusset.package.problems import ProblemCollector

APP = "/app"
PORT = 8080
_USER = "60000:60000"  # a number, so that an orchestrator can see that it is not root
_SYSTEM = ("/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/opt", "/proc", "/run", "/sbin", "/sys")
_OURS = (APP, "/usr", "/var", "/tmp", "/root", "/secrets", GUSSET)  # noqa: S108  # in the image
_START = """#!/bin/sh
# Secrets come from the manager that GUSSET_MANAGER names, else from the folder that is mounted at /secrets.
[ -n "$GUSSET_MANAGER" ] || set -- --secrets-dir /secrets "$@"
exec {gusset_python} -I -m gusset serve {app} --model-python "$(command -v {python})" \\
  --host 0.0.0.0 --port {port} "$@"
"""
_HEALTH = "import urllib.request as r; r.urlopen('http://127.0.0.1:{port}/v1/models/model', timeout=5)"
_CHECK_PYTHON = "import sys; sys.exit(sys.version_info < {oldest} and 'gusset needs Python {text} or newer')"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """What the image of a model contains. `folders` are those outside the model's, by path in the image."""

    name: str
    folder: Path
    base: str
    python: str
    system_packages: tuple[str, ...]
    commands: tuple[str, ...]
    data: Path
    data_target: str
    folders: tuple[tuple[str, Path], ...]
    installation: Installation
    secrets: MountedSecrets
    no_cache: bool = False

    @classmethod
    def from_package(
        cls, package: Package, request: Request, installation: Installation, report: ProblemCollector
    ) -> ModelRecipe:
        """The recipe of a checked folder. Problems are added to `report`."""
        config = package.config
        base = config.base_image
        secrets = MountedSecrets.from_package(package, report, installer="uv")
        return cls(
            name=config.model_name or package.folder.resolve().name,
            folder=package.folder.resolve(),
            base=(base.image if base else "") or _python_image(request),
            python=(base.python_executable_path if base else "") or "python3",
            system_packages=tuple(config.system_packages),
            commands=tuple(config.build_commands),
            data=package.data_dir,
            data_target=_target(config.data_dir, ("data_dir",), report),
            folders=tuple(_outside(package, report)),
            installation=installation,
            secrets=installation.with_logins(secrets),
            no_cache=config.build.no_cache,
        )

    def plan(self) -> BuildPlan:
        """The plan of the build."""
        return BuildPlan(
            name=self.name,
            folder=self.folder,
            base=self.base,
            instructions=tuple(self._instructions()),
            context=tuple(self._context()),
            secrets=self.secrets.secrets,
            needs_mounts=True,
            no_cache=self.no_cache,
        )

    def _instructions(self) -> Iterator[str]:
        yield from (f"FROM {self.base}", "USER 0", f"WORKDIR {APP}")
        if self.system_packages:
            yield system_packages(self.system_packages)
        check = _CHECK_PYTHON.format(oldest=OLDEST, text=text_of(OLDEST))
        words = ["PYTHONDONTWRITEBYTECODE=1", shlex.quote(self.python), "-c", shlex.quote(check)]
        yield run(f"{' '.join(words)} && mkdir -p /secrets")
        if self.secrets.secrets:
            yield secrets_argument()
        yield from self.installation.instructions(self.python, self.secrets)
        yield from (run(command, self.secrets.commands) for command in self.commands)
        yield copy("data", self.data_target)
        yield from (copy(f"folders/{number}", path) for number, (path, _) in enumerate(self.folders))
        yield copy("app", APP)
        yield copy("gusset", GUSSET)
        yield from env(
            {
                "GUSSET_CACHE": "/tmp/gusset/cache",  # noqa: S108  # in the image
                "GUSSET_HOME": "/tmp/gusset",  # noqa: S108
                "HOME": "/tmp",  # noqa: S108
                "PYTHONDONTWRITEBYTECODE": "1",
            }
        )
        yield from labels(self.name, self.base)
        yield f"EXPOSE {PORT}"
        yield f"USER {_USER}"
        yield "STOPSIGNAL SIGTERM"  # the base may have another
        health = [GUSSET_PYTHON, "-I", "-c", _HEALTH.format(port=PORT)]
        yield "HEALTHCHECK --start-period=30m CMD " + entrypoint(health).removeprefix("ENTRYPOINT ")
        yield from (entrypoint([f"{GUSSET}/serve"]), "CMD []")

    def _context(self) -> Iterator[ContextFile | ContextCopy]:
        yield from self.installation.context()
        elsewhere = {self.data, *(path for _, path in self.folders)}
        if self.data.is_dir():
            yield ContextCopy(path="data", source=self.data, is_model=True)
        else:
            yield ContextFile(path="data/.keep", content=b"")
        for number, (_, path) in enumerate(self.folders):
            yield ContextCopy(path=f"folders/{number}", source=path, is_model=True)
        yield ContextCopy(
            path="app", source=self.folder, is_model=True, leave_out=frozenset(map(real_path, elsewhere))
        )
        package = Path(gusset.__file__).parent.resolve()
        # Compiled modules may need a newer C library than the image has. Without them the source runs.
        yield ContextCopy(path="gusset/gusset", source=package, leave_out=frozenset(package.rglob("*.so")))
        python = shlex.quote(self.python)
        start = _START.format(gusset_python=GUSSET_PYTHON, python=python, app=APP, port=PORT)
        yield ContextFile(path="gusset/serve", content=start.encode(), executable=True)


def _python_image(request: Request) -> str:
    wanted = request.python.version if request.python else sys.version_info[:2]
    return f"docker.io/library/python:{text_of(max(wanted, OLDEST))}-slim"


def _outside(package: Package, report: ProblemCollector) -> Iterator[tuple[str, Path]]:
    """The external folders with packages that are not in the model's, with their paths in the image."""
    for index, name in enumerate(package.config.external_package_dirs):
        path = real_path(package.folder / name)
        if path.is_dir() and not path.is_relative_to(real_path(package.folder)):
            yield _target(name, ("external_package_dirs", index), report), path


def _target(name: str, key: tuple[str | int, ...], report: ProblemCollector) -> str:
    """Where a folder of the config is in the image: the model reads the same path from its config there."""
    path = posixpath.normpath(posixpath.join(APP, name))
    if path in _SYSTEM or (path in _OURS) or path.startswith(("/usr/", "/etc/", "/proc/", "/sys/", "/dev/")):
        report.add(
            key, f"the folder would be {path} in the image, which is reserved", "move it, or rename it"
        )
    return path
