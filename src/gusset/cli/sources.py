"""Opens the sources of a command's secrets, in the documented order."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gusset.cli.account import Account
from gusset.cli.app import App
from gusset.errors import Denied, SecretsMissing
from gusset.secrets.sources.chain import ChainSource
from gusset.secrets.sources.environment import EnvironmentSource
from gusset.secrets.sources.folder import FolderSource
from gusset.secrets.sources.source import Delivered, SecretSource
from gusset.secrets.value import SecretValue

if TYPE_CHECKING:
    from gusset.client.manager_source import ManagerSource

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
    """A chain of sources: each is searched for the secrets that the previous ones lack.

    The first is `secrets_dir` if given, else the manager of `account`, else the
    embedded vault. Then come the folder /secrets and the variables TRUSS_SECRET_x.

    `reader` reads `names`, and is recorded in the audit log: a deployment's name,
    or a command. Without names, nothing is opened, and nothing can be read later.
    """
    if not names:
        yield _UnopenedSource()
        return
    others = further_sources()
    if secrets_dir is not None:
        yield ChainSource([FolderSource(secrets_dir), *others])
        return
    if account is not None:
        with manager_source(app, account, reader, names) as source:
            yield ChainSource([source, *others])
        return
    with app.vault() as vault:
        yield ChainSource([vault.source(actor=app.actor, deployment=reader), *others])


class _UnopenedSource:
    """The source of a deployment that declared no secret when it started."""

    last_error = None

    def read(self, names: Collection[str]) -> Mapping[str, Delivered]:
        """Nothing.

        Raises:
            Denied: it is read for a name: the deployment's config declares one now.
        """
        if not names:
            return {}
        raise Denied(
            f"{', '.join(sorted(names))} was not declared when this process started; "
            "restart `gusset serve` to read it"
        )

    def watch(self, names: Collection[str], stop: threading.Event) -> Iterator[None]:
        """Never yields."""
        stop.wait()
        yield from ()


def further_sources() -> list[SecretSource]:
    """The sources that are searched last, whatever the options: /secrets and TRUSS_SECRET_x."""
    return [FolderSource(MOUNTED, must_exist=False), EnvironmentSource(os.environ)]


@contextmanager
def manager_source(
    app: App, account: Account, reader: str, names: Collection[str]
) -> Iterator[ManagerSource]:
    """The manager of `account` as a source of `names` alone, for the deployment `reader`.

    Raises:
        NotSignedIn, Denied: there is no key, or the manager refuses it.
        Unreachable: the manager does not respond.
    """
    from gusset.client.exchanged_token import ExchangedToken
    from gusset.client.manager_client import ManagerClient
    from gusset.client.manager_source import ManagerSource

    app.hold_values()
    key: SecretValue | ExchangedToken
    registered = None
    if account.identity_token_file is not None:
        key = ExchangedToken(account.identity_token_file, reader)
    else:
        access = account.deployment_token(reader, names)
        key, registered = access.token, frozenset(names) if access.registered else None
        app.held.append(access.token)
    client = ManagerClient(
        account.url, key, insecure_http=app.settings.insecure_http, ca_certificates=app.settings.manager_ca
    )
    source = ManagerSource(client, registered=registered)
    try:
        yield source
    finally:
        source.close()


def all_names(app: App, *, secrets_dir: Path | None, account: Account | None) -> list[str]:
    """The names of all secrets in the first source of `open_source`, as far as the caller may read them.

    Raises:
        SecretsMissing: there are none.
        Denied, Unreachable: the source refuses, or cannot be reached.
    """
    if secrets_dir is not None:
        names, source = FolderSource(secrets_dir).names(), str(secrets_dir)
    elif account is not None:
        names, source = account.secret_names(), f"the manager at {account.url}"
    else:
        with app.vault() as vault:
            names = [info.name for info in vault.secrets.reader.list() if info.version is not None]
        source = "the vault"
    if not names:
        raise SecretsMissing(
            f"{source} has no secrets that you may read", names=(), hint="add one: gusset secret set NAME"
        )
    return names


def read_values(
    app: App, names: set[str], secrets_dir: Path | None, *, reader: str
) -> dict[str, SecretValue]:
    """The values of these secrets, for a command that needs them once.

    Raises:
        SecretsMissing: it names all that have no value.
        Denied, Unreachable: as raised by a source.
    """
    account = Account.start(app, secrets_dir=secrets_dir)
    with open_source(app, secrets_dir=secrets_dir, reader=reader, names=names, account=account) as source:
        if account is not None:
            account.close()
        found = read_all(source, names)
    return {name: delivered.value for name, delivered in found.items()}


def read_all(
    source: SecretSource, names: Collection[str], *, allow_missing: Collection[str] = ()
) -> Mapping[str, Delivered]:
    """The values of these secrets.

    Raises:
        SecretsMissing: it names all that have no value, but for those of `allow_missing`.
        Denied, Unreachable: as raised by the source.
    """
    found = source.read(sorted(names))
    missing = sorted(set(names) - found.keys() - set(allow_missing))
    if missing:
        raise SecretsMissing(
            f"no value for {', '.join(missing)}",
            names=missing,
            hint="\n".join(f"gusset secret set {name}" for name in missing),
        )
    return found
