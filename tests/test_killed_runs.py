"""What a killed test run left is removed by the next one, and nothing of a run that goes on."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import killed_runs
from tests.serving.conftest import eventually, is_running


@pytest.fixture
def ended() -> int:
    """The id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_only_names_of_ended_runs_are_found(ended: int) -> None:
    names = [f"gusset{ended}", killed_runs.own_name("gusset"), "gusset1", "gusset", f"gusset{ended}x", "eth0"]
    assert list(killed_runs.of_ended_runs("gusset", names)) == [f"gusset{ended}"]


def test_the_folder_of_an_ended_docker_is_removed(
    ended: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    left, own = (tmp_path / f"{killed_runs.DOCKER}{pid}" for pid in (ended, os.getpid()))
    for folder in (left, own):
        (folder / "data").mkdir(parents=True)
    killed_runs.remove_left_dockers()
    assert not left.exists() and own.exists()


@pytest.mark.system("useradd")
def test_the_account_of_an_ended_run_is_removed(ended: int) -> None:
    left, own = (f"{killed_runs.ACCOUNT}{pid}" for pid in (ended, os.getpid()))
    if os.geteuid() != 0:
        pytest.skip("only root can create accounts")
    try:
        for name in (left, own):
            subprocess.run(["useradd", name], check=True)
        killed_runs.remove_left_accounts()
        found = [each.pw_name for each in pwd.getpwall()]
        assert left not in found and own in found
    finally:
        for name in (left, own):
            killed_runs.remove_account(name)


@pytest.mark.system("ip")
def test_networks_of_ended_runs_are_removed(ended: int) -> None:
    """The namespace and both kinds of interfaces; those of this run stay."""
    made: list[Callable[[], None]] = []
    left, own = (f"{killed_runs.CABLE}{pid}" for pid in (ended, os.getpid()))
    try:
        for name in (left, own):
            subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True, capture_output=True)
            made.append(lambda name=name: killed_runs.remove_interface(name))  # type: ignore[misc]
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("interfaces cannot be made")
    try:
        killed_runs.remove_left_networks()
        found = os.listdir("/sys/class/net")
        assert left not in found and own in found
    finally:
        for remove in made:
            remove()


def test_a_process_ends_with_the_run_that_has_started_it() -> None:
    """Also when that is killed by a signal that no process can handle."""
    if not (words := killed_runs.ends_with_run("KILL")):
        pytest.skip("there is no setpriv")
    # The shell prints its id itself: it then has been told which signal to get.
    code = (
        "import subprocess, time\n"
        f"subprocess.Popen([*{words!r}, 'sh', '-c', 'echo $$; exec sleep 300'])\n"
        "time.sleep(300)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        started = int(run.stdout.readline())
        assert is_running(started)
        run.send_signal(signal.SIGKILL)
    eventually(lambda: not is_running(started))
