"""`gusset key ...`: the vault's keys."""

from __future__ import annotations

import click

from gusset.cli.app import App, Command, Group, pass_app


@click.group(name="key", cls=Group)
def key() -> None:
    """Rotate the vault's keys."""


@key.command("rotate", cls=Command)
@click.option(
    "--root", is_flag=True, help="Replace the root key instead; keep a copy of its file apart from backups."
)
@pass_app
def rotate(app: App, root: bool) -> None:
    """Create a new key-encryption key and rewrap all data keys with it, while others use the vault."""
    with app.vault(create=False) as vault:
        if root:
            vault.key_rotation.rotate_root(actor=app.actor)
            path = str(app.settings.root_key_file)
            app.output.result(
                {"root_key_file": path},
                f"the new root key is in {path}; the old one no longer opens the vault",
            )
        else:
            rotated = vault.key_rotation.rotate(actor=app.actor)
            app.output.result(
                {"kek": rotated.kek, "rewrapped": rotated.rewrapped},
                f"key {rotated.kek} is current; {rotated.rewrapped} versions were rewrapped",
            )
