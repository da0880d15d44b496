"""The environment of a model folder for `serve`, `check` and `env`: decided, made and used."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import codecs
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gusset.cli.app import App
from gusset.errors import ConfigInvalid, Problem, SecretsMissing
from gusset.secrets.name import fold_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from gusset.environments.decision import Decision
    from gusset.environments.last_pythons import LastPythons
    from gusset.environments.plan import EnvironmentPlan, LoginFile, Mode
    from gusset.environments.requested import Request
    from gusset.environments.store import EnvironmentStore, Lease
    from gusset.environments.uv import ProgressSink
    from gusset.package.config import Package
    from gusset.secrets.sources.source import SecretSource
    from gusset.secrets.value import SecretValue

F = TypeVar("F", bound="Callable[..., Any]")
_SHOWN_REASONS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentOptions:
    """The options --env and --python."""

    mode: Mode
    exact: bool


def environment_options(command: F) -> F:
    """Add the options --env and --python to a command."""
    env = click.option(
        "--env",
        type=click.Choice(["auto", "current", "own"]),
        default="auto",
        show_default=True,
        help="Python environment of the model: this one if it has all that is asked for, else its own.",
    )
    python = click.option(
        "--python",
        type=click.Choice(["nearest", "exact"]),
        default="nearest",
        show_default=True,
        help="Allow the nearest Python if python_version is not available, or only that version.",
    )
    return env(python(command))


def chosen(env: Mode, python: str) -> EnvironmentOptions:
    return EnvironmentOptions(mode=env, exact=python == "exact")


def decide_for(package: Package, options: EnvironmentOptions) -> Decision | None:
    """Decide where the model runs, and warn of missing system packages; None: here, and nothing to report."""
    if options.mode != "own" and _asks_for_nothing(package):
        return None
    from gusset.environments.decision import Machine, decide
    from gusset.environments.index_settings import constraint_files, identifying
    from gusset.environments.system_packages import missing_packages
    from gusset.runtime.environment import child_environment

    environ = child_environment()
    request = read_request(package)
    settings = {**environ, **translated_settings(environ)}
    texts = [_text_of(file) for file in (*constraint_files(settings), *_uv_config_files(environ))]
    decision = decide(
        request,
        Machine.here(identifying(settings), texts),
        name=package.config.model_name or package.folder.resolve().name,
        folder=package.folder,
        mode=options.mode,
        exact=options.exact,
    )
    missing = missing_packages(request.system_packages)
    return type(decision)(plan=decision.plan, problems=(*decision.problems, *missing))


def read_request(package: Package) -> Request:
    """What the folder asks for."""
    from gusset.environments.requested import Files, request_of
    from gusset.runtime.environment import child_environment

    return request_of(package, Files(read=_read_text, export=_export, variables=child_environment()))


def _asks_for_nothing(package: Package) -> bool:
    """Whether this Python has everything, as for most folders; found out without any large import."""
    from gusset.environments.resources import truss_modules
    from gusset.package.model_imports import imports_of, is_installed

    config = package.config
    written = package.problem_collector().tree.data or {}
    keys = (config.requirements, config.requirements_file, config.system_packages)
    if any((*keys, config.build.secret_to_path_mapping, "python_version" in written)):
        return False
    file = package.model_file
    if file is None or not file.is_file():
        return True
    modules = truss_modules()
    names = {each.top_level for each in imports_of(file, package.folder)} & modules.keys()
    return all(is_installed(name) for name in names)


def translated_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """pip's settings of this machine as variables of uv."""
    from gusset.environments.index_settings import pip_config_files, uv_settings

    return uv_settings(environ, pip_config_files(environ, Path(sys.prefix)), _read_text)


def _uv_config_files(environ: Mapping[str, str]) -> list[Path]:
    """The settings of uv for this account and machine, which its installations depend on."""
    if environ.get("UV_NO_CONFIG"):
        return []
    config = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME") or "/", ".config"))
    named = environ.get("UV_CONFIG_FILE")
    return [Path(named)] if named else [config / "uv" / "uv.toml", Path("/etc/uv/uv.toml")]


def _read_text(path: Path) -> str:
    """The text of a file as pip reads it: in UTF-8, or in what its first bytes say."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.decode("utf-8-sig", "replace")


def _text_of(path: Path) -> str:
    from gusset.environments.requirement_lines import without_login

    try:
        return without_login(_read_text(path))
    except (OSError, ValueError):
        return ""


def _export(folder: Path) -> str:
    """The requirements in a folder's uv.lock, as uv reads it. Raises ValueError."""
    from gusset.environments.uv import Uv, find_uv, uv_environment
    from gusset.runtime.environment import child_environment

    uv = Uv(program=find_uv(), environ=uv_environment(child_environment(), {}))
    options = ("--frozen", "--no-emit-project", "--no-header", "--no-annotate", "--no-dev")
    result = uv.query("export", *options, "--directory", str(folder.absolute()))
    if result.status != 0:
        raise ValueError(result.message)
    return result.output


class Environments:
    """The environments that this process uses, in the cache of the settings."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._leases: list[Lease] = []  # held until this process ends

    @property
    def store(self) -> EnvironmentStore:
        from gusset.environments.store import EnvironmentStore

        return EnvironmentStore(self._app.settings.cache)

    @cached_property
    def _last_pythons(self) -> LastPythons:
        from gusset.environments.last_pythons import LastPythons

        return LastPythons(self._app.settings.cache)

    def guess(self, folder: Path, options: EnvironmentOptions) -> str:
        """The Python that the model will probably run on."""
        found = None if options.mode == "current" else self._last_pythons.guess(folder)
        return str(found or sys.executable)

    def use(
        self,
        plan: EnvironmentPlan | None,
        folder: Path,
        source: SecretSource,
        *,
        before_making: Callable[[], object] = lambda: None,
    ) -> str:
        """The Python of the environment, which is made if it is not there; this one if there is no plan.

        It stays in use until this process ends. `before_making` checks what else the
        start depends on, since making an environment takes long.

        Raises:
            GussetError: it cannot be made; see `Installer.make` and `EnvironmentStore.use`.
            SecretsMissing, Denied, Unreachable: a login for a package index cannot be read.
        """
        if plan is None:
            self._last_pythons.remember(folder, None)
            return sys.executable
        from gusset.environments.plan import other_python

        def make(attempt: Path) -> Any:
            before_making()
            return self._make(plan, attempt, source)

        lease = self.store.use(plan.key, make, on_wait=self._note_waiting)
        self._leases.append(lease)
        if warning := other_python(plan, lease.info.python_version):
            self._app.output.problems([warning])
        python = lease.info.python
        self._last_pythons.remember(folder, python)
        return str(python)

    def _note_waiting(self) -> None:
        self._app.output.note("another process is making this environment; waiting for it")

    def _make(self, plan: EnvironmentPlan, attempt: Path, source: SecretSource) -> Any:
        from gusset.secrets.sources.source import reading_once

        output = self._app.output
        output.note(f"making a Python environment for {plan.name}, once:\n{reasons_text(plan.reasons)}")
        with reading_once(source) as once:
            return self._install(plan, attempt, _read_logins(plan.login_files, once))

    def _install(self, plan: EnvironmentPlan, attempt: Path, logins: Mapping[str, SecretValue]) -> Any:
        from gusset.environments.installer import Installer
        from gusset.environments.uv import Uv, find_uv, uv_environment
        from gusset.runtime.environment import child_environment

        output = self._app.output
        self._app.held.extend(logins.values())
        environ = child_environment()
        settings = translated_settings(environ)
        progress = self._progress_sink(logins.values())
        installer = Installer(
            uv=Uv(program=find_uv(), environ=uv_environment(environ, settings), progress=progress),
            python_version=sys.version_info[:2],
            translated=frozenset(settings),
            warn=lambda problem: output.problems([problem]),
            logins={name: value.reveal() for name, value in logins.items()},
        )
        started = time.monotonic()
        info = installer.make(plan, attempt)
        output.note(f"made it in {time.monotonic() - started:.1f} s; the next start uses it from the cache")
        return info

    def _progress_sink(self, logins: Collection[SecretValue]) -> ProgressSink:
        """Standard error, with the logins masked."""
        from gusset.environments.uv import ProgressSink
        from gusset.secrets.masking import Masker

        # Bars are drawn in pieces, in which nothing can be masked.
        is_terminal = sys.stderr.isatty() and not self._app.output.json and not logins
        errors = sys.stderr.fileno()
        return ProgressSink(
            write=lambda data: _write(errors, data),
            terminal=errors if is_terminal else None,
            mask=Masker(logins).mask_text,
        )


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _read_logins(files: Sequence[LoginFile], source: SecretSource) -> dict[str, SecretValue]:
    """The values of the secrets that are files with logins.

    Raises:
        SecretsMissing: it names those that have no value.
        Denied, Unreachable: as raised by the source.
    """
    names = list(dict.fromkeys(each.secret for each in files))
    found = source.read(names) if names else {}
    missing = [each for each in files if each.secret not in found]
    if missing:
        lines = "\n".join(f"  {each.secret} ({each.location.file}:{each.location.line})" for each in missing)
        raise SecretsMissing(
            f"the installation needs secrets that have no value:\n{lines}",
            names=[each.secret for each in missing],
            hint="\n".join(f"gusset secret set {each.secret} --from-file FILE" for each in missing),
        )
    return {name: delivered.value for name, delivered in found.items()}


def login_names(plan: EnvironmentPlan | None) -> tuple[str, ...]:
    """The names of the secrets that an installation reads."""
    return tuple(each.secret for each in plan.login_files) if plan is not None else ()


def missing_logins(plan: EnvironmentPlan | None, available: Collection[str] | None) -> list[Problem]:
    """An error for each secret that the installation reads and that is not `available`, if that is known."""
    if plan is None or available is None:
        return []
    known = {fold_name(name) for name in available}
    return [
        each.location.problem(
            f"the secret {each.secret} does not exist",
            f"add it with `gusset secret set {each.secret} --from-file FILE`",
            code="secret_missing",
        )
        for each in plan.login_files
        if fold_name(each.secret) not in known
    ]


def raise_errors(problems: Collection[Problem], folder: Path) -> None:
    """Raise ConfigInvalid if one of the problems is an error."""
    if any(not problem.warning for problem in problems):
        raise ConfigInvalid(f"{folder} cannot be served", problems=tuple(problems))


def reasons_text(reasons: Sequence[Problem]) -> str:
    """Why a folder needs an environment of its own: the first reasons, one per line."""
    lines = [f"  {each.location()}: {each.message}" for each in reasons[:_SHOWN_REASONS]]
    more = len(reasons) - len(lines)
    return "\n".join([*lines, *([f"  and {more} more"] if more else [])] or ["  as --env own asks for"])
