"""`gusset login` and `logout`: choose the manager that this account's commands use."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import os
import sys

import click

from gusset.cli.app import App, Command, pass_app
from gusset.cli.prompts import prompt_hidden
from gusset.errors import HostError, InvalidValue, UsageError
from gusset.secrets.value import SecretValue


@click.command(cls=Command)
@click.argument("url")
@click.option(
    "--insecure-http",
    is_flag=True,
    help="Allow plain HTTP to another machine; anyone on the network can read the values.",
)
@pass_app
def login(app: App, url: str, insecure_http: bool) -> None:
    """Use the manager at URL for all further commands, with your API key.

    If several managers share a vault, give all their addresses, separated by commas.

    At a terminal, gusset prompts for the key; otherwise standard input is the key.
    It is kept in the settings file, which only your account can read.
    """
    from gusset.client.manager_client import ManagerClient, checked_urls
    from gusset.settings import save_login, settings_file

    url = ",".join(checked_urls(url, insecure_http=insecure_http))
    app.hold_values()
    key = _key()
    app.held.append(key)
    client = ManagerClient(url, key, insecure_http=insecure_http, ca_certificates=app.settings.manager_ca)
    try:
        me = client.request("GET", "/v1/users/me")
    finally:
        client.close()
    path = settings_file(os.environ)
    try:
        save_login(path, url, key, insecure_http=insecure_http)
    except OSError as error:
        raise HostError(f"{path} cannot be written: {error.strerror}") from None
    app.output.result({"manager": url, "email": me["email"]}, f"logged in to {url} as {me['email']}")
    app.output.note(f"the key is stored in {path}; `gusset logout` removes it")


def _key() -> SecretValue:
    from gusset.settings import is_key

    if sys.stdin.isatty():
        data = prompt_hidden("API key", hint="copy the key again: it has only ASCII characters").strip()
    else:
        data = sys.stdin.buffer.read(4096).strip()
    if not data:
        raise InvalidValue("standard input has no API key", hint="create one on the page Settings > API keys")
    if not is_key(data):
        raise UsageError("this is not an API key")
    return SecretValue(data)


@click.command(cls=Command)
@pass_app
def logout(app: App) -> None:
    """Remove the manager and its key from the settings; commands use the embedded vault again."""
    from gusset.settings import forget_login, settings_file

    path = settings_file(os.environ)
    try:
        forget_login(path)
    except OSError as error:
        raise HostError(f"{path} cannot be written: {error.strerror}") from None
    app.output.result({"manager": None}, "logged out; the key still works until it is revoked on the manager")
