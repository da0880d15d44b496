"""Environments of their own for the examples: `python -m tests.examples.environments`.

Each is a virtual environment with real transformers and torch, pinned by
version, and gusset from this checkout. They are made once, under a lock, and
again when what goes into them has changed; when nothing has, this takes a
moment. `.cache/` gets the tiny BERT that the tests' hub serves.

Without the packages (no network, or a Python that has no wheels of them) the
reason is printed and kept, and the tests that need them skip with it. Under CI
that is a failure.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
HOME = REPO / ".venv-examples"
CACHE = Path(os.environ.get("GUSSET_TEST_CACHE") or REPO / ".cache")
CORE = REPO / "requirements" / "core.txt"
TINY_BERT = REPO / "tests" / "examples" / "tiny_bert.py"
PIP = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
# Bytecode is left to the first import: few of torch's files are ever imported.
INSTALL = [*PIP, "install", "--no-compile", "--only-binary", ":all:", "--retries", "1"]


class Unavailable(Exception):
    """An environment cannot be made on this machine."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the packages of one requirements file, and gusset."""

    name: str
    requirements: Path
    imports: str = "gusset, torch, transformers"
    with_gusset: bool = True
    home: Path = HOME

    @property
    def folder(self) -> Path:
        return self.home / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def ready(self) -> bool:
        return self._stamp.is_file() and self._stamp.read_text() == self._recipe()

    @property
    def reason(self) -> str:
        """Why it is not there."""
        note = self._note
        return note.read_text() if note.is_file() else f"{self.folder} is not made; `make examples` makes it"

    def make(self) -> None:
        """Make it if it is not there or is out of date.

        Raises:
            Unavailable: with the output of pip or venv.
        """
        with locked(self.home / f"{self.name}.lock"):
            if self.ready:
                return
            self._note.unlink(missing_ok=True)
            try:
                self._make()
            except Unavailable as error:
                self._note.write_text(str(error))
                raise

    def _make(self) -> None:
        run(sys.executable, "-m", "venv", "--clear", str(self.folder))
        run(str(self.python), *INSTALL, "-r", str(self.requirements))
        if self.with_gusset:
            run(str(self.python), *INSTALL, "--no-deps", "--require-hashes", "-r", str(CORE))
            packages = next(self.folder.glob("lib/python*/site-packages"))
            (packages / "gusset.pth").write_text(f"{REPO / 'src'}\n")
        run(str(self.python), *PIP, "check")
        run(str(self.python), "-c", f"import {self.imports}")
        self._stamp.write_text(self._recipe())

    def _recipe(self) -> str:
        parts = [sys.version, str(REPO), self.requirements.read_text(), CORE.read_text(), repr(INSTALL)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def _stamp(self) -> Path:
        return self.folder / ".made"

    @property
    def _note(self) -> Path:
        return self.home / f"{self.name}.unavailable"


CURRENT = Environment("current", REPO / "examples" / "fill-mask" / "requirements.txt")
LEGACY = Environment("legacy", REPO / "tests" / "examples" / "requirements-legacy.txt")
# Not an example: the third-party client that drives the manager's API.
TRUSS = Environment(
    "truss",
    REPO / "tests" / "manager" / "requirements-truss.txt",
    imports="truss.remote.baseten.api",
    with_gusset=False,
)


def tiny_bert() -> Path:
    """The folder of the tiny BERT, made by `CURRENT` if it is not cached.

    Raises:
        Unavailable: it is not cached and cannot be made.
    """
    key = hashlib.sha256(TINY_BERT.read_bytes() + CURRENT.requirements.read_bytes()).hexdigest()[:12]
    folder = CACHE / f"tiny-bert-{key}"
    with locked(CACHE / "tiny-bert.lock"):
        if not folder.is_dir():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            run(str(CURRENT.python), str(TINY_BERT), str(partial))
            partial.rename(folder)
    return folder


def run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=REPO)
    except OSError as error:
        raise Unavailable(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode:
        output = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise Unavailable(f"`{' '.join(command)}` ended with {done.returncode}: {' '.join(output)}")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`, across processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Make all that is missing; 1 when something is and this is CI."""
    status = 0
    for environment in (CURRENT, LEGACY, TRUSS):
        if environment.ready:
            continue
        print(f"making {environment.folder.relative_to(REPO)} (once; takes a minute)", flush=True)
        begun = time.monotonic()
        try:
            environment.make()
            print(f"  made in {time.monotonic() - begun:.0f} s")
        except Unavailable as error:
            print(f"  not available: {error}")
            status = 1
    try:
        if CURRENT.ready:
            tiny_bert()
    except Unavailable as error:
        print(f"no tiny BERT: {error}")
        status = 1
    return status if os.environ.get("CI") else 0


if __name__ == "__main__":
    sys.exit(main())
