"""`gusset env`: the Python environments that gusset has made for model folders."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gusset.cli.app import App, Command, Group, pass_app
from gusset.cli.environment import Environments, chosen, decide_for, environment_options, raise_errors
from gusset.errors import NotFound

if TYPE_CHECKING:
    from gusset.environments.plan import EnvironmentPlan, Mode
    from gusset.environments.store import StoredEnvironment

_COLUMNS = {
    "key": "KEY",
    "name": "MODEL",
    "python": "PYTHON",
    "size": "SIZE",
    "used": "LAST USED",
    "in_use": "IN USE",
    "folder": "FOLDER",
}


@click.group(cls=Group)
def env() -> None:
    """List and remove the Python environments of model folders."""


@env.command("list", cls=Command)
@pass_app
def list_(app: App) -> None:
    """List the environments, the one that was used last first."""
    rows = [_row(each, json=app.output.json) for each in Environments(app).store.environments()]
    app.output.table("environments", rows, _COLUMNS, "no environments: `gusset serve` makes them")


@env.command(cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@environment_options
@pass_app
def path(app: App, folder: Path, env: Mode, python: str) -> None:
    """Print the path of a model folder's environment, and nothing else."""
    plan = _plan(folder, env, python)
    if plan is None:
        app.output.result({"path": sys.prefix, "key": None}, sys.prefix)
        return
    info = Environments(app).store.find(plan.key)
    if info is None:
        raise NotFound(
            f"the environment of {folder} is not made yet",
            hint=f"`gusset serve {shlex.quote(str(folder))}` makes it",
        )
    app.output.result({"path": info.path, "key": info.key}, info.path)


@env.command(cls=Command)
@click.argument("environment", metavar="KEY|DIR")
@environment_options
@pass_app
def remove(app: App, environment: str, env: Mode, python: str) -> None:
    """Remove an environment, given its key or its model folder."""
    key = environment
    if Path(environment).is_dir():
        plan = _plan(Path(environment), env, python)
        if plan is None:
            raise NotFound(f"{environment} has no environment: it runs on this Python")
        key = plan.key
    Environments(app).store.remove(key)
    app.output.result({"removed": [key]}, f"removed {key}")


@env.command(cls=Command)
@click.option(
    "--days",
    type=click.IntRange(0, 36500),
    default=30,
    show_default=True,
    help="Keep anything used in the last N days.",
)
@pass_app
def prune(app: App, days: int) -> None:
    """Remove environments and downloaded weights that were not used for some time."""
    from gusset.environments.store import days_ago
    from gusset.weights import pruning  # Windows has no fcntl

    since = days_ago(days)
    removed = [each.key for each in Environments(app).store.prune(unused_since=since)]
    downloads = pruning.prune(app.settings.cache / "weights", unused_since=since)
    if downloads is None:
        app.output.note("downloads stay: a model that uses some of them is running")
    lines = [f"removed {key}" for key in removed]
    if downloads is not None and downloads.files:
        lines.append(f"removed {downloads.files} downloaded files, {downloads.bytes / 1e6:.0f} MB")
    data = {"files": downloads.files, "bytes": downloads.bytes} if downloads is not None else None
    app.output.result({"removed": removed, "downloads": data}, "\n".join(lines) or "nothing to remove")


def _plan(folder: Path, env: Mode, python: str) -> EnvironmentPlan | None:
    from gusset.package.config import load_package

    decision = decide_for(load_package(folder), chosen(env, python))
    if decision is None:
        return None
    raise_errors(decision.problems, folder)
    return decision.plan


def _row(each: StoredEnvironment, *, json: bool) -> dict[str, object]:
    used = datetime.fromtimestamp(each.used, UTC)
    return {
        "key": each.info.key,
        "name": each.info.name,
        "folder": each.info.folder,
        "path": each.info.path,
        "python": each.info.python_version,
        "size": each.size if json else f"{each.size / 1e6:.0f} MB",
        "used": used.isoformat(timespec="seconds") if json else f"{used:%Y-%m-%d}",
        "in_use": each.in_use if json else ("yes" if each.in_use else "no"),
    }
