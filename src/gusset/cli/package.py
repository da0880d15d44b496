"""`gusset init`, `check` and `schema`: create and check model folders without running their code."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gusset.cli.app import App, Command, check_exclusive, pass_app
from gusset.cli.environment import (
    Environments,
    chosen,
    decide_for,
    environment_options,
    login_names,
    missing_logins,
    reasons_text,
)
from gusset.cli.output import problem_data
from gusset.errors import (
    CheckFailed,
    ConfigInvalid,
    HostError,
    Problem,
    Unreachable,
    UsageError,
    VaultError,
)

if TYPE_CHECKING:
    from gusset.environments.decision import Decision
    from gusset.environments.plan import EnvironmentPlan, Mode
    from gusset.package.config import Package
    from gusset.weights.download import Download

_folder = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))


@click.command(cls=Command)
@_folder
@pass_app
def init(app: App, folder: Path) -> None:
    """Create a model folder: a config.yaml that declares a secret, and a Model that uses it."""
    from gusset.package.scaffold import create_package

    written = create_package(folder, name=folder.absolute().name)
    app.output.result(
        {"files": [str(path) for path in written]},
        "\n".join(f"wrote {path}" for path in written)
        + f"\nnext: `gusset secret set api_key`, then `gusset serve {shlex.quote(str(folder))}`",
    )


@click.command(cls=Command)
@_folder
@click.option("--strict", is_flag=True, help="Treat warnings, such as unknown keys, as errors.")
@click.option("--no-secrets", is_flag=True, help="Do not check whether the declared secrets exist.")
@click.option(
    "--secrets-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Look for the secrets in the files of this folder.",
)
@click.option(
    "--manager",
    metavar="URL[,URL]",
    help="Look for the secrets at this manager, with the key of `gusset login`.",
)
@environment_options
@pass_app
def check(
    app: App,
    *,
    folder: Path,
    strict: bool,
    no_secrets: bool,
    secrets_dir: Path | None,
    manager: str | None,
    env: Mode,
    python: str,
) -> None:
    """Check a model folder: its config.yaml, its code, its requirements, and whether its secrets exist.

    Nothing is installed: it says which environment `gusset serve` would make.
    """
    from gusset.package.check import check_package
    from gusset.package.config import load_package
    from gusset.weights.download import credential_names
    from gusset.weights.plan import plan_downloads

    check_exclusive(manager=manager, secrets_dir=secrets_dir)
    package = load_package(folder)
    downloads = plan_downloads(package)
    decision = None if package.is_image else decide_for(package, chosen(env, python))
    plan = decision.plan if decision else None
    declared = {*package.secrets, *package.callers, *credential_names(downloads), *login_names(plan)}
    available = None
    if declared and not no_secrets:
        available = _available(app, declared, secrets_dir, manager)
    problems = check_package(
        package,
        strict=strict,
        available=available,
        secrets_dir=secrets_dir,
        has_own_environment=plan is not None,
    )
    problems += _environment_problems(decision, available, strict)
    problems += _download_problems(package, available, strict)
    problems += _image_problems(package) if package.is_image else []
    errors = [problem for problem in problems if not problem.warning]
    if errors:
        raise CheckFailed(f"{folder}: {_count(len(errors), 'error')}", problems=problems)
    _print_ready(app, folder, problems, downloads, plan)


def _print_ready(
    app: App,
    folder: Path,
    warnings: Sequence[Problem],
    downloads: Sequence[Download],
    plan: EnvironmentPlan | None,
) -> None:
    """Print that the folder can be served, and what `gusset serve` would download and make."""
    app.output.problems([] if app.output.json else warnings)
    app.output.result(
        {
            "problems": [problem_data(problem) for problem in warnings],
            "downloads": [_download_data(download) for download in downloads],
            "environment": _environment_data(app, plan),
        },
        f"{folder}: ready to be served"
        + (f" ({_count(len(warnings), 'warning')})" if warnings else "")
        + "".join(f"\nit downloads {each.label} {_destination(each)}" for each in downloads)
        + _environment_text(app, plan),
    )


def _download_problems(package: Package, available: Collection[str] | None, strict: bool) -> list[Problem]:
    """Problems of what is downloaded before the start; `strict` makes warnings errors."""
    from gusset.weights.plan import find_missing, find_problems

    missing = [replace(problem, warning=not strict) for problem in find_missing(package, available)]
    return [*find_problems(package), *missing]


def _download_data(download: Download) -> dict[str, str | None]:
    return {
        "source": download.label,
        "location": download.location,
        "mount": download.mount,
        "data_file": download.data_file,
    }


def _destination(download: Download) -> str:
    if download.data_file is not None:
        return f"to {download.data_file} in the data folder"
    return f"to {download.mount}" if download.mount else "to the hub's cache"


def _environment_problems(
    decision: Decision | None, available: Collection[str] | None, strict: bool
) -> list[Problem]:
    """Problems of what the folder asks of its Python environment; `strict` makes warnings errors."""
    if decision is None:
        return []
    missing = missing_logins(decision.plan, available)
    return [replace(each, warning=each.warning and not strict) for each in (*decision.problems, *missing)]


def _environment_data(app: App, plan: EnvironmentPlan | None) -> dict[str, object] | None:
    if plan is None:
        return None
    made = Environments(app).store.find(plan.key) is not None
    return {"key": plan.key, "made": made, "reasons": [problem_data(each) for each in plan.reasons]}


def _environment_text(app: App, plan: EnvironmentPlan | None) -> str:
    """In which environment `gusset serve` runs the model, and why not in this one."""
    if plan is None:
        return ""
    made = Environments(app).store.find(plan.key) is not None
    state = "which is made already" if made else "which `gusset serve` makes first"
    why = "; gusset's own Python does not fit" if plan.reasons else ""
    return f"\nin its own Python environment, {state}{why}:\n{reasons_text(plan.reasons)}"


def _image_problems(package: Package) -> Sequence[Problem]:
    """Problems that keep a custom image from being served, found by the code that serves it."""
    from gusset.containers.engine.library import check_library
    from gusset.containers.image_deployment import ImageDeployment

    problems: list[Problem] = []
    try:
        check_library()
    except UsageError as error:
        problems.append(Problem(error.message, error.hint, code="library_missing"))
    try:
        ImageDeployment.from_package(package)
    except ConfigInvalid as error:
        problems += error.problems
    return problems


def _available(
    app: App, declared: Collection[str], secrets_dir: Path | None, manager: str | None
) -> list[str] | None:
    """Names of secrets in the sources of `gusset serve`; None, with a warning, if they cannot be listed.

    Raises:
        Denied, Unreachable: the source that an option names cannot be read.
    """
    from gusset.cli.sources import further_sources
    from gusset.secrets.sources.folder import FolderSource

    app.hold_values()
    found = [name for source in further_sources() for name in source.read(declared)]
    if secrets_dir is not None:
        return [*found, *FolderSource(secrets_dir).read(declared)]
    if manager is not None:
        from gusset.client.remote_secrets import RemoteSecrets

        with app.manager(manager) as client:
            return [*found, *(info.name for info in RemoteSecrets(client).list())]
    try:
        with app.secret_reader() as secrets:
            return [*found, *(info.name for info in secrets.list())]
    except (VaultError, Unreachable, HostError) as error:
        app.output.warn(f"could not check whether the secrets exist: {error}")
        return None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


@click.command(cls=Command)
@pass_app
def schema(app: App) -> None:
    """Print the JSON Schema of config.yaml, for editors."""
    from gusset.package.config import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
