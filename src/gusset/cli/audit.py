"""`gusset audit ...`: shows, verifies and exports the audit log."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gusset.cli.app import App, Command, Group, pass_app
from gusset.cli.prompts import confirm
from gusset.errors import IntegrityError, UsageError
from gusset.printable import printable_json

if TYPE_CHECKING:
    from gusset.client.remote_audit import RemoteAudit

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(name="audit", cls=Group)
def audit() -> None:
    """Read, verify and export the audit log."""


@audit.command("show", cls=Command)
@click.option("--secret", "target", help="Only records about this secret.")
@click.option("--action", help="Only records of this action, such as secret.write.")
@click.option("--actor", help="Only records of this person or deployment.")
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    default=50,
    show_default=True,
    help="Number of records, newest first.",
)
@pass_app
def show(app: App, target: str | None, action: str | None, actor: str | None, limit: int) -> None:
    """Show the newest records; the newest comes last."""
    if app.settings.manager is not None:
        with _remote(app) as remote:
            records = remote.show(target=target, action=action, actor=actor, limit=limit)
    else:
        with app.vault() as vault:
            found = vault.audit.show(target=target, action=action, actor=actor, limit=limit)
        records = [record.shown() for record in found]
    columns = {
        "seq": "SEQ",
        "at": "WHEN",
        "actor": "WHO",
        "action": "WHAT",
        "target": "ON",
        "outcome": "OUTCOME",
    }
    app.output.table("records", records, columns, empty="nothing has been recorded")


@audit.command("verify", cls=Command)
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=_FILE,
    help="Checkpoints kept elsewhere: a copy of the witness file. May be repeated.",
)
@click.option(
    "--public-key",
    type=_FILE,
    help="Verify --checkpoint and --log with the keys that `audit public-key` printed, without the vault.",
)
@click.option("--log", type=_FILE, help="With --public-key: what `audit export` printed.")
@pass_app
def verify(app: App, checkpoints: tuple[Path, ...], public_key: Path | None, log: Path | None) -> None:
    """Verify that no record was edited, removed, reordered or cut off."""
    if public_key is not None:
        _verify_by_public_key(app, public_key, checkpoints, log)
        return
    if log is not None:
        raise UsageError("--log goes with --public-key")
    if app.settings.manager is not None:
        _verify_on_manager(app, checkpoints)
        return
    with app.vault(create=False) as vault:
        report = vault.audit.verify(*checkpoints)
        unfinished = vault.root_key_rotation.unfinished
    _require_intact(report.problems)
    if unfinished:
        app.output.warn(unfinished)
    if not app.settings.witness_file.exists() and not checkpoints:
        app.output.warn(
            f"there is no witness file at {app.settings.witness_file}: "
            "a log cut short, or an older copy of the database, would not be noticed"
        )
    _show_intact(app, report.records, report.checkpoints, report.head)


def _require_intact(problems: Sequence[str]) -> None:
    if problems:
        raise IntegrityError("the audit log is not intact:\n" + "\n".join(problems), hint=_NOT_INTACT_HINT)


def _show_intact(app: App, records: int, checkpoints: int, head: str) -> None:
    app.output.result(
        {"records": records, "checkpoints": checkpoints, "head": head},
        f"the audit log is intact: {records} records, {checkpoints} checkpoints",
    )


def _verify_on_manager(app: App, checkpoints: tuple[Path, ...]) -> None:
    if checkpoints:
        raise UsageError(
            "a manager verifies its log against its own witness file only",
            hint="give --public-key too, which needs no vault; or run the command where the manager runs",
        )
    with _remote(app) as remote:
        report = remote.verify()
    _require_intact(report["problems"])
    _show_intact(app, report["records"], report["checkpoints"], report["head"])


@contextmanager
def _remote(app: App) -> Iterator[RemoteAudit]:
    from gusset.client.remote_audit import RemoteAudit

    with app.manager() as client:
        yield RemoteAudit(client)


def _verify_by_public_key(app: App, key: Path, checkpoints: tuple[Path, ...], log: Path | None) -> None:
    from gusset.vault.audit.public_verification import read_public_keys, verify_by_public_keys

    if not checkpoints:
        raise UsageError(
            "--public-key verifies checkpoints", hint="give a copy of the witness file: --checkpoint FILE"
        )
    report = verify_by_public_keys(read_public_keys(key), checkpoints, log)
    if report.problems:
        raise IntegrityError(
            "the checkpoints or the log are not intact:\n" + "\n".join(report.problems),
            hint=_NOT_INTACT_HINT,
        )
    text = f"the signatures of {report.checkpoints} checkpoints are valid"
    if log is not None:
        text += f", and the log is what they say: {report.records} records"
    app.output.result({"records": report.records, "checkpoints": report.checkpoints}, text)


@audit.command("public-key", cls=Command)
@pass_app
def public_key(app: App) -> None:
    """Print the public keys that verify checkpoints: they are for auditors, and open nothing."""
    with app.vault(create=False) as vault:
        text = vault.audit.public_keys().text()
    app.output.result({"public_keys": text.splitlines()}, text)


_NOT_INTACT_HINT = (
    "keep a copy of the vault as it is now, then find out who could write to its files; see docs/security.md"
)


@audit.command("accept-loss", cls=Command)
@click.option("--yes", is_flag=True, help="Do not prompt for confirmation.")
@pass_app
def accept_loss(app: App, *, yes: bool) -> None:
    """Accept that the database has lost records, so that managers write again.

    Do it only when you know why: the database was restored from a backup, or a
    standby took over without the newest commits. What the lost records did is
    undone: keys that were revoked may be valid again, and values are older ones.
    """
    with app.vault(create=False) as vault:
        loss = vault.lost_records.find()
        if loss.known is None:
            text = f"the log ends with record {loss.head.seq}; this machine's witness file has no later one"
        else:
            text = f"the log ends with record {loss.head.seq} and lacks record {loss.known.seq}"
        if not yes:
            _confirm_loss(app, text)
        epoch = vault.lost_records.accept(actor=app.actor)
    app.output.result(
        {
            "epoch": epoch,
            "kept": loss.head.seq,
            "lost": None if loss.known is None else {"seq": loss.known.seq, "hash": loss.known.hash.hex()},
        },
        f"accepted: {text}. Epoch {epoch} has begun.",
    )


def _confirm_loss(app: App, text: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"this accepts the loss of records: {text}", hint="confirm with --yes")
    app.output.note(text)
    confirm("Accept that later records are lost, and begin a new epoch?")


@audit.command("export", cls=Command)
@pass_app
def export(app: App) -> None:
    """Print every record as JSON Lines, oldest first."""
    if app.settings.manager is not None:
        with _remote(app) as remote:
            _print_lines(remote.export())
    else:
        with app.vault(create=False) as vault:
            _print_lines(record.data() for record in vault.audit.export())


def _print_lines(records: Iterable[Mapping[str, Any]]) -> None:
    for record in records:
        click.echo(printable_json(json.dumps(record, ensure_ascii=False)))
