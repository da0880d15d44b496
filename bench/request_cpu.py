"""CPU time of a request to a model, by wrk: python bench/request_cpu.py [rounds] [CHECKOUT] [--connections 32]

CHECKOUT is the folder of another version of gusset with its own .venv, to compare with. CPU time of all processes
of `gusset serve` is divided by the number of requests, so other work on the machine matters less than for rates.
The servers share one core, since it costs a request more when the model's thread runs on another than the loop's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from measure import interleave, table
from proxy import load

KEY = "k" * 40
BODY = json.dumps({"text": "The capital of France is [MASK]."}).encode()
MODEL = "class Model:\n    {}def predict(self, inputs):\n        return inputs\n"


def processes_below(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in processes_below(int(child)))]


def cpu_microseconds(pid: int) -> float:
    """Of a process and all below it, from all of their threads."""
    tasks = (task for each in processes_below(pid) for task in Path(f"/proc/{each}/task").iterdir())
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1000


def start(
    stack: ExitStack, python: str, folder: Path, *options: str, connections: int
) -> Callable[[], float]:
    """Serve, and return what measures the CPU time of a request once."""
    command = [python, "-m", "gusset", "serve", str(folder / "model"), "--port", "0", "--output", "json"]
    command += ["--secrets-dir", str(folder / "secrets"), *options]
    process = stack.enter_context(
        subprocess.Popen(["taskset", "-c", "0", *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    )
    stack.callback(process.terminate)
    assert process.stdout is not None
    port = int(json.loads(process.stdout.readline())["address"].rpartition(":")[2])

    def once() -> float:
        before = cpu_microseconds(process.pid)
        done = load(port, "/predict", BODY, connections=connections, seconds=1)
        return (cpu_microseconds(process.pid) - before) / done["requests"]

    once()
    return once


def main(rounds: int, other: str | None, connections: int) -> None:
    os.environ["KEY"] = KEY
    for kind in ("", "async "):
        with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
            folder = Path(scratch)
            (folder / "model" / "model").mkdir(parents=True)
            (folder / "model" / "config.yaml").write_text("model_name: bench\n")
            (folder / "model" / "model" / "model.py").write_text(MODEL.format(kind))
            (folder / "secrets").mkdir()
            (folder / "secrets" / "app").write_text(KEY)
            servers = {
                "this version": start(stack, sys.executable, folder, connections=connections),
                "with `--callers`": start(
                    stack, sys.executable, folder, "--callers", "app", connections=connections
                ),
            }
            if other:
                python = f"{other}/.venv/bin/python"
                servers["the other version"] = start(stack, python, folder, connections=connections)
            results = interleave(servers, rounds)
            for against in [*servers][::2]:
                table(f"Echo, {kind or 'sync '}predict", "µs of CPU per request", results, against, digits=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", type=int, nargs="?", default=20)
    parser.add_argument("checkout", nargs="?")
    parser.add_argument("--connections", type=int, default=32)
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.checkout, arguments.connections)
