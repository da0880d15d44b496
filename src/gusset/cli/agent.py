"""`gusset agent`: keeps a folder in memory current with a deployment's secrets, for any process."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import shlex
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from gusset.cli.app import App, Command, check_exclusive, identity_token_option, pass_app
from gusset.cli.needs_linux import docker_run, require_linux, run_in_container, source_in_container
from gusset.errors import UsageError
from gusset.secrets.name import check_name


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """The options of the command, parsed."""

    deployment: str
    folder: Path
    names: tuple[str, ...]
    allow_missing: frozenset[str]
    once: bool
    command: list[str] | None
    signal: signal.Signals | None
    on_change: list[str] | None
    keep_files: bool


@click.command(cls=Command)
@click.option("--deployment", required=True, metavar="NAME", help="The deployment whose secrets to provide.")
@click.option(
    "--dir",
    "folder",
    required=True,
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder for the files, in memory (tmpfs or ramfs).",
)
@click.option(
    "--secret",
    "names",
    multiple=True,
    metavar="NAME",
    help="Provide just this secret (repeatable). Default: all that the deployment declares.",
)
@click.option(
    "--allow-missing",
    multiple=True,
    metavar="NAME|all",
    help="Start even if this secret has no value (repeatable).",
)
@click.option("--once", is_flag=True, help="Write the files, leave them there, and exit.")
@click.option(
    "--exec", "command", metavar="CMD", help="Run this command; it is restarted when a secret changes."
)
@click.option(
    "--signal", "signal_name", metavar="NAME", help="Send --exec's command this signal instead of a restart."
)
@click.option("--on-change", metavar="CMD", help="Run this command once after each change.")
@click.option("--keep-files", is_flag=True, help="Leave the files in the folder at the end.")
@identity_token_option
@pass_app
def agent(
    app: App,
    /,
    *,
    deployment: str,
    folder: Path,
    names: Sequence[str],
    allow_missing: Sequence[str],
    once: bool,
    command: str | None,
    signal_name: str | None,
    on_change: str | None,
    keep_files: bool,
) -> int:
    """Keep the secrets of a deployment as files in memory, for any process.

    FOLDER/NAME is the newest value of each secret. Values that changed together
    change together. Without --once the agent runs until SIGTERM or Ctrl-C, and
    then removes the files. While the manager is unreachable, the files stay as
    they are. CMD is a single string, split as by a shell but run without one.

    \b
      gusset agent --deployment my-app --dir /run/my-app/secrets
      gusset agent --deployment my-app --dir /secrets --once
      gusset agent --deployment my-app --dir /secrets --exec "nginx -g 'daemon off;'" --signal HUP
    """
    check_exclusive(once=once, exec=command)
    check_exclusive(once=once, on_change=on_change)
    if signal_name is not None and command is None:
        raise UsageError("--signal is for the command of --exec", hint="add --exec, or use --on-change")
    chosen = tuple(check_name(name) for name in names)
    if app.settings.manager is None:
        raise UsageError(
            "the agent needs a manager", hint="set GUSSET_MANAGER, or log in with `gusset login URL`"
        )
    options_inside = _options_inside(
        names=chosen,
        allow_missing=allow_missing,
        flags={"--once": once, "--keep-files": keep_files},
        commands={"--exec": command, "--on-change": on_change},
        signal_name=signal_name,
    )
    require_linux("agent", lambda: _in_container(app, deployment, options_inside))
    options = AgentOptions(
        deployment=deployment,
        folder=folder.absolute(),
        names=chosen,
        allow_missing=frozenset(allow_missing),
        once=once,
        command=_words("--exec", command),
        signal=_signal(signal_name),
        on_change=_words("--on-change", on_change),
        keep_files=keep_files,
    )
    from gusset.cli.agent_run import run

    app.hold_values()
    return run(app, options)


def _words(option: str, command: str | None) -> list[str] | None:
    """The words of a command. Messages repeat only the first: the others may contain a value."""
    if command is None:
        return None
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if not words:
        raise UsageError(
            f"{option} takes a command with balanced quotes", hint=f"as in {option} 'systemctl reload nginx'"
        )
    if shutil.which(words[0]) is None:
        raise UsageError(f"there is no command {words[0]!r} for {option}", hint="name it with its whole path")
    return words


def _signal(name: str | None) -> signal.Signals | None:
    from gusset.cli.command_run import signal_named

    if name is not None and signal_named(name) is None:
        raise UsageError("--signal takes a signal that a process can handle", hint="such as HUP or USR1")
    return None if name is None else signal_named(name)


def _options_inside(
    *,
    names: Sequence[str],
    allow_missing: Sequence[str],
    flags: Mapping[str, bool],
    commands: Mapping[str, str | None],
    signal_name: str | None,
) -> list[str]:
    """The options of the agent in a container. Commands are not repeated: they may hold a value."""
    words = [word for name in names for word in ("--secret", name)]
    words += [word for name in allow_missing for word in ("--allow-missing", name)]
    words += [flag for flag, given in flags.items() if given]
    words += [word for option, given in commands.items() if given for word in (option, "COMMAND")]
    return words if signal_name is None else [*words, "--signal", signal_name]


def _in_container(app: App, deployment: str, options: Sequence[str]) -> str:
    """The hint to run the agent in a container, in a folder of that container's memory."""
    source = source_in_container(app, None)
    memory = ["--mount", "type=tmpfs,destination=/secrets"]
    arguments = [*source.arguments, "--deployment", deployment, "--dir", "/secrets", *options]
    command = docker_run([*memory, *source.options], "agent", *arguments, terminal=False)
    return run_in_container(command, source.before)
