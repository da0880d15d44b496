"""`gusset exec -- COMMAND`: any command, with chosen secrets as files in memory and its output masked."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gusset.cli.app import App, Command, check_exclusive, identity_token_option, pass_app
from gusset.cli.needs_linux import docker_run, require_linux, run_in_container, source_in_container
from gusset.errors import UsageError
from gusset.secrets.name import check_name

if TYPE_CHECKING:
    from gusset.cli.command_process import Command as Process
    from gusset.cli.command_run import OnChange
    from gusset.cli.provided_secrets import ProvidedSecrets
    from gusset.secrets.masking import Masker
    from gusset.secrets.sources.source import SecretSource


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """What a person chose: which secrets the command gets as files and as variables, and from where."""

    names: Sequence[str]
    variables: Mapping[str, str]  # variable -> name of the secret
    all_files: bool
    secrets_dir: Path | None
    watch: str | None


@click.command(
    name="exec",
    cls=Command,
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
    options_metavar="[OPTIONS] --",
)
@click.argument("command", nargs=-1, required=True, metavar="COMMAND...")
@click.option(
    "--secret", "names", multiple=True, metavar="NAME", help="Provide this secret as a file (repeatable)."
)
@click.option(
    "--all", "all_files", is_flag=True, help="Provide every secret that you may read, each as a file."
)
@click.option(
    "--env",
    "variables",
    multiple=True,
    metavar="[VARIABLE=]NAME",
    help="Provide this secret as an environment variable (repeatable). Your processes can read it there.",
)
@click.option(
    "--secrets-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Read the secrets from this folder.",
)
@click.option(
    "--watch",
    metavar="restart|SIGNAL",
    help="Follow changes: replace the files, then restart COMMAND, or send it a signal such as HUP.",
)
@identity_token_option
@pass_app
def exec_(
    app: App,
    command: Sequence[str],
    names: Sequence[str],
    all_files: bool,
    variables: Sequence[str],
    secrets_dir: Path | None,
    watch: str | None,
) -> int:
    """Run COMMAND with chosen secrets.

    GUSSET_SECRETS_DIR names a folder in memory with a file for each secret. Only
    you can read it, and it is removed when COMMAND ends. Values are masked in what
    COMMAND prints; at a terminal, COMMAND has one too. The exit status is that of
    COMMAND.

    \b
      gusset exec --secret db_password -- sh -c 'psql "password=$(cat $GUSSET_SECRETS_DIR/db_password) ..."'
      gusset exec --env HF_TOKEN=hf_access_token -- huggingface-cli whoami
      gusset exec --secret tls_key --watch HUP -- ./server
    """
    wanted = _variables(variables)
    for name in names:
        check_name(name)
    check_exclusive(all=all_files, secret=names)
    if not names and not wanted and not all_files:
        raise UsageError(
            "no secret is chosen",
            hint="choose each with --secret NAME or --env VARIABLE=NAME, or --all of them",
        )
    choice = _Choice(names=names, variables=wanted, all_files=all_files, secrets_dir=secrets_dir, watch=watch)
    require_linux("exec", lambda: _exec_in_container(app, choice))
    on_change = None if watch is None else _on_change(watch, wanted)
    app.hold_values()
    return _exec(app, command, choice, on_change)


def _variables(given: Sequence[str]) -> dict[str, str]:
    """Maps variables to names of secrets; NAME alone is a variable of the same name."""
    wanted = {}
    for text in given:
        variable, equals, name = text.rpartition("=")
        if equals and (not variable or "=" in variable):
            raise UsageError(
                "--env takes VARIABLE=NAME: the variable must have a name, without '='",
                hint="write the variable, one '=' and the name of the secret, as in HF_TOKEN=hf_access_token",
            )
        wanted[variable or name] = check_name(name)
    return wanted


def _on_change(watch: str, variables: Mapping[str, str]) -> OnChange:
    """What --watch asks for."""
    from gusset.cli.command_run import RESTART, signal_named

    if watch.lower() == RESTART:
        return RESTART
    number = signal_named(watch)
    if number is None:
        raise UsageError(
            "--watch takes `restart` or a signal that a process can handle",
            hint="such as --watch restart, --watch HUP or --watch USR1",
        )
    if variables:
        raise UsageError(
            f"--watch {watch} and --env cannot be used together: a running process keeps its environment",
            hint="use --watch restart, or provide the secrets as files with --secret NAME",
        )
    return number


def _exec_in_container(app: App, choice: _Choice) -> str:
    """The hint to run a command in a container. It does not repeat the command, which may hold a value."""
    source = source_in_container(app, choice.secrets_dir)
    chosen = [word for name in choice.names for word in ("--secret", name)]
    chosen += ["--all"] if choice.all_files else []
    chosen += [
        word for variable, name in choice.variables.items() for word in ("--env", f"{variable}={name}")
    ]
    chosen += ["--watch", choice.watch] if choice.watch is not None else []
    here = ["-v", f"{Path.cwd()}:/work", "-w", "/work"]
    command = docker_run([*here, *source.options], "exec", *source.arguments, *chosen, "--", "COMMAND")
    return run_in_container(command, source.before)


def _exec(app: App, words: Sequence[str], choice: _Choice, on_change: OnChange | None) -> int:
    """Fork the processes that must not have values, read the values, and run the command."""
    from gusset.cli.account import Account
    from gusset.cli.command_run import RESTART, open_command
    from gusset.cli.provided_secrets import ProvidedSecrets
    from gusset.cli.sources import all_names, open_source, read_all
    from gusset.containers.secrets.memory_folder import SecretsFolder
    from gusset.secrets.masking import Masker

    masker = Masker()
    with ExitStack() as stack:
        account = Account.start(app, secrets_dir=choice.secrets_dir)
        if account is not None:
            stack.callback(account.close)
        process = stack.enter_context(open_command(words, masker))
        folder = stack.enter_context(SecretsFolder.create())
        every = all_names(app, secrets_dir=choice.secrets_dir, account=account) if choice.all_files else []
        secrets = ProvidedSecrets(
            folder,
            masker,
            files=every or choice.names,
            variables=choice.variables,
            held=app.held,
            restarts=on_change == RESTART,
        )
        with ExitStack() as reading:
            source = reading.enter_context(
                open_source(
                    app, secrets_dir=choice.secrets_dir, reader="exec", names=secrets.names, account=account
                )
            )
            if account is not None:
                account.close()
            values = read_all(source, secrets.names, allow_missing=set(every) - {*choice.variables.values()})
            secrets.provide(values)
            if on_change is None:
                reading.close()
            status = _run(process, secrets, on_change, source, masker)
    return status if status >= 0 else 128 - status


def _run(
    process: Process,
    secrets: ProvidedSecrets,
    on_change: OnChange | None,
    source: SecretSource,
    masker: Masker,
) -> int:
    """Run the command to its end; its exit status, negative for a signal."""
    from gusset.cli.command_run import SILENCE, CommandRun, at_terminal
    from gusset.cli.signal_forwarding import ReceivedSignals
    from gusset.runtime.logs import log_to_stderr

    if on_change is not None:
        log_to_stderr(readable=True, mask=masker.mask_text, line_end="\r\n" if at_terminal() else "\n")
    following = secrets.following(source) if on_change is not None else nullcontext()
    with ReceivedSignals.open() as signals, following:  # signals first: threads inherit the blocked ones
        status = CommandRun(process, secrets, on_change).run(signals)
    process.drain(SILENCE)  # a signal ends gusset from here on
    return status
