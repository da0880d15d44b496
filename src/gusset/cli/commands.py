"""Imports and runs a command, and turns errors into messages and exit statuses."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from itertools import pairwise

import click

from gusset import __version__
from gusset.cli.app import App, Group, SurplusArgument
from gusset.errors import BUG, GussetError, HostError, UsageError, outcome_of
from gusset.printable import printable_lines

# Command -> (module, one line of help). A module is imported only when its command
# runs, which keeps the others fast.
COMMANDS = {
    "init": ("gusset.cli.package", "Create a new model folder."),
    "check": ("gusset.cli.package", "Check a model folder before it is served."),
    "serve": ("gusset.cli.serve", "Serve a model folder with its secrets."),
    "predict": ("gusset.cli.predict", "Call a model, given its folder or its address."),
    "build": ("gusset.cli.build", "Build a container image of a model folder."),
    "deploy": ("gusset.cli.deploy", "Run a model folder on a cluster."),
    "env": ("gusset.cli.env", "List and remove the Python environments of models."),
    "scan": ("gusset.cli.scan", "Search a container image for values of secrets."),
    "secret": ("gusset.cli.secret", "Add, list, replace and delete secrets."),
    "exec": ("gusset.cli.exec", "Run any command with chosen secrets."),
    "agent": ("gusset.cli.agent", "Keep secrets as files in memory for any process."),
    "manager": ("gusset.cli.manager", "Run the secret manager: pages and API."),
    "login": ("gusset.cli.login", "Use a manager for all further commands."),
    "logout": ("gusset.cli.login", "Use the embedded vault again."),
    "token": ("gusset.cli.token", "Create and revoke tokens of deployments."),
    "deployment": ("gusset.cli.token", "Show deployments and which versions their replicas hold."),
    "identity": ("gusset.cli.identity", "Manage which platform tokens act as which deployment."),
    "issuer": ("gusset.cli.identity", "Manage trusted token issuers."),
    "audit": ("gusset.cli.audit", "Read, verify and export the audit log."),
    "key": ("gusset.cli.key", "Rotate the vault's keys."),
    "migrate-database": ("gusset.cli.migrate_database", "Move the vault to another database."),
    "doctor": ("gusset.cli.doctor", "Look for problems on this machine that weaken security."),
    "demo": ("gusset.cli.demo", "Show how gusset works, in a temporary vault."),
    "schema": ("gusset.cli.package", "Print the JSON Schema of config.yaml."),
    "completion": ("gusset.cli.completion", "Print the completion script for a shell."),
}


class Commands(Group):
    """A group whose commands are imported only when they run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _ = COMMANDS[name]
        attribute = "exec_" if name == "exec" else name.replace("-", "_")  # exec is a builtin function
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gusset", message="%(prog)s %(version)s")
def gusset() -> None:
    """Store secrets, and serve models that use them without leaking them.

    \b
      gusset secret set hf_access_token      (prompts for the value)
      gusset serve my-model                  (the model has it in kwargs["secrets"])
    """


def run(words: Sequence[str]) -> int:
    """Run the command of this command line; its exit status (docs/cli.md lists them)."""
    app = App()
    app.output.json = _has_json_option(words)
    try:
        status = gusset.main(list(words), prog_name="gusset", standalone_mode=False, obj=app)
    except click.ClickException as error:
        status = _report_usage_error(app, error)
    except (click.Abort, KeyboardInterrupt):
        status = 130
    except BrokenPipeError:
        status = _ignore_closed_pipe()
    except GussetError as error:
        app.output.error(error)
        status = outcome_of(error).exit
    except Exception as error:
        if expected := _expected(error):
            app.output.error(expected)
            status = outcome_of(expected).exit
        else:  # a bug in gusset: print the traceback, with values masked
            _show_bug(app, error)
            status = BUG.exit
    return status if isinstance(status, int) else 0


# What may be wrong with any path, wherever it is used. Without the others, such as ENOENT, gusset has a bug.
_UNUSABLE = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS, errno.ENOSPC, errno.EIO}


def _expected(error: Exception) -> GussetError | None:
    """The error for what may go wrong with any text, path or output; None for a bug in gusset."""
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        # Python has them for bytes that are no UTF-8. Not repeated: the text may be a value.
        return UsageError(
            "a name or text is not UTF-8", hint="check the terminal's encoding, and the names of files"
        )
    if not isinstance(error, OSError):
        return None
    if error.errno == errno.ENOSPC and error.filename is None:  # of a file, the error has its name
        return HostError("the output cannot be written: no space is left where it goes")
    if error.errno not in _UNUSABLE or not isinstance(error.filename, str | bytes):
        return None
    return HostError(
        f"{os.fsdecode(error.filename)} cannot be used: {os.strerror(error.errno).lower()}",
        hint="check the path, and what your account may do with it and the folders above it",
    )


def _has_json_option(words: Sequence[str]) -> bool:
    """Whether `--output json` is given. Errors of parsing the command line are JSON then, too."""
    options = list(words[: words.index("--")] if "--" in words else words)
    return "--output=json" in options or ("--output", "json") in pairwise(options)


def _report_usage_error(app: App, error: click.ClickException) -> int:
    """Report a usage error without the offending arguments, one of which may be a secret value."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(printable_lines(error.format_message()))
        return 2
    message = error.format_message()
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter):
        message = _bad_parameter(error)
    elif isinstance(error, click.NoSuchOption):
        message = "there is no such option" + (
            f"; did you mean {error.possibilities[0]}?" if error.possibilities else ""
        )
    hint = error.hint if isinstance(error, SurplusArgument) else None
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    if hint is None and ctx is not None:
        hint = f"see `{ctx.command_path} --help`"
    app.output.error(UsageError(message, hint=hint))
    return outcome_of(UsageError("")).exit


def _bad_parameter(error: click.BadParameter) -> str:
    if error.param is None:
        return "an argument is not valid"
    name = error.param.opts[0] if error.param.param_type_name == "option" else error.param.human_readable_name
    kind = error.param.type
    if isinstance(kind, click.Choice):
        return f"{name} must be one of {', '.join(map(str, kind.choices))}"
    if isinstance(kind, click.Path):
        return error.message  # it has a path, not a value
    if isinstance(kind, click.IntRange):
        upper = "" if kind.max is None else f" to {kind.max}"
        return f"{name} must be a whole number from {kind.min}{upper}"
    return f"{name} must be {_article(kind.name)}"


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _ignore_closed_pipe() -> int:
    """Discard output that nobody reads any more (`gusset ... | head`); returns the exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _show_bug(app: App, error: Exception) -> None:
    import traceback  # only for this

    from gusset.secrets.masking import Masker  # only for this

    text = "".join(traceback.format_exception(error))
    click.echo(printable_lines(Masker(app.held).mask_text(text)), err=True, nl=False)
    click.echo("this is a bug in gusset; please report the lines above", err=True)
