"""`gusset key ...`: the vault's keys."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gusset.cli.app import App, Command, Group, check_exclusive, pass_app
from gusset.cli.prompts import prompt_hidden
from gusset.errors import UsageError
from gusset.secrets.value import SecretValue

if TYPE_CHECKING:
    from gusset.vault import Vault
    from gusset.vault.services.root_key_rotation import RootKeyResult

_ALL = ("kek", "audit", "state", "signing", "idempotency")  # the kinds of `gusset.vault.crypto.keyring`


@click.group(name="key", cls=Group)
def key() -> None:
    """Rotate and list the vault's keys."""


@key.command("rotate", cls=Command)
@click.option("--kek", is_flag=True, help="The key-encryption key: all data keys are rewrapped. The default.")
@click.option("--audit", is_flag=True, help="The key that authenticates audit records.")
@click.option("--state", is_flag=True, help="The key that authenticates rows of the database.")
@click.option("--signing", is_flag=True, help="The key that signs checkpoints of the audit log.")
@click.option("--idempotency", is_flag=True, help="The key that recognises repeated requests.")
@click.option("--root", is_flag=True, help="The root key; keep a copy of its file apart from backups.")
@click.option("--all", "all_", is_flag=True, help="All of these, the root key last.")
@click.option(
    "--finish",
    is_flag=True,
    help="With --root: drop the old root key, after the new one was copied to each machine.",
)
@click.option(
    "--cancel", is_flag=True, help="With --root: drop the new root key, such as one that was lost, instead."
)
@pass_app
def rotate(app: App, /, root: bool, all_: bool, finish: bool, cancel: bool, **flags: bool) -> None:
    """Replace keys of the vault, while others use it."""
    kinds = [kind for kind in _ALL if all_ or flags[kind]]
    if (finish or cancel) and (kinds or not root or (finish and cancel)):
        raise UsageError("--finish and --cancel go with --root alone")
    with app.vault(create=False) as vault:
        if kinds or not root:
            _rotate(app, vault, kinds or ["kek"], is_last=not (root or all_))
        if root or all_:
            rotation = vault.root_key_rotation
            act = rotation.finish if finish else rotation.cancel if cancel else rotation.rotate
            _show_root(app, rotation.source_name, act(actor=app.actor))


def _rotate(app: App, vault: Vault, kinds: list[str], *, is_last: bool) -> None:
    from gusset.vault.crypto.keyring import KEK, KINDS

    rotated = vault.key_rotation.rotate(kinds, actor=app.actor)
    names = [f"{KINDS[kind]} {number}" for kind, number in rotated.newest.items()]
    text = f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} current"
    if KEK in kinds:
        text += f"; {rotated.rewrapped} versions were rewrapped"
    if is_last:
        app.output.result({**rotated.newest, "rewrapped": rotated.rewrapped}, text)
    else:
        app.output.note(text)


def _show_root(app: App, name: str, done: RootKeyResult) -> None:
    if done.pending_file is not None:
        text = (
            f"a new root key is in {done.pending_file}, and opens the vault, as the old one still does.\n"
            f"Put it where each machine has its root key (on this one: {name}),\n"
            "then run `gusset key rotate --root --finish`"
        )
    elif done.was_interrupted:
        text = f"an earlier rotation is finished: the root key of {name} alone opens the vault"
    else:
        text = f"the root key is in {name}; no other one opens the vault"
    data = {
        "root_key": done.root_key_id,
        "root_key_file": name,
        "pending_file": None if done.pending_file is None else str(done.pending_file),
        "was_interrupted": done.was_interrupted,
    }
    app.output.result(data, text)


@key.command("status", cls=Command)
@pass_app
def status(app: App) -> None:
    """List the keys by kind and number, never the keys themselves."""
    with app.vault(create=False) as vault:
        keys = [each.data() for each in vault.key_rotation.infos()]
        unfinished, managers = vault.root_key_rotation.unfinished, vault.managers.alive()
    if app.output.json:
        rows = [
            {
                "host": each.host,
                "root_key": each.root_key_id,
                "checkpoint": each.checkpoint,
                "seen_at": each.seen_at,
            }
            for each in managers
        ]
        app.output.result({"keys": keys, "unfinished": unfinished, "managers": rows})
        return
    columns = {"kind": "KEY", "number": "NUMBER", "first": "FIRST RECORD", "newest": "NEWEST"}
    app.output.table("keys", keys, columns, empty="there is no key")
    for each in managers:
        witnessed = f"its witness file goes up to record {each.checkpoint}"
        app.output.note(f"the manager on {each.host} uses the root key {each.root_key_id}; {witnessed}")
    if unfinished:
        app.output.warn(unfinished)


@key.command("passphrase", cls=Command)
@click.option("--remove", is_flag=True, help="Protect the file by its mode only.")
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read the new passphrase from this file, which others may not read.",
)
@pass_app
def passphrase(app: App, remove: bool, file: Path | None) -> None:
    """Protect the root key's file with a passphrase, or with a new one."""
    check_exclusive(remove=remove, file=file)
    app.hold_values()
    with app.vault(create=False) as vault:
        new = None if remove else _new_passphrase(app, file)
        vault.root_key_rotation.protect(new)
        name = vault.root_key_rotation.source_name
    text = "is no longer protected by a passphrase" if remove else "is protected by the new passphrase"
    app.output.result({"root_key_file": name, "protected": not remove}, f"{name} {text}")


def _new_passphrase(app: App, file: Path | None) -> SecretValue:
    from gusset.vault.crypto.passwords import check_password
    from gusset.vault.crypto.root_key_sources import read_passphrase

    if file is not None:
        new = read_passphrase(file)
    elif sys.stdin.isatty():
        hint = "give the new passphrase with --file FILE"
        new = SecretValue(prompt_hidden("New passphrase", hint=hint, confirmation_prompt=True))
    else:
        raise UsageError("there is no terminal to ask at", hint="give the new passphrase with --file FILE")
    app.held.append(new)
    check_password(new)
    return new
