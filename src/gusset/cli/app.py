"""What commands share: settings, output, the vault or manager, and the values to mask."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gusset.cli.output import Output
from gusset.cli.prompts import prompt_hidden
from gusset.errors import UsageError
from gusset.secrets.value import SecretValue

if TYPE_CHECKING:
    from gusset.client.manager_client import ManagerClient
    from gusset.client.remote_secrets import RemoteSecrets
    from gusset.settings import Settings
    from gusset.vault import Vault
    from gusset.vault.services.secret_reader import SecretReader
    from gusset.vault.services.secret_writer import SecretWriter

F = TypeVar("F", bound=Callable[..., Any])


def check_exclusive(**options: object) -> None:
    """Check that at most one of these options is given. `secrets_dir` is the value of `--secrets-dir`.

    Raises:
        UsageError: there are more.
    """
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} cannot be used together", hint="leave one of them out")


class App:
    """Created once by `main` and passed to each command.

    `held` are the secret values that this process has had. They are masked in
    the traceback of a bug.
    """

    def __init__(self) -> None:
        self.output = Output()
        self.held: list[SecretValue] = []

    @cached_property
    def settings(self) -> Settings:
        from gusset.settings import Settings

        return Settings.load(os.environ)

    @cached_property
    def actor(self) -> str:
        """The actor of audit records: the account's name."""
        from gusset.portable import account_name

        return account_name()

    def use_identity_token(self, file: Path) -> None:
        """Read secrets of a manager with the JSON Web Token in this file."""
        self.settings = replace(self.settings, identity_token_file=file.absolute())

    def hold_values(self) -> None:
        """Keep other processes from reading this one's memory. Call this before it gets a value."""
        from gusset.portable import HAS_POSIX_ACCOUNTS

        if HAS_POSIX_ACCOUNTS:
            from gusset.runtime.process import harden

            harden()

    @contextmanager
    def vault(self, **options: Any) -> Iterator[Vault]:
        """The embedded vault, open within the context; see `open_vault` for the options."""
        from gusset.vault import open_vault

        with open_vault(self.settings, ask_passphrase=self._ask_passphrase, **options) as vault:
            yield vault

    def _ask_passphrase(self, name: str) -> SecretValue | None:
        """The passphrase of the root key's file `name`; None without a terminal."""
        if not sys.stdin.isatty():
            return None
        self.hold_values()
        hint = "set GUSSET_ROOT_KEY_PASSPHRASE_FILE to a file with the passphrase"
        passphrase = SecretValue(prompt_hidden(f"Passphrase of {name}", hint=hint))
        self.held.append(passphrase)
        return passphrase

    @contextmanager
    def manager(self, url: str | None = None) -> Iterator[ManagerClient]:
        """A client of the manager at `url`, or of the manager of `gusset login`.

        Raises:
            UsageError: there is neither.
        """
        from gusset.client.manager_client import ManagerClient

        url = url or self.settings.manager
        if url is None:
            raise UsageError("this command needs a manager", hint="log in with `gusset login URL`")
        self.hold_values()
        key = self.settings.key_for(url)
        self.held.append(key)
        client = ManagerClient(
            url, key, insecure_http=self.settings.insecure_http, ca_certificates=self.settings.manager_ca
        )
        try:
            yield client
        finally:
            client.close()

    @contextmanager
    def secret_reader(self) -> Iterator[SecretReader | RemoteSecrets]:
        """Reads secrets' metadata from the manager after `gusset login`, else from the embedded vault."""
        if self.settings.manager is None:
            with self.vault() as vault:
                yield vault.secrets.reader
        else:
            with self._remote_secrets() as secrets:
                yield secrets

    @contextmanager
    def secret_writer(self) -> Iterator[SecretWriter | RemoteSecrets]:
        """Changes secrets on the manager after `gusset login`, else in the embedded vault."""
        if self.settings.manager is None:
            with self.vault() as vault:
                yield vault.secrets.writer
        else:
            with self._remote_secrets() as secrets:
                yield secrets

    @contextmanager
    def _remote_secrets(self) -> Iterator[RemoteSecrets]:
        from gusset.client.remote_secrets import RemoteSecrets

        with self.manager() as client:
            yield RemoteSecrets(client)


pass_app = click.make_pass_decorator(App)


class Command(click.Command):
    """A command whose errors never repeat a surplus argument, which may be a secret value.

    `surplus_hint` is the hint of that error.
    """

    surplus_hint: str | None = None

    def __init__(self, *args: Any, surplus_hint: str | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("params", []).append(output_option())
        super().__init__(*args, **kwargs)
        self.allow_extra_args = True
        self.surplus_hint = surplus_hint

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        if ctx.args and not ctx.resilient_parsing:
            raise SurplusArgument(self.surplus_hint, ctx=ctx)
        return rest


class Group(click.Group):
    """A group whose errors never repeat an unknown command, which may be a secret value."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], known, 1)
            raise click.UsageError(
                "no such command" + (f"; did you mean {near[0]}?" if near else ""), ctx=ctx
            )
        return super().resolve_command(ctx, args)


class SurplusArgument(click.UsageError):
    """More arguments than the command takes."""

    def __init__(self, hint: str | None, ctx: click.Context) -> None:
        super().__init__("the command was given more arguments than it takes", ctx=ctx)
        self.hint = hint


def identity_token_option(command: F) -> F:
    """The option of commands that read a deployment's secrets; it beats the setting."""

    def use(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
        if value is not None:
            ctx.ensure_object(App).use_identity_token(value)

    return click.option(
        "--identity-token-file",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        expose_value=False,
        callback=use,
        help="Exchange the JSON Web Token in this file at the manager, instead of using a key or token.",
    )(command)


def output_option() -> click.Option:
    def set_format(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
        if value:
            ctx.ensure_object(App).output.json = value == "json"

    return click.Option(
        ["--output"],
        type=click.Choice(["text", "json"]),
        expose_value=False,
        callback=set_format,
        is_eager=True,
        help="Output format; with json, standard output holds one JSON document.",
    )
