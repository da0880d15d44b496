"""How long commands take from nothing to exit, beside `python -c pass`: python bench/startup.py

In elapsed time, and in processor time of the whole process, which other work on the machine disturbs less.
`gusset serve` and `gusset manager` are measured until they are ready, with all their processes; and the
memory of those of `serve`.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from measure import interleave, print_bare_python, table

ROUNDS = 15
PYTHON = [sys.executable, "-c"]
GUSSET = str(Path(sys.executable).parent / "gusset")
SET_CHILD_SUBREAPER = 36  # prctl: processes whose parent ends become children of this one


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


def to_ready(words: Sequence[str], environ: dict[str, str]) -> tuple[float, float]:
    """Elapsed time and processor time of a server and all that it starts, until it prints its address."""
    began = time.perf_counter()
    process = start(words, environ)
    elapsed = (time.perf_counter() - began) * 1000
    for pid in [process.pid, *descendants(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    used = 0.0
    try:
        while True:  # those whose parent was killed, too
            pid, _, usage = os.wait4(-1, 0)
            used += (usage.ru_utime + usage.ru_stime) * 1000
            if pid == process.pid:
                process.returncode = -signal.SIGKILL
    except ChildProcessError:
        return elapsed, used


def start(words: Sequence[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
    """A server of gusset that is ready."""
    command = [GUSSET, *words, "--port", "0", "--output", "json"]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    with process.stdout:
        assert "address" in json.loads(process.stdout.readline())
    return process


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [each for child in children for each in (child, *descendants(child))]


def print_memory(folder: Path, environ: dict[str, str]) -> None:
    """Print the memory of each process of `gusset serve`, two seconds after it is ready."""
    process = start(["serve", str(folder)], environ)
    time.sleep(2)
    sizes = [proportional_mb(pid) for pid in [process.pid, *descendants(process.pid)]]
    process.terminate()
    process.wait()
    own = " + ".join(f"{own:.1f}" for own, _ in sizes)
    print(f"\nMemory of `gusset serve`, of its own: {own} = {sum(own for own, _ in sizes):.1f} MB.")
    files = sum(files for _, files in sizes)
    print(f"Its share of the files that this and other processes use: {files:.1f} MB.")
    print(f"Together (PSS): {sum(own for own, _ in sizes) + files:.1f} MB.")


def proportional_mb(pid: int) -> tuple[float, float]:
    """Memory of a process, and its pages of files; those that processes share are divided by their number."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kb = {name: int(line.split()[1]) for line in lines if (name := line.partition(":")[0]).startswith("Pss_")}
    return kb["Pss_Anon"] / 1024, kb["Pss_File"] / 1024


def main() -> None:
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as scratch:
        environ = os.environ | {"GUSSET_HOME": f"{scratch}/home", "GUSSET_CACHE": f"{scratch}/cache"}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        folder = Path(scratch) / "model"
        milliseconds([GUSSET, "init", str(folder)], environ)
        milliseconds([GUSSET, "secret", "set", "api_key"], environ)

        def command(*words: str) -> Callable[[], tuple[float, float]]:
            return lambda: milliseconds(list(words), environ)

        def first_set() -> tuple[float, float]:
            home = {"GUSSET_HOME": tempfile.mkdtemp(dir=scratch)}
            return milliseconds([GUSSET, "secret", "set", "api_key"], environ | home)

        parts = {
            "python -c pass": command(*PYTHON, "pass"),
            "import click": command(*PYTHON, "import click"),
            "gusset --version": command(GUSSET, "--version"),
            "gusset --help": command(GUSSET, "--help"),
            "gusset secret set --help": command(GUSSET, "secret", "set", "--help"),
            "gusset secret list": command(GUSSET, "secret", "list"),
            "gusset secret set": command(GUSSET, "secret", "set", "api_key"),
            "gusset secret set, in a new vault": first_set,
            "gusset exec -- true": command(GUSSET, "exec", "--secret", "api_key", "--", "true"),
            "gusset check": command(GUSSET, "check", str(folder)),
            "gusset serve, to ready": lambda: to_ready(["serve", str(folder)], environ),
            "gusset manager, to ready": lambda: to_ready(["manager"], environ),
        }
        for once in parts.values():  # the page cache and the byte code are warm in every round
            once()
        processor: dict[str, list[float]] = {name: [] for name in parts}

        def measured(name: str) -> Callable[[], float]:
            def once() -> float:
                elapsed, used = parts[name]()
                processor[name].append(used)
                return elapsed

            return once

        elapsed = interleave({name: measured(name) for name in parts}, ROUNDS)
        table("Start of commands, elapsed", "ms", elapsed, against="python -c pass")
        table("Start of commands, processor time", "ms", processor, against="python -c pass", digits=1)
        print_bare_python()
        least = min(processor["python -c pass"])
        print("\nLeast of all rounds:", end=" ")
        print(", ".join(f"{name} × {min(used) / least:.2f}" for name, used in processor.items()))
        print_memory(folder, environ)


if __name__ == "__main__":
    main()
