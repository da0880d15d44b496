"""Environments for the examples, with real transformers and torch: `python -m tests.examples.environments`.

gusset makes them, as it does for a person who serves the folder, in a cache of
their own. `.cache/` gets the tiny BERT that the tests' hub serves. The client of
another project that drives the manager's API has a virtual environment by pip.
All are made once; when nothing has changed, this takes a moment.

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
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
HOME = REPO / ".venv-examples"
CACHE = Path(os.environ.get("GUSSET_TEST_CACHE") or REPO / ".cache")
TINY_BERT = REPO / "tests" / "examples" / "tiny_bert.py"
PIP = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
# Bytecode is left to the first import: few of torch's files are ever imported.
INSTALL = [*PIP, "install", "--no-compile", "--only-binary", ":all:", "--retries", "1"]


class Unavailable(Exception):
    """An environment cannot be made on this machine."""


@dataclass(frozen=True)
class FolderEnvironment:
    """The environment that `gusset serve` makes for a model folder."""

    name: str
    folder: Path

    @property
    def python(self) -> Path:
        found = gusset("env", "path", str(self.folder))
        if found.returncode:
            raise Unavailable(self.reason)
        return Path(found.stdout.strip()) / "bin" / "python"

    @property
    def ready(self) -> bool:
        return gusset("env", "path", str(self.folder)).returncode == 0

    @property
    def reason(self) -> str:
        """Why it is not there."""
        note = HOME / f"{self.name}.unavailable"
        return note.read_text() if note.is_file() else f"{self.name} is not made; `make examples` makes it"

    def make(self) -> None:
        """Serve the folder without its secret until the model is ready or has failed.

        Raises:
            Unavailable: there is no environment; with the end of what gusset printed.
        """
        note = HOME / f"{self.name}.unavailable"
        note.unlink(missing_ok=True)
        serve = ("serve", str(self.folder), "--port", "0", "--allow-missing", "all", "--output", "json")
        with tempfile.TemporaryFile("w+") as errors:
            options = {"stdout": subprocess.PIPE, "stderr": errors, "env": _environ(), "cwd": REPO}
            with subprocess.Popen([*GUSSET, *serve], **options) as process:
                assert process.stdout
                process.stdout.readline()  # the address, or nothing when it ends
                process.terminate()
            errors.seek(0)
            text = " ".join(errors.read().splitlines()[-4:])
        if not self.ready:
            note.write_text(f"no environment for {self.name}: {text}")
            raise Unavailable(text)


GUSSET = [sys.executable, "-m", "gusset"]


def gusset(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the checkout's gusset with the cache of the examples."""
    return subprocess.run([*GUSSET, *arguments], capture_output=True, text=True, env=_environ(), cwd=REPO)


def _environ() -> dict[str, str]:
    """With a cache and a vault of the examples, and no way to the hub."""
    HOME.mkdir(exist_ok=True)
    own = {"GUSSET_CACHE": str(HOME), "GUSSET_HOME": str(HOME / "home"), "HF_HUB_OFFLINE": "1"}
    return os.environ | own


@dataclass(frozen=True)
class PipEnvironment:
    """A virtual environment with the packages of one requirements file, installed by pip."""

    name: str
    requirements: Path
    imports: str
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
        run(str(self.python), *PIP, "check")
        run(str(self.python), "-c", f"import {self.imports}")
        self._stamp.write_text(self._recipe())

    def _recipe(self) -> str:
        parts = [sys.version, str(REPO), self.requirements.read_text(), repr(INSTALL)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def _stamp(self) -> Path:
        return self.folder / ".made"

    @property
    def _note(self) -> Path:
        return self.home / f"{self.name}.unavailable"


CURRENT = FolderEnvironment("fill-mask", REPO / "examples" / "fill-mask")
LEGACY = FolderEnvironment("fill-mask of 2023", REPO / "tests" / "examples" / "legacy")
SEARCH = FolderEnvironment("search", REPO / "examples" / "search")
NEIGHBOURS = FolderEnvironment("word-neighbours", REPO / "examples" / "word-neighbours")
# Not an example: the third-party client that drives the manager's API.
TRUSS = PipEnvironment(
    "truss",
    REPO / "tests" / "manager" / "requirements-truss.txt",
    imports="truss.remote.baseten.api",
)


def tiny_bert() -> Path:
    """The folder of the tiny BERT, made by `CURRENT` if it is not cached.

    Raises:
        Unavailable: it is not cached and cannot be made.
    """
    key = hashlib.sha256(
        TINY_BERT.read_bytes() + (CURRENT.folder / "requirements.txt").read_bytes()
    ).hexdigest()[:12]
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
    for environment in (CURRENT, LEGACY, SEARCH, NEIGHBOURS, TRUSS):
        if environment.ready:
            continue
        print(f"making the environment {environment.name} (once; takes a minute)", flush=True)
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
