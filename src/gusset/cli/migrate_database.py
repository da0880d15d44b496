"""`gusset migrate-database`: moves the vault to another database."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import click

from gusset.cli.app import App, Command, pass_app


@click.command("migrate-database", cls=Command)
@click.option("--from", "source", required=True, metavar="URL", help="The database that has the vault.")
@click.option("--to", "target", required=True, metavar="URL", help="An empty database.")
@pass_app
def migrate_database(app: App, source: str, target: str) -> None:
    """Copy the vault to an empty database, SQLite or PostgreSQL, and verify both.

    Stop all managers first. The vault that it copies from stays as it is. After a
    failure, run it again: the target has the whole vault or none.
    """
    from gusset.vault.database_move import move_vault
    from gusset.vault.storage.postgres_url import refuse_password

    for url in (source, target):
        refuse_password(url)
    move = move_vault(app.settings, source, target)
    witness = str(app.settings.witness_file)
    app.output.result(
        {
            "rows": move.rows,
            "records": move.records,
            "head": move.head,
            "root_key": move.root_key,
            "witness_file": witness,
        },
        f"the vault is in {move.target}: {move.rows} rows, {move.records} audit records, verified",
    )
    app.output.note(f"Point GUSSET_DATABASE to {target}, also where managers start.")
    app.output.note(f"It needs the same root key ({move.root_key}) and witness file ({witness}).")
    app.output.note(f"Nothing may use {move.source} any more: changes there would be lost.")
