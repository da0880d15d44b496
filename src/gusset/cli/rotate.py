"""`gusset secret rotate`: replace secrets by a provider's program, and revoke what they replace."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from gusset.cli.app import App, Command, pass_app
from gusset.cli.durations import DURATION, SECONDS
from gusset.errors import GussetError, UsageError, outcome_of
from gusset.rotation.state import MAX_OVERLAP
from gusset.secrets.name import check_name

if TYPE_CHECKING:
    from gusset.cli.stored_rotations import StoredRotations
    from gusset.client.remote_rotations import RemoteRotations
    from gusset.rotation.driver import Driver

UNFINISHED = 12
DEFAULT_TIMEOUT = 60.0  # seconds


@click.command("rotate", cls=Command)
@click.argument("names", metavar="[NAME...]", nargs=-1)
@click.option(
    "--with",
    "command",
    metavar="COMMAND",
    help="The provider's program: one string, split as by a shell but run without one.",
)
@click.option("--due", is_flag=True, help="Rotate only what is due: of these secrets, or of all.")
@click.option("--list", "list_", is_flag=True, help="List when secrets are due for rotation; change nothing.")
@click.option("--cancel", is_flag=True, help="End the unfinished rotation without revoking anything.")
@click.option(
    "--current-handle",
    metavar="HANDLE",
    help="The provider's name for the current credential, if no rotation created it.",
)
@click.option(
    "--overlap",
    type=DURATION,
    default=timedelta(hours=1),
    metavar="DURATION",
    help="How long, at most, the previous value stays readable, such as 30m (default: 1h).",
)
@click.option(
    "--timeout",
    type=SECONDS,
    default=DEFAULT_TIMEOUT,
    metavar="SECONDS",
    help="How long to wait for replicas (default: 60).",
)
@click.option(
    "--step-timeout",
    type=DURATION,
    default=timedelta(seconds=60),
    metavar="DURATION",
    help="How long the program may run for one step (default: 60s).",
)
@click.option(
    "--first-use-timeout",
    type=DURATION,
    metavar="DURATION",
    help="Revoke even if a replica has not used the new value within this time (default: never).",
)
@click.option("--accept-lost", is_flag=True, help="Revoke even if replicas were lost.")
@pass_app
def rotate(
    app: App,
    /,
    names: Sequence[str],
    command: str | None,
    due: bool,
    list_: bool,
    cancel: bool,
    current_handle: str | None,
    **options: Any,
) -> int:
    """Replace secrets with a provider's program, then revoke the old credentials there.

    A rotation that was interrupted, or waits for replicas, is continued by the same command.
    """
    for name in names:
        check_name(name)
    _check_options(names, command, due=due, list_=list_, cancel=cancel, current_handle=current_handle)
    if options["overlap"] > MAX_OVERLAP:  # refused before the provider makes a credential
        raise UsageError(f"--overlap can be at most {MAX_OVERLAP.days} days")
    with _rotations(app) as rotations:
        if list_:
            return _list(app, rotations, names)
        if cancel:
            return _cancel(app, rotations, names)
        words = _split(command)
        app.hold_values()
        driver = _driver(app, rotations, words, **options)
        if not due:
            return _rotate(app, driver, names, current_handle)
        now = datetime.now(UTC)
        found = [plan.name for plan in rotations.plans() if plan.due(now)]
        return _rotate(app, driver, _chosen(found, names), None)


def _check_options(
    names: Sequence[str],
    command: str | None,
    *,
    due: bool,
    list_: bool,
    cancel: bool,
    current_handle: str | None,
) -> None:
    if sum((due, list_, cancel)) > 1:
        raise UsageError("--due, --list and --cancel cannot be used together", hint="leave all but one out")
    if not (due or list_) and not names:
        raise UsageError("there is no secret to rotate", hint="name one, or add --due for all that are due")
    if (list_ or cancel) == (command is not None):
        if command is None:
            raise UsageError("--with is missing", hint="name the provider's program: --with COMMAND")
        raise UsageError("--list and --cancel run no program", hint="leave --with out")
    if current_handle is not None and (due or list_ or cancel or len(names) != 1):
        raise UsageError("--current-handle is about one secret", hint="name just this secret")


def _split(command: str | None) -> list[str]:
    import shlex
    import shutil

    try:
        words = shlex.split(command or "")
    except ValueError:
        raise UsageError("the command of --with has a quote that is not closed") from None
    if not words:
        raise UsageError("the command of --with is empty")
    if shutil.which(words[0]) is None:
        raise UsageError(f"there is no command {words[0]!r}")
    return words


@contextmanager
def _rotations(app: App) -> Iterator[StoredRotations | RemoteRotations]:
    holder = os.urandom(16).hex()
    if app.settings.manager is None:
        from gusset.cli.stored_rotations import StoredRotations

        with app.vault() as vault:
            yield StoredRotations(vault, holder=holder, actor=app.actor)
    else:
        from gusset.client.remote_rotations import RemoteRotations

        with app.manager() as client:
            yield RemoteRotations(client, holder=holder)


def _driver(
    app: App,
    rotations: StoredRotations | RemoteRotations,
    words: Sequence[str],
    *,
    overlap: timedelta,
    timeout: float,
    step_timeout: timedelta,
    first_use_timeout: timedelta | None,
    accept_lost: bool,
) -> Driver:
    from gusset.cli.provider_process import ProviderProcess
    from gusset.cli.value_warnings import warn_about
    from gusset.rotation.driver import Driver
    from gusset.rotation.replicas import Policy

    provider = ProviderProcess(
        words,
        timeout=step_timeout.total_seconds(),
        held=app.held,
        print_error=lambda line: app.output.note(f"provider: {line}"),
    )
    policy = Policy(
        first_use=first_use_timeout,
        accept_lost=accept_lost,
        whole_overlap=app.settings.manager is None,  # nobody knows the replicas of the embedded vault
    )
    return Driver(
        rotations,
        provider,
        policy=policy,
        overlap=overlap,
        timeout=timeout,
        note=app.output.note,
        take_value=partial(warn_about, app),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """What became of one secret. `status` is the exit status that it would have alone."""

    name: str
    outcome: str  # rotated, skipped, waiting or failed
    status: int
    message: str
    version: int | None = None
    error: GussetError | None = None

    def line(self) -> str:
        """For people, to whom the error was printed before."""
        return f"{self.name}: {self.message if self.error is None else self.outcome}"

    def data(self) -> dict[str, Any]:
        data = {"name": self.name, "outcome": self.outcome, "version": self.version, "message": self.message}
        return data if self.error is None else {**data, "code": self.error.code, "hint": self.error.hint}


def _rotate(app: App, driver: Driver, names: Sequence[str], current_handle: str | None) -> int:
    """Rotate each, whatever becomes of the others. Returns the exit status."""
    results = []
    for name in names:
        result = _rotate_one(driver, name, current_handle)
        results.append(result)
        if result.error is not None and not app.output.json:
            app.output.error(result.error)  # below the notes about its steps
    lines = [result.line() for result in results] or ["nothing is due"]
    app.output.result({"rotations": [result.data() for result in results]}, "\n".join(lines))
    statuses = [result.status for result in results]
    return next((status for status in statuses if status not in (0, UNFINISHED)), max(statuses, default=0))


def _rotate_one(driver: Driver, name: str, current_handle: str | None) -> _Result:
    from gusset.errors import RotationUnfinished
    from gusset.rotation.driver import Skipped

    try:
        done = driver.rotate(name, current_handle=current_handle)
    except Skipped:
        message = "skipped: the provider's program does not rotate it"
        return _Result(name=name, outcome="skipped", status=0, message=message)
    except GussetError as error:
        outcome = "waiting" if isinstance(error, RotationUnfinished) else "failed"
        status = outcome_of(error).exit
        return _Result(name=name, outcome=outcome, status=status, message=error.message, error=error)
    credentials = "1 credential" if done.revoked == 1 else f"{done.revoked} credentials"
    message = f"rotated (version {done.version}), {credentials} revoked"
    return _Result(name=name, outcome="rotated", status=0, message=message, version=done.version)


def _list(app: App, rotations: StoredRotations | RemoteRotations, names: Sequence[str]) -> int:
    now = datetime.now(UTC)
    plans = {plan.name: plan for plan in rotations.plans()}
    rows = [
        {
            "name": plan.name,
            "version": plan.version,
            "rotate_every": plan.rotate_every,
            "rotate_at": plan.rotate_at,
            "expires_at": plan.expires_at,
            "step": plan.step,
            "due": plan.due(now),
        }
        for plan in (plans[name] for name in _chosen(list(plans), names))
    ]
    columns = {
        "name": "NAME",
        "rotate_at": "ROTATE AT",
        "expires_at": "EXPIRES",
        "step": "STEP",
        "due": "DUE",
    }
    app.output.table("rotations", rows, columns, empty="no secret has an interval or an expiry date")
    return 0


def _cancel(app: App, rotations: StoredRotations | RemoteRotations, names: Sequence[str]) -> int:
    for name in names:
        rotation = rotations.cancel(name)
        app.output.note(f"{rotation.name}: ended in the step {rotation.step}; nothing was revoked")
        if rotation.version is None:
            app.output.note(f"the provider may have made a credential for the rotation {rotation.id}")
    app.output.result({"cancelled": list(names)})
    return 0


def _chosen(found: Sequence[str], names: Sequence[str]) -> list[str]:
    """Those of `found` that `names` name, in any spelling; all without `names`."""
    from gusset.secrets.name import fold_name

    folded = {fold_name(name) for name in names}
    return [name for name in found if not names or fold_name(name) in folded]
