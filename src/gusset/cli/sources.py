"""Joins the places that a command's secrets come from, in the order that the documents give."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from gusset.cli.account import Account
from gusset.cli.app import App
from gusset.secrets.sources.chain import ChainSource
from gusset.secrets.sources.environment import EnvironmentSource
from gusset.secrets.sources.folder import FolderSource
from gusset.secrets.sources.source import SecretSource

MOUNTED = Path("/secrets")


@contextmanager
def open_source(
    app: App,
    *,
    secrets_dir: Path | None,
    reader: str,
    names: Collection[str],
    account: Account | None,
) -> Iterator[SecretSource]:
    """The folder or the manager that was named, else the manager one is logged in to, else the embedded
    vault; then `/secrets`; then TRUSS_SECRET_x.

    `reader` is who reads `names`, as the audit log has it: a deployment's name, or a
    command. Only a secret that one place lacks is looked for in the next.
    Without names, nothing is opened.
    """
    if not names:
        yield ChainSource([])
        return
    after: list[SecretSource] = [FolderSource(MOUNTED, must_exist=False), EnvironmentSource(os.environ)]
    if secrets_dir is not None:
        yield ChainSource([FolderSource(secrets_dir), *after])
        return
    if account is not None:
        with _from_manager(app, account, reader, names) as source:
            yield ChainSource([source, *after])
        return
    with app.vault() as vault:
        yield ChainSource([vault.source(actor=app.actor, deployment=reader), *after])


@contextmanager
def _from_manager(app: App, account: Account, reader: str, names: Collection[str]) -> Iterator[SecretSource]:
    from gusset.client.manager_client import ManagerClient
    from gusset.client.manager_source import ManagerSource

    app.hold_values()
    access = account.deployment_token(reader, names)
    app.held.append(access.token)
    client = ManagerClient(account.url, access.token, insecure_http=app.settings.insecure_http)
    source = ManagerSource(client, registered=frozenset(names) if access.registered else None)
    try:
        yield source
    finally:
        source.close()
