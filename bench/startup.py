"""How long commands take from nothing to exit, beside `python -c pass`: python bench/startup.py

In elapsed time, and in processor time of the whole process, which other work on the machine disturbs less.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import interleave, table

ROUNDS = 15
GUSSET = str(Path(sys.executable).parent / "gusset")


def milliseconds(command: list[str], environ: dict[str, str]) -> tuple[float, float]:
    """Elapsed time and processor time of one run. Its standard input is a new value."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    try:
        process.stdin.write(f"value {time.time_ns()}".encode())
        process.stdin.close()
    except BrokenPipeError:
        pass  # it does not read its input
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return (time.perf_counter() - began) * 1000, (used.ru_utime + used.ru_stime) * 1000


def main() -> None:
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import click": [sys.executable, "-c", "import click"],
        "gusset --help": [GUSSET, "--help"],
        "gusset secret list": [GUSSET, "secret", "list"],
        "gusset secret set": [GUSSET, "secret", "set", "a"],
    }
    with tempfile.TemporaryDirectory() as home:
        environ = os.environ | {"GUSSET_HOME": home}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        milliseconds(commands["gusset secret set"], environ)
        for command in commands.values():  # the page cache and the byte code are warm in every round
            milliseconds(command, environ)
        processor: dict[str, list[float]] = {name: [] for name in commands}

        def measured(name: str) -> Callable[[], float]:
            def once() -> float:
                elapsed, used = milliseconds(commands[name], environ)
                processor[name].append(used)
                return elapsed

            return once

        elapsed = interleave({name: measured(name) for name in commands}, ROUNDS)
    table("Start of commands, elapsed", "ms", elapsed, against="python -c pass")
    table("Start of commands, processor time", "ms", processor, against="python -c pass", digits=1)


if __name__ == "__main__":
    main()
