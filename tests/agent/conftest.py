"""Fixtures: a folder in memory, and `gusset agent` as a process beside a running manager."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.test_exec import state
from tests.conftest import Cli
from tests.killed_runs import ends_with_run
from tests.manager.conftest import Manager, admin, manager, set_up  # noqa: F401  # fixtures
from tests.serving.conftest import children, eventually

DEPLOYMENT = "my-app"


@pytest.fixture
def memory() -> Iterator[Path]:
    """An empty folder in memory."""
    path = Path(tempfile.mkdtemp(prefix="gusset-test-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


def contents(folder: Path) -> dict[str, bytes]:
    """The values by name, as a process finds them that lists the folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("..")}


def put(client: httpx.Client, **values: bytes) -> None:
    """Set secrets."""
    for name, value in values.items():
        body = {"name": name, "value": base64.b64encode(value).decode(), "encoding": "base64"}
        done = client.post("/v1/secrets", json=body)
        assert done.status_code == 200, done.text


def delete(client: httpx.Client, name: str) -> None:
    assert client.delete(f"/v1/secrets/{name}", params={"force": "true"}).status_code == 200


def replicas(client: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"/v1/deployments/{DEPLOYMENT}").json()["replicas"]
    return found


class Agent:
    """`gusset agent` as a process; its output goes to files."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, out: Path, err: Path) -> None:
        self.process, self.folder, self._out, self._err = process, folder, out, err

    @property
    def output(self) -> str:
        return self._out.read_text()

    @property
    def lines(self) -> list[str]:
        return self.output.split("\n")[:-1]  # whole ones

    @property
    def log(self) -> str:
        return self._err.read_text()

    def until(self, condition: Callable[[], object], what: str = "the condition") -> None:
        eventually(lambda: condition() or self.process.poll() is not None, f"{what}: {self.log}")
        assert condition(), f"{what}: exit {self.process.poll()}\n{self.log}"

    def logged(self, text: str, times: int = 1) -> None:
        """Wait until the log has a text so often."""
        self.until(lambda: self.log.count(text) >= times, text)

    def has(self, **values: bytes) -> None:
        """Wait until the folder has just these values."""
        eventually(lambda: self._contents() == values, f"{list(values)}: {self.log}")

    def _contents(self) -> dict[str, bytes] | None:
        try:
            return contents(self.folder)
        except FileNotFoundError:  # in the middle of a change
            return None

    def stop(self, *numbers: int) -> int:
        """Send signals, SIGTERM if none are given; the exit status."""
        if len(numbers) > 1:  # all at once: it could end before the last one is sent
            self.process.send_signal(signal.SIGSTOP)
            eventually(lambda: state(self.process.pid) == "T", "the agent is stopped")
            numbers = (*numbers, signal.SIGCONT)
        for number in numbers or (signal.SIGTERM,):
            self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
def token_file(manager: Manager, admin: httpx.Client, tmp_path: Path) -> Callable[..., Path]:  # noqa: F811
    """Registers the deployment with these secrets; the file has its token."""

    def register(*names: str) -> Path:
        done = admin.post("/v1/deployments", json={"name": DEPLOYMENT, "secrets": list(names)})
        assert done.status_code == 200, done.text
        path = tmp_path / "token"
        path.unlink(missing_ok=True)
        path.write_text(done.json()["token"])
        path.chmod(0o600)
        return path

    return register


@pytest.fixture
def elsewhere(manager: Manager, tmp_path: Path) -> Cli:  # noqa: F811
    """The command line of another machine, which knows the manager and has the deployment's token file."""
    environ = manager.gusset.environ | {
        "GUSSET_HOME": str(tmp_path / "elsewhere"),
        "GUSSET_SETTINGS": str(tmp_path / "elsewhere.toml"),
        "GUSSET_MANAGER": manager.address,
        "GUSSET_TOKEN_FILE": str(tmp_path / "token"),
    }
    return Cli(tmp_path / "elsewhere", environ)


@pytest.fixture
def start(elsewhere: Cli, memory: Path, tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    """Starts agents, by default of `memory`; those that still run at the end are killed."""
    running: list[Agent] = []

    def start_agent(*options: str, folder: Path = memory, **environ: str) -> Agent:
        out, err = tmp_path / f"out{len(running)}", tmp_path / f"err{len(running)}"
        words = ["agent", "--deployment", DEPLOYMENT, "--dir", str(folder), *options]
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [*ends_with_run("KILL"), sys.executable, "-m", "gusset", *words],
                env=elsewhere.environ | environ,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
        running.append(Agent(process, folder, out, err))
        return running[-1]

    yield start_agent
    for agent in running:
        if agent.process.poll() is None:
            commands = children(agent.process.pid)  # they would outlive an agent that is killed
            agent.process.kill()
            agent.process.wait()
            for command in commands:
                with suppress(ProcessLookupError):
                    os.kill(command, signal.SIGKILL)
        assert "a bug in gusset" not in agent.log, agent.log
