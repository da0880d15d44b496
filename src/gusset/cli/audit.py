"""`gusset audit ...`: shows, verifies and exports the audit log."""

from __future__ import annotations

import json
from pathlib import Path

import click

from gusset.cli.app import App, Command, Group, pass_app
from gusset.errors import IntegrityError
from gusset.printable import printable_json


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
    with app.vault() as vault:
        records = vault.audit.show(target=target, action=action, actor=actor, limit=limit)
    columns = {
        "seq": "SEQ",
        "at": "WHEN",
        "actor": "WHO",
        "action": "WHAT",
        "target": "ON",
        "outcome": "OUTCOME",
    }
    app.output.table(
        "records", [record.data() for record in records], columns, empty="nothing has been recorded"
    )


@audit.command("verify", cls=Command)
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A checkpoint kept elsewhere: a copy of the witness file, or of the last one of `audit export`.",
)
@pass_app
def verify(app: App, checkpoint: Path | None) -> None:
    """Verify that no record was edited, removed, reordered or cut off."""
    with app.vault(create=False) as vault:
        report = vault.audit.verify(checkpoint_file=checkpoint)
    if report.problems:
        raise IntegrityError(
            "the audit log is not intact:\n" + "\n".join(report.problems), hint=_NOT_INTACT_HINT
        )
    if not app.settings.witness_file.exists() and checkpoint is None:
        app.output.warn(
            f"there is no witness file at {app.settings.witness_file}: "
            "a log cut short, or an older database put back, would not be noticed"
        )
    app.output.result(
        {"records": report.records, "checkpoints": report.checkpoints, "head": report.head},
        f"the audit log is intact: {report.records} records, {report.checkpoints} checkpoints",
    )


_NOT_INTACT_HINT = (
    "keep a copy of the vault as it is now, then find out who could write to its files; see docs/security.md"
)


@audit.command("export", cls=Command)
@pass_app
def export(app: App) -> None:
    """Print every record as JSON Lines, oldest first."""
    with app.vault(create=False) as vault:
        for record in vault.audit.export():
            click.echo(printable_json(json.dumps(record.data(), ensure_ascii=False)))
