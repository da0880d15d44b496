"""A `gusset serve` of our own, for commands that need a model for a moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click


@contextmanager
def serving(folder: Path, *, home: Path, port: int = 0, secrets_dir: Path | None = None) -> Iterator[str]:
    """Run `gusset serve` on `folder` in a child process, yield its address, then stop it.

    Raises:
        click.exceptions.Exit: it ended before it was ready. It has said why on
            standard error, and its exit status becomes ours.
    """
    command = [sys.executable, "-m", "gusset", "serve", str(folder), "--port", str(port), "--output", "json"]
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


def _address(process: subprocess.Popen[bytes]) -> str:
    """The address that it prints on standard output when it is ready."""
    assert process.stdout  # noqa: S101  # a pipe, see above
    said = json.loads(process.stdout.readline() or b"{}")
    if "address" in said:
        return str(said["address"])
    if "message" in said:
        click.echo(
            f"error: {said['message']}" + (f"\n  {said['hint']}" if said.get("hint") else ""), err=True
        )
    raise click.exceptions.Exit(process.wait())
