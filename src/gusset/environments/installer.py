"""Makes the environment of a model folder with uv."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gusset.environments.additions import Additions
from gusset.environments.installed import InstalledPackages
from gusset.environments.logins import UvLogin, login_files
from gusset.environments.package_installer import Indexes, PackageInstaller, option_arguments, option_lines
from gusset.environments.plan import EnvironmentPlan, InstallOptions, Version, text_of
from gusset.environments.pythons import is_missing, locate, nearest
from gusset.environments.requirement_lines import Requirement
from gusset.environments.resources import TRUSS_FILE, WORKER_FILE, listed
from gusset.environments.store import EnvironmentInfo
from gusset.environments.uv import Result, Uv
from gusset.environments.uv_failures import failure
from gusset.errors import ConfigInvalid, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Installer:
    """Makes environments with `uv`. `python_version` is that of the Python that runs gusset.

    `translated` are the variables for uv that come from pip's settings of the machine.
    `warn` gets what the person should know. `logins` are the values of secrets. `worker`
    and `truss` are what is installed besides the model's requirements: what gusset's
    worker needs, and what Truss's server has.
    """

    uv: Uv
    python_version: Version
    translated: frozenset[str] = frozenset()
    warn: Callable[[Problem], object] = lambda problem: None
    logins: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    worker: tuple[Requirement, ...] = field(default_factory=lambda: listed(WORKER_FILE), repr=False)
    truss: tuple[Requirement, ...] = field(default_factory=lambda: listed(TRUSS_FILE), repr=False)
    installed: InstalledPackages = field(default_factory=lambda: InstalledPackages(sys.path), repr=False)

    def make(self, plan: EnvironmentPlan, attempt: Path) -> EnvironmentInfo:
        """Make the environment in the folder `attempt`, which does not exist yet.

        Raises:
            ConfigInvalid: the requirements cannot be met, or there is no such Python.
            Denied: an index refused the login.
            Unreachable: an index does not respond.
            ModelFailed: a package is broken or does not build.
            HostError: the disk is full, or uv cannot be run.
        """
        self._make_venv(plan, attempt)
        packages = PackageInstaller(self.uv, str(attempt / "bin" / "python"))
        with login_files(
            plan.login_files,
            self.logins,
            requirements=plan.requirements,
            git_settings=int(self.uv.environ.get("GIT_CONFIG_COUNT") or 0),
        ) as login:
            indexes = self._indexes(plan.options, login)
            _install_requirements(packages, plan, indexes)
            additions = Additions(
                worker=self.worker, truss=self.truss, installed=self.installed, warn=self.warn
            )
            additions.add(packages, plan, indexes)
        return EnvironmentInfo(
            key=plan.key,
            name=plan.name,
            folder=plan.folder,
            python_version=_version_in(attempt),
            path=str(attempt),
            made=time.time(),
        )

    def _make_venv(self, plan: EnvironmentPlan, attempt: Path) -> None:
        result = self._venv(locate(plan.python, self.uv), attempt)
        if result.status == 0:
            return
        if plan.python.version is None or not is_missing(result):
            raise failure(result.message, {}, what="the environment")
        if plan.python.exact:
            assert plan.python.location  # noqa: S101  # a version was written
            message = f"there is no Python {text_of(plan.python.version)} here, and uv could not fetch it"
            hint = f"install it, or leave out --python exact\n{result.message}"
            problem = plan.python.location.problem(message, hint, code="python_version")
            raise ConfigInvalid(message, problems=[problem])
        found = nearest(plan.python, self.uv, own=self.python_version)
        result = self._venv(found.executable, attempt)
        if result.status != 0:
            raise failure(result.message, {}, what="the environment")

    def _venv(self, python: str, attempt: Path) -> Result:
        return self.uv.run("venv", "--quiet", "--no-project", "--python", python, str(attempt))

    def _indexes(self, options: InstallOptions, login: UvLogin) -> Indexes:
        """Where the model's requirements are found."""
        environ = dict.fromkeys(self._overridden(options, login), "")
        return Indexes(
            lines=tuple(option_lines(options)),
            options=(*option_arguments(options), *login.options),
            descriptors=login.descriptors,
            environ={**environ, **login.environ},
        )

    def _overridden(self, options: InstallOptions, login: UvLogin) -> Iterator[str]:
        """The machine's settings that the model's own indexes replace, as pip would."""
        if (login.has_indexes or options.index_url) and "UV_DEFAULT_INDEX" in self.translated:
            yield "UV_DEFAULT_INDEX"
        if login.has_indexes and "UV_INDEX" in self.translated:
            yield "UV_INDEX"


def _install_requirements(packages: PackageInstaller, plan: EnvironmentPlan, indexes: Indexes) -> None:
    """Install what the model asks for, from its own indexes."""
    if not plan.requirements:
        return
    result = packages.install(plan.requirements, plan.constraints, indexes, projects=plan.projects)
    if result.status != 0:
        raise failure(result.message, plan.locations, what=f"the environment of {plan.name}")


def _version_in(attempt: Path) -> str:
    """The version of the environment's Python, from the file that uv writes."""
    for line in (attempt / "pyvenv.cfg").read_text().splitlines():
        name, _, value = line.partition("=")
        if name.strip() in ("version_info", "version"):
            return value.strip()
    return ""
