"""`gusset manager`: runs the server for people and deployments; `init` sets it up."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gusset.addresses import is_loopback
from gusset.backoff import Backoff
from gusset.cli.app import App, Command, Group, output_option, pass_app
from gusset.cli.needs_linux import docker_run, mount, publish, require_linux, run_in_container
from gusset.cli.prompts import prompt_hidden
from gusset.errors import InvalidValue, Unreachable
from gusset.secrets.value import SecretValue

if TYPE_CHECKING:
    from gusset.manager.auth.bootstrap_link import BootstrapLink
    from gusset.vault.wiring import Vault

log = logging.getLogger("gusset.manager")

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(name="manager", cls=Group, invoke_without_command=True, params=[output_option()])
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8700,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--tls-certificate", "certificate", type=_FILE, help="Serve HTTPS with this certificate chain (PEM)."
)
@click.option("--tls-key", "key", type=_FILE, help="Private key of the certificate (PEM).")
@click.option(
    "--trusted-proxy",
    metavar="ADDRESS",
    help="Address of a proxy that terminates TLS and sets X-Forwarded-For and X-Forwarded-Proto.",
)
@click.option(
    "--insecure-http", is_flag=True, help="Allow plain HTTP on the network; others can then read values."
)
@click.option(
    "--key-rate",
    type=click.IntRange(0, 1_000_000),
    default=2000,
    show_default=True,
    help="Requests a second that one API key or token may make; 0 for any number.",
)
@click.option(
    "--root-key-command",
    metavar="COMMAND",
    help="Get the root key from the output of this command, which is run without a shell.",
)
@click.option(
    "--database", metavar="URL", help="URL of the SQLite file or PostgreSQL database, without a password."
)
@click.pass_context
def manager(
    ctx: click.Context,
    database: str | None,
    host: str,
    port: int,
    certificate: Path | None,
    key: Path | None,
    trusted_proxy: str | None,
    insecure_http: bool,
    key_rate: int,
    root_key_command: str | None,
) -> None:
    """Run the secret manager.

    Runs until Ctrl-C or SIGTERM. Set it up first with `gusset manager init`, or
    open the link that it prints while it is not set up.
    """
    app = ctx.ensure_object(App)
    if root_key_command is not None:
        app.settings = app.settings.with_root_key_command(root_key_command)
    if database is not None:
        from gusset.vault.storage.postgres_url import refuse_password

        refuse_password(database)
        app.settings = replace(app.settings, database=database)
    if ctx.invoked_subcommand is not None:
        return
    require_linux(
        "manager",
        lambda: _in_container(host, port, certificate, key, trusted_proxy, insecure_http=insecure_http),
    )
    app.hold_values()
    from gusset.manager.auth.bootstrap_link import BootstrapLink
    from gusset.manager.server import Listening, run
    from gusset.runtime.logs import log_to_stderr

    listening = Listening(
        host=host,
        port=port,
        certificate=certificate,
        key=key,
        trusted_proxy=trusted_proxy,
        insecure_http=insecure_http,
    )
    listening.check()
    log_to_stderr(readable=sys.stderr.isatty())

    with _open_vault(app) as vault:
        if warning := vault.database_warning():
            log.warning("%s", warning)
        link = None if vault.people.has_any() else BootstrapLink()
        run(
            vault,
            listening,
            bootstrap_link=link,
            key_rate=key_rate,
            announce=lambda address: _print_address(
                app, address, link, on_all_addresses=listening.on_all_addresses
            ),
        )


@contextmanager
def _open_vault(app: App) -> Iterator[Vault]:
    """The vault; waits for a database server that does not respond yet."""
    from gusset.vault.commit.loop_writer import make_server_writer
    from gusset.vault.storage.postgres_url import is_postgres

    backoff = Backoff(0.5, longest=4.0)
    with ExitStack() as stack:
        while True:
            try:
                vault = stack.enter_context(app.vault(make_writer=make_server_writer))
                break
            except Unreachable as error:
                if not is_postgres(app.settings.database):
                    raise
                log.warning("Waiting for the database: %s (%s)", error.message, error.hint)
            time.sleep(backoff.next_delay())
        yield vault


def _in_container(
    host: str,
    port: int,
    certificate: Path | None,
    key: Path | None,
    trusted_proxy: str | None,
    *,
    insecure_http: bool,
) -> str:
    """The hint to run the manager in a container, with the same options."""
    options = publish(host, port, 8700)
    arguments = ["manager", "--host", "0.0.0.0"]  # noqa: S104  # inside the container
    for file, option, target in (
        (certificate, "--tls-certificate", "/tls/certificate.pem"),
        (key, "--tls-key", "/tls/key.pem"),
    ):
        if file is not None:
            options += mount(file, target)
            arguments += [option, target]
    if trusted_proxy is not None:
        arguments += ["--trusted-proxy", trusted_proxy]
    # Published on a loopback address, plain HTTP does not leave the machine.
    elif insecure_http or (certificate is None and is_loopback(host)):
        arguments += ["--insecure-http"]
    return run_in_container(docker_run(options, *arguments))


def _print_address(app: App, address: str, link: BootstrapLink | None, *, on_all_addresses: bool) -> None:
    """Print the address, and the link that sets up a manager without accounts."""
    token = None if link is None else link.token
    if app.output.json:
        app.output.result({"address": address, "setup": f"{address}/setup/{token}" if token else None})
        sys.stdout.flush()
        return
    app.output.note(f"the manager is ready at {address}/settings/secrets")
    if on_all_addresses:
        app.output.note("it listens on all addresses of this machine")
    if token:
        app.output.note("not set up yet; open this link, which works once, to create the first administrator")
        app.output.note(f"  {address}/setup/{token}")


@manager.command("init", cls=Command)
@click.option("--email", required=True, help="E-mail address of the first administrator.")
@pass_app
def init(app: App, email: str) -> None:
    """Create the first administrator and print an API key.

    At a terminal, gusset prompts for the password; otherwise standard input is
    the password, without one final newline.
    """
    app.hold_values()
    from gusset.vault.services.person import check_email

    check_email(email)
    password = _password()
    app.held.append(password)
    with app.vault() as vault:
        person, key = vault.people.create_first(email, password, actor=app.actor)
        root_key = vault.root_key_rotation.source_name
    app.held.append(key)
    text = key.reveal().decode()
    app.output.note(f"{person.email} is the first administrator.")
    app.output.note(f"Keep a copy of {root_key} apart from backups of the database:")
    app.output.note("without it, nobody can open the vault. This API key is shown only once:")
    app.output.result({"api_key": text, "email": person.email}, text)


@manager.command("migrate", cls=Command)
@pass_app
def migrate(app: App) -> None:
    """Bring the database to the schema of this gusset, and say which older managers can keep running.

    Managers do that by themselves when they start. Where their role does not own the
    tables, execute this as the role that does, then the output of `gusset manager grants`.
    """
    with app.vault(create=False) as vault:
        revision, oldest = vault.schema()
    text = f"The schema is {revision}. Managers of schema {oldest} and newer can keep running."
    app.output.result({"schema": revision, "oldest_compatible": oldest}, text)


@manager.command("grants", cls=Command)
@click.argument("role")
@click.option("--schema", default="public", show_default=True, help="The schema of the vault's tables.")
@pass_app
def grants(app: App, role: str, schema: str) -> None:
    """Print the SQL that gives ROLE what a manager needs on PostgreSQL.

    Execute it as the owner of the tables, after `gusset manager init` and after each
    upgrade. ROLE cannot change or remove audit records then.
    """
    from gusset.vault.storage.postgres_roles import grants as statements

    found = statements(role, schema)
    app.output.result({"statements": found}, "\n".join(f"{statement};" for statement in found))


def _password() -> SecretValue:
    if sys.stdin.isatty():
        return SecretValue(
            prompt_hidden("Password", hint="pass the password on standard input", confirmation_prompt=True)
        )
    data = sys.stdin.buffer.read(65_536).removesuffix(b"\n")
    if not data:
        raise InvalidValue(
            "standard input is empty, nothing was created", hint="pass the password on standard input"
        )
    return SecretValue(data)
