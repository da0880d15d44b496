"""`gusset secret ...`: the secrets of the embedded vault, or of the manager after `gusset login`.

A value is entered at a hidden prompt, on standard input or in a file, never as
an argument, and is shown only by `reveal`.
"""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from gusset.cli.app import App, Command, Group, pass_app
from gusset.cli.dates import DATE, DATE_OR_NEVER
from gusset.cli.durations import DURATION, DURATION_OR_NEVER, SECONDS
from gusset.cli.prompts import confirm, prompt_for_value
from gusset.cli.rotation_wait import WAIT_SECONDS, RotationWait
from gusset.cli.value_warnings import warn_about
from gusset.errors import ConfigInvalid, Denied, InvalidValue, Problem, UsageError
from gusset.secrets.info import expiry_warning
from gusset.secrets.name import check_name
from gusset.secrets.value import MAX_BYTES, SecretValue, check_length

if TYPE_CHECKING:
    from gusset.vault import SecretInfo

MAX_VERSION = 2**31 - 1
VERSION = click.IntRange(1, MAX_VERSION)

_HISTORY_HINT = (
    "never put a value on the command line: the shell's history and the list of processes have it now.\n"
    "Remove it from the history (for bash: `history -d`) and treat the value as exposed. Enter it at the\n"
    "prompt, or pass it on standard input (`gusset secret set NAME < file`) or with --from-file"
)


class SecretCommands(Group):
    """`rotate` is imported when it is used, since it needs more than the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "rotate"])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name != "rotate":
            return super().get_command(ctx, name)
        from gusset.cli.rotate import rotate

        return rotate


@click.group(name="secret", cls=SecretCommands)
def secret() -> None:
    """Add, list, replace and delete secrets."""
    gc.disable()  # these commands end soon: looking for garbage would be a tenth of their time
    click.get_current_context().call_on_close(gc.enable)


def command(name: str, **kwargs: Any) -> Callable[[Callable[..., Any]], click.Command]:
    return secret.command(name, cls=Command, **kwargs)


@command("set", surplus_hint=_HISTORY_HINT)
@click.argument("name")
@click.option(
    "--exact", is_flag=True, help="Store standard input exactly: keep a final newline, allow an empty value."
)
@click.option(
    "--from-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Store the exact bytes of this file.",
)
@click.option("--note", help="A note for people, such as where the value comes from. Not secret.")
@click.option(
    "--expires",
    type=DATE,
    metavar="DATE",
    help="Expiry date, such as 2031-01-31 or 2031-01-31T12:00:00Z; gusset warns beforehand.",
)
@click.option(
    "--expect-version",
    type=click.IntRange(0, MAX_VERSION),
    help="Set the value only if this is the current version (0: only if the secret does not exist).",
)
@click.option(
    "--overlap",
    type=DURATION,
    metavar="DURATION",
    help="Keep the previous version readable for this long, as in 30s, 15m, 1h or 7d.",
)
@click.option(
    "--wait",
    is_flag=True,
    help="Exit only when no replica uses an older version; status 12 if some have not reported that.",
)
@click.option(
    "--timeout",
    type=SECONDS,
    metavar="SECONDS",
    help=f"How long --wait waits, in seconds; {WAIT_SECONDS} unless set.",
)
@pass_app
def set_(
    app: App,
    name: str,
    exact: bool,
    from_file: Path | None,
    note: str | None,
    expires: datetime | None,
    expect_version: int | None,
    overlap: timedelta | None,
    wait: bool,
    timeout: float | None,
) -> None:
    """Add a secret, or replace its value.

    On a terminal, gusset prompts for the value; otherwise standard input is the value,
    without one final newline.
    """
    check_name(name)
    waiting = RotationWait.of_options(app, name, wait=wait, timeout=timeout)
    app.hold_values()
    value = SecretValue(check_length(_value_of(app, name, exact=exact, from_file=from_file)))
    app.held.append(value)
    with app.secret_writer() as secrets:
        info = secrets.set(
            name,
            value,
            actor=app.actor,
            note=note,
            expires_at=expires,
            expect_version=expect_version,
            overlap=overlap,
        )
    warn_about(app, name, value)
    data, text = secret_data(info), f"{'added' if info.version == 1 else 'replaced'} {info.name}"
    text += f" (version {info.version})"
    if waiting is not None:
        status = waiting.wait(info)
        count = len(status.replicas)
        data |= {"replicas": count, "lost_before": [replica.data() for replica in status.lost_before]}
        text += f"; {f'all {count} replicas use it' if count else 'no replica has an older version'}"
    app.output.result(data, text)


def _value_of(app: App, name: str, *, exact: bool, from_file: Path | None) -> bytes:
    if from_file is not None:
        try:
            with from_file.open("rb") as file:
                return file.read(MAX_BYTES + 1)
        except OSError as error:
            raise UsageError(f"cannot read {from_file}: {error.strerror}") from error
    if sys.stdin.isatty():
        return _typed(name)
    return _from_pipe(app, sys.stdin.buffer.read(MAX_BYTES + 3), exact=exact)


def _typed(name: str) -> bytes:
    value = prompt_for_value(name)
    if not value:
        raise InvalidValue(
            "the value is empty, nothing was stored",
            hint=f"to store an empty value: `gusset secret set {name} --exact < /dev/null`",
        )
    return value


_PEM = rb"(?s)\s*-----BEGIN [^\n]+\n.*-----END [^\n]+-----\r?\n\Z"


def _from_pipe(app: App, value: bytes, *, exact: bool) -> bytes:
    if exact:
        return value
    if value.endswith(b"\n") and not re.match(
        _PEM, value
    ):  # ssh-keygen refuses a key without its last newline
        value = value[:-1]
        app.output.note("removed one final newline; --exact keeps it")
    if not value:
        raise InvalidValue(
            "standard input is empty, nothing was stored",
            hint="did the command before the pipe fail? --exact stores an empty value",
        )
    return value


@command("list")
@click.option("--deleted", is_flag=True, help="Include deleted secrets, which can be restored.")
@pass_app
def list_(app: App, deleted: bool) -> None:
    """List secrets: names and dates, never values."""
    from gusset.vault.services.fast_list import list_secrets

    found = None
    if app.settings.manager is None:
        found = list_secrets(app.settings, include_deleted=deleted)
    if found is None:
        with app.secret_reader() as secrets:
            found = secrets.list(include_deleted=deleted)
    columns = {"name": "NAME", "version": "VERSION", "updated_at": "UPDATED"}
    if any(info.expires_at for info in found):
        columns |= {"expires_at": "EXPIRES"}
    if deleted:
        columns |= {"deleted_at": "DELETED", "id": "ID"}
    app.output.table("secrets", [secret_data(info) for info in found], columns, empty=_EMPTY)
    for info in found:
        if info.deleted_at is None and (warning := expiry_warning(info.expires_at, datetime.now(UTC))):
            app.output.warn(f"{info.name} {warning}")


_EMPTY = "no secrets yet; add one with `gusset secret set NAME`"


@command("annotate")
@click.argument("name")
@click.option("--note", help="A note for people; an empty text clears it.")
@click.option(
    "--expires",
    type=DATE_OR_NEVER,
    metavar="DATE|never",
    help="Expiry date, such as 2031-01-31 or 2031-01-31T12:00:00Z; or never.",
)
@click.option(
    "--rotate-every",
    type=DURATION_OR_NEVER,
    metavar="DURATION|never",
    help="How long a value is used until `gusset secret rotate --due` replaces it, as 30d; or never.",
)
@pass_app
def annotate(
    app: App,
    name: str,
    note: str | None,
    expires: datetime | Literal["never"] | None,
    rotate_every: timedelta | Literal["never"] | None,
) -> None:
    """Change a secret's note, expiry date or interval of rotations, without a new value."""
    with app.secret_writer() as secrets:
        info = secrets.annotate(
            name, actor=app.actor, note=note, expires_at=expires, rotate_every=rotate_every
        )
    app.output.result(secret_data(info), f"updated {info.name}")


@command("delete")
@click.argument("name")
@click.option("--force", is_flag=True, help="Delete it even while a running deployment uses it.")
@pass_app
def delete(app: App, name: str, force: bool) -> None:
    """Delete a secret, also from running models; `gusset secret restore` restores it."""
    with app.secret_writer() as secrets:
        info = secrets.delete(name, actor=app.actor, force=force)
    app.output.result(
        secret_data(info), f"deleted {info.name}; `gusset secret restore {info.name}` restores it"
    )


@command("restore")
@click.argument("name")
@pass_app
def restore(app: App, name: str) -> None:
    """Restore a deleted secret, by its name (the last one deleted) or its id."""
    with app.secret_writer() as secrets:
        info = secrets.restore(name, actor=app.actor)
    app.output.result(secret_data(info), f"restored {info.name} (version {info.version or 'none'})")


@command("destroy")
@click.argument("name")
@click.option(
    "--version", "versions", type=VERSION, multiple=True, help="Destroy only this version (repeatable)."
)
@click.option("--yes", is_flag=True, help="Do not prompt for confirmation.")
@pass_app
def destroy(app: App, name: str, versions: Sequence[int], yes: bool) -> None:
    """Destroy the stored bytes of a secret's versions permanently; its history stays."""
    check_name(name)
    what = f"version {', '.join(map(str, versions))} of {name}" if versions else f"every version of {name}"
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"this would permanently destroy {what}", hint="confirm with --yes")
        confirm(f"Destroy {what} permanently?")
    with app.secret_writer() as secrets:
        info = secrets.destroy(name, versions or None, actor=app.actor)
    app.output.result(secret_data(info), f"destroyed {what}")


@command("history")
@click.argument("name")
@pass_app
def history(app: App, name: str) -> None:
    """List a secret's versions."""
    with app.secret_reader() as secrets:
        found = secrets.history(name)
    rows = [
        {
            "version": version.version,
            "created_at": version.created_at,
            "created_by": version.created_by,
            "state": version.state,
        }
        for version in found
    ]
    columns = {"version": "VERSION", "created_at": "CREATED", "created_by": "BY", "state": "STATE"}
    app.output.table("versions", rows, columns, empty="no versions")


@command("rollback")
@click.argument("name")
@click.argument("version", type=VERSION)
@pass_app
def rollback(app: App, name: str, version: int) -> None:
    """Make an older version's value current again, as a new version."""
    with app.secret_writer() as secrets:
        info = secrets.rollback(name, version, actor=app.actor)
    app.output.result(
        secret_data(info), f"{info.name} has the value of version {version} again (version {info.version})"
    )


@command("reveal")
@click.argument("name")
@click.option("--version", type=VERSION, help="Show an older version.")
@pass_app
def reveal(app: App, name: str, version: int | None) -> None:
    """Show a stored value on the terminal. The audit log records it."""
    check_name(name)
    if app.output.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Denied(
            "a value is shown only to a person at a terminal",
            hint=f"to pass it to a program: `gusset exec --secret {name} -- COMMAND`",
        )
    if app.settings.manager is not None:
        raise Denied(
            "a manager never returns a value to a person", hint="only the embedded vault can show one"
        )
    app.hold_values()
    with app.vault() as vault:
        value = vault.secrets.delivery.reveal(name, version=version, actor=app.actor)
    sys.stdout.buffer.write(value.reveal() + b"\n")
    sys.stdout.flush()


@command("export")
@click.argument("names", metavar="[NAME...]", nargs=-1)
@click.option("--yes", is_flag=True, help="Do not prompt for confirmation.")
@pass_app
def export(app: App, names: Sequence[str], yes: bool) -> None:
    """Print secrets as lines of an .env file; without NAME, all. The audit log records each."""
    from gusset.secrets.dotenv import dotenv_line

    for name in names:
        check_name(name)
    if app.output.json:
        raise UsageError("an .env file is not JSON", hint="leave out --output json")
    if app.settings.manager is not None:
        raise Denied(
            "a manager never returns a value to a person", hint="only the embedded vault can export values"
        )
    if not yes:
        _confirm_export(names)
    app.hold_values()
    with app.vault() as vault:
        wanted = names or [info.name for info in vault.secrets.reader.list() if info.version is not None]
        lines = vault.secrets.delivery.reveal_all(wanted, actor=app.actor, to_text=dotenv_line)
    sys.stdout.buffer.write(b"".join(lines))
    sys.stdout.flush()


def _confirm_export(names: Sequence[str]) -> None:
    what = f"the values of {', '.join(names)}" if names else "the values of all secrets"
    if not sys.stdin.isatty():
        raise UsageError(f"this would print {what}", hint="confirm with --yes")
    confirm(f"Print {what} in plain text?")


@command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@pass_app
def import_(app: App, file: Path) -> None:
    """Store every NAME=VALUE of a .env file (- for standard input), all or none."""
    from gusset.secrets.dotenv import parse_dotenv

    app.hold_values()
    data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    entries = parse_dotenv(data, file=str(file))
    app.held.extend(entry.value for entry in entries)
    if not entries:
        raise ConfigInvalid(
            f"{file} sets nothing", problems=[Problem("no NAME=VALUE line", file=str(file), warning=True)]
        )
    with app.secret_writer() as secrets:
        infos = secrets.set_many([(entry.name, entry.value) for entry in entries], actor=app.actor)
    for entry in entries:
        warn_about(app, entry.name, entry.value)
    lines = [
        f"{'added' if info.version == 1 else 'replaced'} {info.name} (version {info.version})"
        for info in infos
    ]
    app.output.result({"secrets": [secret_data(info) for info in infos]}, "\n".join(lines))
    app.output.note(f"{file} still contains the values; delete it once nothing needs it")


def secret_data(info: SecretInfo) -> dict[str, Any]:
    """A secret's metadata, for JSON and tables."""
    return {
        "id": info.id,
        "name": info.name,
        "team_name": info.team,
        "version": info.version,
        "created_at": info.created_at,
        "updated_at": info.updated_at,
        "deleted_at": info.deleted_at,
        "note": info.note,
        "expires_at": info.expires_at,
        "last_read_at": info.last_read_at,
    }
