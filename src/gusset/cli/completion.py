"""`gusset completion SHELL`: the script that a shell loads to complete gusset's commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from gusset.cli.app import Command


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
      bash: eval "$(gusset completion bash)"      in ~/.bashrc
      zsh:  eval "$(gusset completion zsh)"       in ~/.zshrc
      fish: gusset completion fish | source       in ~/.config/fish/config.fish
    """
    cls = get_completion_class(shell)
    if cls is None:  # click supports the three choices above
        raise click.UsageError("this shell is not supported")
    click.echo(cls(ctx.find_root().command, {}, "gusset", "_GUSSET_COMPLETE").source())
