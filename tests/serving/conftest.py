"""A served model: real processes, a real port, secrets in a folder that a test can change."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

PATIENCE = 60.0  # seconds until a test fails; no test passes by waiting this long


def eventually(
    condition: Callable[[], object], what: str = "the condition", patience: float = PATIENCE
) -> None:
    """Wait until `condition` is true."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The process ids of a process's children."""
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descriptors(pid: int) -> int:
    """How many files a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextlib.contextmanager
def no_descriptors(pid: int) -> Iterator[None]:
    """Within the context, the process can open no more files, pipes and sockets."""
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, usual[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)


class RunningServer:
    """One run of the server. Its output goes to files, so that a test can read it at any time."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.process = process
        self._out, self._err = out, err

    @property
    def stdout(self) -> str:
        return self._out.read_bytes().decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        return self._err.read_bytes().decode("utf-8", "replace")

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    @property
    def address(self) -> str:
        found = re.search(r"ready at (\S+)", self.stdout)
        assert found, self.output
        return found[1]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def worker(self) -> int:
        """The process id of the worker, once the shim has started it."""
        eventually(lambda: children(self.shim), "the worker")
        return children(self.shim)[0]

    @property
    def shim(self) -> int:
        """The process id of the process between supervisor and worker."""
        return children(self.process.pid)[0]

    def ready(self) -> RunningServer:
        """Wait until the model is ready for the first time."""
        eventually(lambda: "ready at " in self.stdout or self.process.poll() is not None, "ready")
        assert self.process.poll() is None, self.output
        return self

    def ended(self) -> int:
        """Wait for the exit status."""
        return self.process.wait(PATIENCE)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.ended()

    def predict(
        self, value: object = None, path: str = "/v1/models/model:predict", **options: object
    ) -> httpx.Response:
        return httpx.post(self.address + path, content=json.dumps(value), timeout=PATIENCE, **options)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.address + path, timeout=PATIENCE)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)


class ModelProject:
    """Writes model folders and secrets, and serves them."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "tiny"
        self.secrets_dir = tmp_path / "secrets"
        self.secrets_dir.mkdir()
        self._logs = tmp_path
        self.started: list[RunningServer] = []

    def secret(self, name: str, value: bytes) -> None:
        """Write to another file and rename it, so that the server never reads half a value."""
        temporary = self.secrets_dir.parent / f".{name}"
        temporary.write_bytes(value)
        temporary.rename(self.secrets_dir / name)

    def file(self, path: str, text: str) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))

    def __call__(
        self,
        code: str = "",
        *,
        declared: tuple[str, ...] = ("token",),
        model_file: str = "model/model.py",
        allow_missing: tuple[str, ...] = ("all",),
        concurrency: int = 1,
        port: int = 0,
        drain_seconds: float = 30.0,
        environ: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        mask_responses: bool = False,
        python: str = sys.executable,
        stable_seconds: float = 60.0,
    ) -> RunningServer:
        """Serve a model with this code. Secrets that the test did not set may be missing.

        A worker that ran for `stable_seconds` is restarted without a longer delay.
        """
        if code:
            self.file(model_file, code)
        given = {
            "folder": str(self.folder),
            "secrets_dir": str(self.secrets_dir),
            "declared": declared,
            "model_file": model_file,
            "allow_missing": allow_missing,
            "concurrency": concurrency,
            "port": port,
            "drain_seconds": drain_seconds,
            "mask_responses": mask_responses,
            "python": python,
            "stable_seconds": stable_seconds,
        }
        number = len(self.started)
        out, err = self._logs / f"out{number}", self._logs / f"err{number}"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "tests.serving.driver", json.dumps(given)],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=Path(__file__).parents[2],
                env={**os.environ, **(environ or {})},
            )
        self.started.append(RunningServer(process, out, err))
        return self.started[-1]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[ModelProject]:
    project = ModelProject(tmp_path)
    yield project
    for served in project.started:
        if served.process.poll() is None:
            served.process.kill()
        served.process.wait()
