"""How long commands take from nothing to exit, beside `python -c pass`: python bench/startup.py"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from measure import interleave, table

ROUNDS = 15


def seconds_of(command: list[str], environ: dict[str, str]) -> Callable[[], float]:
    def once() -> float:
        began = time.perf_counter()
        subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        return (time.perf_counter() - began) * 1000

    return once


def main() -> None:
    gusset = os.path.join(os.path.dirname(sys.executable), "gusset")
    with tempfile.TemporaryDirectory() as home:
        environ = os.environ | {"GUSSET_HOME": home}
        subprocess.run(
            [gusset, "secret", "set", "a"], input=b"some-value", env=environ, check=True, capture_output=True
        )
        parts = {
            "python -c pass": seconds_of([sys.executable, "-c", "pass"], environ),
            "import click": seconds_of([sys.executable, "-c", "import click"], environ),
            "gusset --help": seconds_of([gusset, "--help"], environ),
            "gusset secret list": seconds_of([gusset, "secret", "list"], environ),
        }
        for once in parts.values():  # the page cache and the byte code are warm in every round
            once()
        table("Cold start of commands", "ms", interleave(parts, ROUNDS), against="python -c pass")


if __name__ == "__main__":
    main()
