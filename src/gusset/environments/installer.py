"""Makes the environment of a model folder with uv."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from packaging.utils import canonicalize_name

from gusset.environments.decision import short
from gusset.environments.logins import UvLogin, login_files
from gusset.environments.plan import EnvironmentPlan, InstallOptions, Origin, Version, text_of
from gusset.environments.pythons import is_missing, locate, nearest
from gusset.environments.requirement_lines import Requirement
from gusset.environments.resources import TRUSS_FILE, WORKER_FILE, listed
from gusset.environments.store import EnvironmentInfo
from gusset.environments.uv import Result, Uv, memory_file, path_of
from gusset.environments.uv_failures import failure, is_not_found, is_refused_login
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
        python = str(attempt / "bin" / "python")
        with login_files(
            plan.login_files,
            self.logins,
            requirements=plan.requirements,
            git_settings=int(self.uv.environ.get("GIT_CONFIG_COUNT") or 0),
        ) as login:
            self._install_requirements(plan, python, login)
        self._install_lists(plan, python)
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
            assert plan.python.origin  # noqa: S101  # a version was written
            message = f"there is no Python {text_of(plan.python.version)} here, and uv could not fetch it"
            hint = f"install it, or leave out --python exact\n{result.message}"
            problem = plan.python.origin.problem(message, hint, code="python_version")
            raise ConfigInvalid(message, problems=[problem])
        found = nearest(plan.python, self.uv, own=self.python_version)
        result = self._venv(found.executable, attempt)
        if result.status != 0:
            raise failure(result.message, {}, what="the environment")

    def _venv(self, python: str, attempt: Path) -> Result:
        return self.uv.run("venv", "--quiet", "--no-project", "--python", python, str(attempt))

    def _install_requirements(self, plan: EnvironmentPlan, python: str, login: UvLogin) -> None:
        """Install what the model asks for, from its own indexes."""
        if not plan.requirements:
            return
        lines = [*_option_lines(plan.options), *plan.requirements]
        environ = dict.fromkeys(self._overridden(plan.options, login), "")
        result = self._install(
            python,
            lines,
            plan.constraints,
            options=[*_options(plan.options), *login.options],
            descriptors=login.descriptors,
            environ={**environ, **login.environ},
        )
        if result.status != 0:
            raise failure(result.message, plan.origins, what=f"the environment of {plan.name}")

    def _overridden(self, options: InstallOptions, login: UvLogin) -> Iterator[str]:
        """The machine's settings that the model's own indexes replace, as pip would."""
        if (login.has_indexes or options.index_url) and "UV_DEFAULT_INDEX" in self.translated:
            yield "UV_DEFAULT_INDEX"
        if login.has_indexes and "UV_INDEX" in self.translated:
            yield "UV_INDEX"

    def _install_lists(self, plan: EnvironmentPlan, python: str) -> None:
        """Install what the worker needs, and then what Truss's server has, as far as it is not there yet."""
        present = self._present(python)
        needed = list(_missing(self.worker, present, plan.origins))
        usual = [each for each in self.truss if each.name not in present]
        if not needed and not usual:
            return
        everything = [each.text for each in (*needed, *usual)]
        result = self._install(python, everything, _pins(present))
        if result.status == 0:
            return
        if "No solution found" not in result.text:
            raise failure(result.message, {}, what="what gusset's worker needs")
        if needed:
            result = self._install(python, [each.text for each in needed], _pins(present))
            if result.status != 0:
                raise _conflict(result.message, plan)
        for each in usual:
            self._install_one(each, python, plan)

    def _install_one(self, requirement: Requirement, python: str, plan: EnvironmentPlan) -> None:
        result = self._install(python, [requirement.text], _pins(self._present(python)))
        if result.status == 0:
            return
        if "No solution found" not in result.text:
            raise failure(result.message, {}, what=f"{requirement.name}, which Truss gives every model")
        self.warn(
            Problem(
                f"{requirement.name} of Truss's list does not fit the requirements: it is left out",
                f"name it under `requirements` if the model imports it\n{result.message}",
                code="left_out",
                warning=True,
            )
        )

    def _present(self, python: str) -> dict[str, str]:
        """The packages of the environment and their versions."""
        result = self.uv.query("pip", "list", "--quiet", "--format", "json", "--python", python)
        if result.status != 0:
            raise failure(result.message, {}, what="the environment")
        return {canonicalize_name(each["name"]): each["version"] for each in json.loads(result.output)}

    def _install(
        self,
        python: str,
        lines: Sequence[str],
        constraints: Sequence[str] = (),
        *,
        options: Sequence[str] = (),
        descriptors: Sequence[int] = (),
        environ: Mapping[str, str] | None = None,
    ) -> Result:
        with _memory_files(requirements=lines, constraints=constraints) as files:
            arguments = ["--requirements", path_of(files[0])]
            if constraints:
                arguments += ["--constraints", path_of(files[1])]
            command = ("pip", "install", "--python", python, *arguments, *options)
            inherited = (*files, *descriptors)
            result = self.uv.run(*command, descriptors=inherited, environ=environ)
            if is_not_found(result.message):
                # Only with this strategy uv tells that an index has refused the login.
                variables = {**(environ or {}), "UV_INDEX_STRATEGY": "first-index"}
                again = self.uv.run(*command, "--dry-run", descriptors=inherited, environ=variables)
                return again if is_refused_login(again.message) else result
            return result


@contextmanager
def _memory_files(**contents: Sequence[str]) -> Iterator[list[int]]:
    """Files in memory with these lines: a line may contain a login that config.yaml has."""
    descriptors: list[int] = []
    try:
        for name, lines in contents.items():
            descriptors.append(memory_file(name, "".join(f"{line}\n" for line in lines).encode()))
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _option_lines(options: InstallOptions) -> Iterator[str]:
    """The options that may contain logins, as lines of a requirements file."""
    if options.index_url:
        yield f"--index-url {options.index_url}"
    for url in options.extra_index_urls:
        yield f"--extra-index-url {url}"
    for place in options.find_links:
        yield f"--find-links {place}"


def _options(options: InstallOptions) -> Iterator[str]:
    """The other options, as arguments of uv."""
    if options.no_index:
        yield "--no-index"
    if options.prereleases:
        yield from ("--prerelease", "allow")
    if options.require_hashes:
        yield "--require-hashes"
    for flag, values in (
        ("--allow-insecure-host", options.trusted_hosts),
        ("--no-binary", options.no_binary),
        ("--only-binary", options.only_binary),
    ):
        for value in values:
            yield from (flag, value)


def _pins(present: Mapping[str, str]) -> list[str]:
    return [f"{name}=={version}" for name, version in present.items()]


def _missing(
    wanted: Sequence[Requirement], present: Mapping[str, str], origins: Mapping[str, Origin]
) -> Iterator[Requirement]:
    """The requirements of the worker that are not there yet.

    Raises:
        ConfigInvalid: one is there in a version that the worker cannot use.
    """
    for each in wanted:
        version = present.get(str(each.name))
        if version is None:
            yield each
        elif not each.specifier.contains(version, prereleases=True) and _applies(each):
            _refuse_version(each, version, origins)


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate()


def _refuse_version(wanted: Requirement, version: str, origins: Mapping[str, Origin]) -> NoReturn:
    name = str(wanted.name)
    origin = origins.get(name)
    brought = "the model asks for" if origin else "the model's requirements bring"
    message = f"{brought} {name} {version}, but gusset's worker needs {short(wanted)}"
    hint = f"allow {short(wanted)} in the requirements"
    problem = (
        origin.problem(message, hint, code="conflict") if origin else Problem(message, hint, code="conflict")
    )
    raise ConfigInvalid(message, problems=[problem])


def _conflict(message: str, plan: EnvironmentPlan) -> ConfigInvalid:
    text = f"the model's requirements exclude what gusset's worker needs\n{message}"
    found = failure(text, plan.origins, what=f"the environment of {plan.name}")
    return found if isinstance(found, ConfigInvalid) else ConfigInvalid(text)


def _version_in(attempt: Path) -> str:
    """The version of the environment's Python, from the file that uv writes."""
    for line in (attempt / "pyvenv.cfg").read_text().splitlines():
        name, _, value = line.partition("=")
        if name.strip() in ("version_info", "version"):
            return value.strip()
    return ""
