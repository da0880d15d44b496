"""Decides whether a model runs on this Python or in its own environment, and what that is made from."""

from __future__ import annotations

import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from gusset import __version__
from gusset.environments.installed import InstalledPackages, unsatisfied
from gusset.environments.local_code import fingerprint
from gusset.environments.plan import OLDEST, EnvironmentPlan, Mode, PythonChoice, Version, text_of
from gusset.environments.requested import Request
from gusset.environments.requirement_lines import (
    Requirement,
    Requirements,
    probable_name,
    without_login,
)
from gusset.environments.resources import TRUSS_FILE, WORKER_FILE, list_text
from gusset.errors import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The Python that runs gusset, and the machine, as far as an environment depends on them.

    `settings` are variables for uv, and `constraints` the texts of files that they name.
    """

    version: Version
    executable: str
    build: str
    platform: str
    installed: InstalledPackages = field(repr=False)
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)
    constraints: Sequence[str] = field(default=(), repr=False)

    @classmethod
    def here(cls, settings: Mapping[str, str], constraints: Sequence[str] = ()) -> Machine:
        """This process's Python, on this machine."""
        base = getattr(sys, "_base_executable", None) or sys.executable
        return cls(
            version=sys.version_info[:2],
            executable=base,
            build=f"{sys.version} {base}",
            platform=sysconfig.get_platform(),
            installed=InstalledPackages(
                [folder for folder in sys.path if folder not in ("", str(Path.cwd()))]
            ),
            settings=settings,
            constraints=constraints,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`plan` is None if the model runs on this Python. `problems` are errors and warnings."""

    plan: EnvironmentPlan | None = None
    problems: tuple[Problem, ...] = ()


def decide(
    request: Request, machine: Machine, *, name: str, folder: Path, mode: Mode = "auto", exact: bool = False
) -> Decision:
    """Decide for a folder. Reads the code of local requirements, and changes nothing."""
    problems = [*request.requirements.problems, *_python_problems(request, exact=exact)]
    problems += _missing_paths(request.requirements)
    if any(not problem.warning for problem in problems):
        return Decision(problems=tuple(problems))
    reasons = list(_reasons(request, machine))
    if mode == "current":
        found = [replace(each, warning=not exact) if _is_of_python(each) else each for each in reasons]
        return Decision(problems=(*problems, *found))
    if not reasons and mode == "auto":
        return Decision(problems=tuple(problems))
    try:
        plan = _plan(request, machine, name=name, folder=folder, exact=exact, reasons=reasons)
    except OSError as error:
        what = error.filename or "a local requirement"
        unreadable = Problem(
            f"{what} cannot be read: {error.strerror}", "correct the path", code="requirement"
        )
        return Decision(problems=(*problems, unreadable))
    return Decision(plan=plan, problems=tuple(problems))


def _python_problems(request: Request, *, exact: bool) -> Iterator[Problem]:
    wanted = request.python
    if wanted is not None and wanted.version < OLDEST:
        yield wanted.location.problem(
            f"gusset does not run on Python {text_of(wanted.version)}: the nearest is {text_of(OLDEST)}",
            f"write py{OLDEST[0]}{OLDEST[1]} or newer" if exact else None,
            code="python_version",
            warning=not exact,
        )


def _is_of_python(problem: Problem) -> bool:
    return problem.code == "python_version"


def _projects(requirements: Requirements) -> Iterator[str]:
    """The folders whose code is copied into the environment, as requirements."""
    for each in requirements.requirements:
        if each.path is not None and each.path.is_dir() and not each.editable:
            yield f"{each.url} ; {each.marker}" if each.marker else str(each.url)


def _missing_paths(requirements: Requirements) -> Iterator[Problem]:
    for each in requirements.requirements:
        if each.path is not None and each.marker is None and not each.path.exists():
            yield each.location.problem(f"there is no {each.path}", "correct the path", code="requirement")


def _reasons(request: Request, machine: Machine) -> Iterator[Problem]:
    """Why this Python does not satisfy the folder, each as a warning with its location."""
    wanted = request.python
    if wanted is not None and max(wanted.version, OLDEST) != machine.version:
        yield wanted.location.problem(
            f"the model asks for Python {text_of(wanted.version)}, "
            f"and gusset runs on {text_of(machine.version)}",
            code="python_version",
            warning=True,
        )
    found = unsatisfied(request.requirements, machine.installed) if request.requirements != _NOTHING else []
    for each in found:
        yield each.requirement.location.problem(
            f"{short(each.requirement)}: {each.reason}", code="not_installed", warning=True
        )
    for package in request.imports:
        if machine.installed.find(str(package.name)) is None:
            yield package.location.problem(
                f"the code imports {package.name}, which is not installed",
                "its own environment has it, and so has the extra gusset[truss]",
                code="not_installed",
                warning=True,
            )


_NOTHING = Requirements()


def short(requirement: Requirement) -> str:
    """A requirement as messages show it: without hashes and logins."""
    return without_login(requirement.text.split(" --", 1)[0])


def _plan(
    request: Request,
    machine: Machine,
    *,
    name: str,
    folder: Path,
    exact: bool,
    reasons: Iterable[Problem],
) -> EnvironmentPlan:
    python = _python_choice(request, machine, exact=exact)
    requirements = request.requirements
    locations = {}
    for each in (*requirements.constraints, *requirements.requirements):
        if found := probable_name(each):
            locations[found] = each.location
    return EnvironmentPlan(
        key=_key(request, machine, python),
        name=name,
        folder=str(folder),
        python=python,
        requirements=tuple(each.text for each in requirements.requirements),
        constraints=tuple(each.text for each in requirements.constraints),
        projects=tuple(_projects(requirements)),
        options=requirements.options,
        locations=locations,
        reasons=tuple(reasons),
        login_files=request.login_files,
    )


def _python_choice(request: Request, machine: Machine, *, exact: bool) -> PythonChoice:
    wanted = request.python
    if wanted is None:
        return PythonChoice(executable=machine.executable, exact=exact)
    version = max(wanted.version, OLDEST)
    return PythonChoice(
        executable=machine.executable,
        version=version if version != machine.version else None,
        written=wanted.version,
        exact=exact,
        location=wanted.location,
    )


def _key(request: Request, machine: Machine, python: PythonChoice) -> str:
    """A hash of all that the environment is made from, but of no login."""
    requirements = request.requirements
    inputs = {
        "gusset": __version__,
        "lists": [list_text(WORKER_FILE), list_text(TRUSS_FILE)],
        "python": text_of(python.version) if python.version else machine.build,
        "exact": python.exact,
        "platform": machine.platform,
        "requirements": [without_login(each.text) for each in requirements.requirements],
        "constraints": [without_login(each.text) for each in requirements.constraints],
        "options": without_login(json.dumps(asdict(requirements.options))),
        "inputs": request.inputs,
        "code": [
            fingerprint(each.path, editable=each.editable)
            for each in requirements.requirements
            if each.path is not None
        ],
        "settings": {name: without_login(value) for name, value in machine.settings.items()},
        "machine_constraints": machine.constraints,
        "logins": sorted(f"{each.kind} {each.secret}" for each in request.login_files),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]
