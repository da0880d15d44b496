"""`gusset exec -- COMMAND`: any command, with chosen secrets as files in memory and its output masked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gusset.cli.app import App, Command, pass_app
from gusset.cli.needs_linux import docker_run, require_linux, run_in_container, source_in_container
from gusset.errors import UsageError
from gusset.secrets.name import check_name
from gusset.secrets.value import SecretValue

if TYPE_CHECKING:
    from gusset.runtime.output_pump import OutputPump
    from gusset.secrets.masking import Masker

# Seconds without output after which a child that the command left behind, and that holds the pipe open, is
# not waited for any longer.
_SILENCE = 1.0


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
@pass_app
def exec_(
    app: App, command: Sequence[str], names: Sequence[str], variables: Sequence[str], secrets_dir: Path | None
) -> int:
    """Run COMMAND with chosen secrets.

    GUSSET_SECRETS_DIR names a folder in memory with a file for each secret. Only
    you can read it, and it is removed when COMMAND ends. Values are masked in what
    COMMAND prints. The exit status is that of COMMAND.

    \b
      gusset exec --secret db_password -- sh -c 'psql "password=$(cat $GUSSET_SECRETS_DIR/db_password) ..."'
      gusset exec --env HF_TOKEN=hf_access_token -- huggingface-cli whoami
    """
    wanted = _variables(variables)
    for name in names:
        check_name(name)
    if not names and not wanted:
        raise UsageError("no secret is chosen", hint="choose each with --secret NAME or --env VARIABLE=NAME")
    require_linux("exec", lambda: _exec_in_container(app, names, variables, secrets_dir))
    app.hold_values()
    from gusset.cli.sources import read_values

    values = read_values(app, {*names, *wanted.values()}, secrets_dir, reader="exec")
    app.held.extend(values.values())
    files = {name: values[name] for name in names}
    return _run(command, files, {variable: values[name] for variable, name in wanted.items()})


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


def _exec_in_container(
    app: App, names: Sequence[str], variables: Sequence[str], secrets_dir: Path | None
) -> str:
    """The hint to run a command in a container. It does not repeat the command, which may hold a value."""
    source = source_in_container(app, secrets_dir)
    chosen = [word for name in names for word in ("--secret", name)]
    chosen += [word for text in variables for word in ("--env", text)]
    here = ["-v", f"{Path.cwd()}:/work", "-w", "/work"]
    command = docker_run([*here, *source.options], "exec", *source.arguments, *chosen, "--", "COMMAND")
    return run_in_container(command, source.before)


def _run(
    command: Sequence[str], files: Mapping[str, SecretValue], variables: Mapping[str, SecretValue]
) -> int:
    """Run the command to its end; its exit status, or 128 plus the signal that ended it."""
    from gusset.cli.signal_forwarding import SignalForwarder
    from gusset.containers.secrets.memory_folder import SecretsFolder
    from gusset.secrets.masking import Masker

    masker = Masker([*files.values(), *variables.values()])
    with SecretsFolder.create(files) as folder:  # forks its reaper, so before the threads below
        environment = {**os.environb, b"GUSSET_SECRETS_DIR": os.fsencode(folder.path)}
        environment |= {os.fsencode(name): _for_environment(name, value) for name, value in variables.items()}
        with SignalForwarder.open() as signals:
            process = _start(command, environment, before_exec=signals.restore_mask)
            pumps = _masked_output(process, masker)
            status = signals.wait(process)
        for pump in pumps:  # a signal ends gusset from here on
            pump.drain(_SILENCE)
    return status if status >= 0 else 128 - status


def _for_environment(name: str, value: SecretValue) -> bytes:
    data = value.reveal()
    if b"\0" in data:
        raise UsageError(f"the value for {name} has a NUL byte, which an environment variable cannot have")
    return data


def _start(
    command: Sequence[str], environment: Mapping[bytes, bytes], *, before_exec: Callable[[], None]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(command),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=before_exec,  # there is no other thread yet
        )
    except FileNotFoundError:
        raise UsageError(f"there is no command {command[0]!r}") from None
    except PermissionError:
        raise UsageError(f"{command[0]!r} cannot be executed") from None
    except OSError as error:
        raise UsageError(f"{command[0]!r} cannot be started: {error.strerror}") from None


def _masked_output(process: subprocess.Popen[bytes], masker: Masker) -> list[OutputPump]:
    """Start to forward both streams of the command, masked."""
    from gusset.runtime.output_pump import OutputPump

    assert process.stdout and process.stderr  # noqa: S101  # both are pipes, see _start
    pumps = [
        OutputPump.start(os.dup(process.stdout.fileno()), sys.stdout.fileno(), masker.stream()),
        OutputPump.start(os.dup(process.stderr.fileno()), sys.stderr.fileno(), masker.stream()),
    ]
    process.stdout.close()
    process.stderr.close()
    return pumps
