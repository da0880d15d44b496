"""`gusset init`, `check` and `schema`: create and check model folders without running their code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gusset.cli.app import App, Command, pass_app
from gusset.cli.output import problem_data
from gusset.errors import CheckFailed, ConfigInvalid, Problem, Unreachable, VaultError

if TYPE_CHECKING:
    from gusset.package.config import Package

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
        + f"\nnext: `gusset secret set api_key`, then `gusset serve {folder}`",
    )


@click.command(cls=Command)
@_folder
@click.option("--strict", is_flag=True, help="Treat warnings, such as unknown keys, as errors.")
@click.option("--no-secrets", is_flag=True, help="Do not check whether the declared secrets exist.")
@pass_app
def check(app: App, folder: Path, strict: bool, no_secrets: bool) -> None:
    """Check a model folder: its config.yaml, its code, and whether its secrets exist."""
    from gusset.package.check import check_package
    from gusset.package.config import load_package

    package = load_package(folder)
    available = None if no_secrets or not (package.secrets or package.callers) else _available(app)
    problems = check_package(package, strict=strict, available=available)
    if package.is_image:
        problems += _image_problems(package)
    errors = [problem for problem in problems if not problem.warning]
    if errors:
        raise CheckFailed(f"{folder}: {_count(len(errors), 'error')}", problems=problems)
    app.output.problems([] if app.output.json else problems)
    app.output.result(
        {"problems": [problem_data(problem) for problem in problems]},
        f"{folder}: ready to be served" + (f" ({_count(len(problems), 'warning')})" if problems else ""),
    )


def _image_problems(package: Package) -> Sequence[Problem]:
    """Problems that keep a custom image from being served, found by the code that serves it."""
    from gusset.containers.image_deployment import ImageDeployment

    try:
        ImageDeployment.from_package(package)
    except ConfigInvalid as error:
        return error.problems
    return ()


def _available(app: App) -> list[str] | None:
    """Names of the secrets in the vault or on the manager; None, with a warning, if they cannot be listed."""
    try:
        with app.secret_reader() as secrets:
            return [info.name for info in secrets.list()]
    except (VaultError, Unreachable) as error:
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
