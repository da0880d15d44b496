"""Runs `gusset serve` in a child process, for commands that call a model once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from gusset.cli.output import Output
from gusset.errors import Problem
from gusset.printable import printable_lines


@contextmanager
def serving(
    folder: Path,
    *,
    home: Path,
    port: int = 0,
    secrets_dir: Path | None = None,
    options: Sequence[str] = (),
) -> Iterator[str]:
    """Run `gusset serve` on `folder` in a child process, yield its address, then stop it.

    `options` are further options of the command.

    Raises:
        click.exceptions.Exit: it ended before it was ready, with this exit status.
            The reason is on standard error.
    """
    command = [sys.executable, "-m", "gusset", "serve", str(folder), "--port", str(port), "--output", "json"]
    command += ["--quiet-stop", *options]
    if secrets_dir is not None:
        command += ["--secrets-dir", str(secrets_dir)]
    environment = {**os.environ, "GUSSET_HOME": str(home)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as process:
        try:
            yield _address(process)
        finally:
            process.terminate()


def _problem(data: dict[str, Any]) -> Problem:
    """A problem from what `problem_data` makes of it."""
    fields = {name: value for name, value in data.items() if name != "severity"}
    return Problem(**fields, warning=data["severity"] == "warning")


def _address(process: subprocess.Popen[bytes]) -> str:
    """The address that the server prints on standard output when it is ready."""
    assert process.stdout  # noqa: S101  # a pipe, see above
    result = json.loads(process.stdout.readline() or b"{}")
    if "address" in result:
        return str(result["address"])
    Output().problems(_problem(each) for each in result.get("problems", ()))
    if "message" in result:
        hint = f"\n  {result['hint']}" if result.get("hint") else ""
        click.echo(printable_lines(f"error: {result['message']}{hint}"), err=True)
    raise click.exceptions.Exit(process.wait())
