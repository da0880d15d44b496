"""What finding a model's Python environment costs at each start, beside `uv run`: python bench/environments.py

The first start makes the environment, with what uv has in its cache or its index.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import interleave, table
from uv import find_uv_bin

from gusset.environments.installed import InstalledPackages

ROUNDS = 15
MODEL = "class Model:\n    def predict(self, inputs):\n        return inputs\n"
CHECK = """
import sys, time
from pathlib import Path
from gusset.environments.installed import InstalledPackages, unsatisfied
from gusset.environments.plan import Origin
from gusset.environments.requirement_lines import logical_lines, read_lines
text = sys.stdin.read()
began = time.perf_counter()
wanted = read_lines(logical_lines(text, "r.txt"), Path("/"), Path.read_text, {})
assert unsatisfied(wanted, InstalledPackages(sys.path)) == []
print((time.perf_counter() - began) * 1000)
"""


def model(folder: Path, requirements: list[str]) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.py").write_text(MODEL)
    (folder / "config.yaml").write_text(json.dumps({"requirements": requirements}))
    (folder / "requirements.txt").write_text("\n".join(requirements))
    return folder


def milliseconds_to_ready(folder: Path, environ: dict[str, str], *options: str) -> Callable[[], float]:
    command = [sys.executable, "-m", "gusset", "serve", str(folder), "--port", "0", "--output", "json"]

    def once() -> float:
        began = time.perf_counter()
        with subprocess.Popen(
            [*command, *options], env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout
            assert b"address" in process.stdout.readline()
            taken = (time.perf_counter() - began) * 1000
            process.terminate()
        return taken

    return once


def milliseconds_of(command: list[str], environ: dict[str, str]) -> Callable[[], float]:
    def once() -> float:
        began = time.perf_counter()
        subprocess.run(command, env=environ, check=True, capture_output=True)
        return (time.perf_counter() - began) * 1000

    return once


def milliseconds_of_check(lines: list[str]) -> float:
    done = subprocess.run(
        [sys.executable, "-c", CHECK], input="\n".join(lines), text=True, capture_output=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    satisfied = [f"{each.name}=={each.version}" for each in InstalledPackages(sys.path)][:50]
    with tempfile.TemporaryDirectory() as scratch:
        environ = os.environ | {"GUSSET_HOME": f"{scratch}/home", "GUSSET_CACHE": f"{scratch}/cache"}
        plain = model(Path(scratch, "plain"), [])
        current = model(Path(scratch, "current"), satisfied)
        own = model(Path(scratch, "own"), ["requests", "numpy"])
        uv = [find_uv_bin(), "run", "--quiet", "--no-project", "--python", sys.executable]
        uv += ["--with-requirements", str(own / "requirements.txt"), "python", "-c", "pass"]
        starts = {
            "no requirements": milliseconds_to_ready(plain, environ),
            f"{len(satisfied)} requirements that this Python satisfies": milliseconds_to_ready(
                current, environ
            ),
            "an environment of its own, from the cache": milliseconds_to_ready(own, environ, "--env", "own"),
        }
        others = {
            "python -c pass": milliseconds_of([sys.executable, "-c", "pass"], environ),
            "uv run ... python -c pass": milliseconds_of(uv, environ),
            f"the check of {len(satisfied)} requirements alone": lambda: milliseconds_of_check(satisfied),
        }
        for once in (*starts.values(), *others.values()):  # this makes the environments
            once()
        table("From start to ready", "ms", interleave(starts, ROUNDS), against="no requirements")
        table("Beside it", "ms", interleave(others, ROUNDS), against="python -c pass")


if __name__ == "__main__":
    main()
