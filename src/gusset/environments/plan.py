"""What an environment is made from, as plain data: quick to import, and to pass between processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gusset.errors import Problem

Version = tuple[int, int]
Mode = Literal["auto", "current", "own"]
OLDEST: Version = (3, 11)
"""The oldest Python that gusset's worker runs on."""


LOGIN_FILES = (".netrc", "pip.conf", "uv.toml")
"""The files with logins for package indexes that `build.secret_to_path_mapping` can name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLocation:
    """Where a line of requirements is written. `key` is that of config.yaml, as in `requirements[2]`."""

    file: str
    line: int | None = None
    column: int | None = None
    key: str | None = None

    def problem(self, message: str, hint: str | None = None, *, code: str, warning: bool = False) -> Problem:
        return Problem(
            message,
            hint,
            file=self.file,
            line=self.line,
            column=self.column,
            key=self.key,
            code=code,
            warning=warning,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallOptions:
    """Options for the installer from the lines: where packages are found and which kinds are used."""

    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    no_index: bool = False
    prereleases: bool = False
    no_binary: tuple[str, ...] = ()
    only_binary: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    require_hashes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginFile:
    """A secret that is a file with logins for package indexes; `kind` is one of `LOGIN_FILES`."""

    secret: str
    kind: str
    location: FileLocation


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonChoice:
    """The Python of an environment.

    `version` None means the one that runs gusset, `executable`. `written` is the version
    that config.yaml asks for. `exact` allows no other in its place.
    """

    executable: str
    version: Version | None = None
    written: Version | None = None
    exact: bool = False
    location: FileLocation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentPlan:
    """How to make the environment of a folder. Plain data, without logins.

    `requirements` are lines for the installer; `projects` are those for folders whose code is
    copied, which is built anew even if uv has an older build of it. `locations` maps names of packages to the
    lines that ask for them. `reasons` say why this Python is not used.
    """

    key: str
    name: str
    folder: str
    python: PythonChoice
    requirements: tuple[str, ...] = field(repr=False)
    constraints: tuple[str, ...] = field(repr=False)
    projects: tuple[str, ...] = field(default=(), repr=False)
    options: InstallOptions = field(repr=False)
    locations: Mapping[str, FileLocation] = field(repr=False)
    reasons: tuple[Problem, ...] = ()
    login_files: tuple[LoginFile, ...] = ()


def text_of(version: Version) -> str:
    """`3.11` for (3, 11)."""
    return ".".join(map(str, version))


def other_python(plan: EnvironmentPlan, version: str) -> Problem | None:
    """A warning if an environment has a Python, `version`, other than the one that was asked for."""
    wanted, location = plan.python.version, plan.python.location
    if wanted is None or location is None or version.startswith(f"{text_of(wanted)}."):
        return None
    return location.problem(
        f"there is no Python {text_of(wanted)} here: the model runs on {version}",
        f"install it, and then: gusset env remove {plan.key}",
        code="python_version",
        warning=True,
    )
