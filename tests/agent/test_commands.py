"""The commands of `gusset agent`: --exec supervises one, --on-change runs one after each change."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import pytest

from gusset.cli.change_command import ChangeCommand
from gusset.cli.command_process import DirectCommand
from gusset.secrets.masking import Masker
from tests.agent.conftest import DEPLOYMENT, Agent, put, replicas
from tests.cli.test_exec_terminal import Terminal
from tests.conftest import Cli
from tests.serving.conftest import eventually, is_running

pytestmark = pytest.mark.slow

OLD, NEW, NEWER = b"s3cr3t-v4lue-before", b"an0ther-v4lue-after", b"a-third-v4lue-later"
Start = Callable[..., Agent]
# Prints the reversed value, which is not masked, then waits for signals.
SERVER = """
import os, signal, sys, time
def show(number=None, frame=None):
    value = open(os.environ["GUSSET_SECRETS_DIR"] + "/token").read()
    print("start" if number is None else signal.Signals(number).name, value[::-1], flush=True)
for name in ("HUP", "USR1", "USR2"):
    signal.signal(getattr(signal, "SIG" + name), show)
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, show)
if "masked" in sys.argv: print(open(os.environ["GUSSET_SECRETS_DIR"] + "/token").read(), flush=True)
show()
agent = os.getppid()
while os.getppid() == agent: time.sleep(1)
"""


@pytest.fixture(autouse=True)
def secrets(request: pytest.FixtureRequest) -> None:
    """One secret, and a token file, for tests with an agent."""
    if "start" in request.fixturenames:
        put(request.getfixturevalue("admin"), token=OLD)
        request.getfixturevalue("token_file")("token")


@pytest.fixture
def server(tmp_path: Path) -> str:
    """The command line of a server that shows when it starts and which signals it gets."""
    (tmp_path / "server.py").write_text(SERVER)
    return f"{sys.executable} {tmp_path / 'server.py'}"


def back(value: bytes) -> str:
    return value[::-1].decode()


# --- exec


def test_a_change_restarts_the_command_after_the_files_were_replaced(
    admin: httpx.Client, start: Start, server: str
) -> None:
    agent = start("--exec", server)
    agent.until(lambda: agent.lines == [f"start {back(OLD)}"])
    put(admin, token=NEW)
    agent.until(lambda: agent.lines == [f"start {back(OLD)}", f"start {back(NEW)}"])


def test_a_change_sends_the_command_the_signal(admin: httpx.Client, start: Start, server: str) -> None:
    agent = start("--exec", server, "--signal", "usr1")
    agent.until(lambda: agent.lines == [f"start {back(OLD)}"])
    put(admin, token=NEW)
    agent.until(lambda: agent.lines == [f"start {back(OLD)}", f"SIGUSR1 {back(NEW)}"])


def test_the_output_of_the_command_is_masked(admin: httpx.Client, start: Start, server: str) -> None:
    """Values before and after a change; what was masked is reported to the manager."""
    agent = start("--exec", f"{server} masked")
    agent.until(lambda: agent.lines == ["***", f"start {back(OLD)}"])
    put(admin, token=NEW)
    agent.until(lambda: agent.lines[2:] == ["***", f"start {back(NEW)}"])
    records = admin.get("/v1/audit", params={"action": "secret.masked"})
    agent.until(lambda: records.status_code == 200, records.text)

    def reported() -> bool:
        found = admin.get("/v1/audit", params={"action": "secret.masked"}).json()["records"]
        return bool(found)

    eventually(reported)


def test_signals_are_forwarded_and_the_exit_status_is_that_of_the_command(
    start: Start, server: str, memory: Path
) -> None:
    agent = start("--exec", server)
    agent.until(lambda: agent.lines == [f"start {back(OLD)}"])
    agent.process.send_signal(signal.SIGUSR2)
    agent.until(lambda: agent.lines[1:] == [f"SIGUSR2 {back(OLD)}"])
    agent.process.send_signal(signal.SIGHUP)
    agent.until(lambda: agent.lines[2:] == [f"SIGHUP {back(OLD)}"])

    assert agent.stop(signal.SIGTERM, signal.SIGTERM) == 128 + signal.SIGTERM
    assert list(memory.iterdir()) == []


@pytest.mark.parametrize(("code", "status"), [("exit 7", 7), ("exit 0", 0), ("kill -KILL $$", 128 + 9)])
def test_a_command_that_ends_by_itself_ends_the_agent_with_its_status(
    start: Start, memory: Path, code: str, status: int
) -> None:
    agent = start("--exec", f"sh -c '{code}'")
    assert agent.process.wait(30) == status
    assert list(memory.iterdir()) == []


def test_the_command_starts_only_when_the_folder_is_whole(start: Start) -> None:
    agent = start("--exec", "sh -c 'wc -c < $GUSSET_SECRETS_DIR/token'")
    assert agent.process.wait(30) == 0
    assert agent.output.strip() == str(len(OLD))


def test_a_command_that_ignores_sigterm_is_killed_for_a_restart(
    admin: httpx.Client, start: Start, server: str
) -> None:
    """A signal to the agent itself is only forwarded: whoever sent it decides how long to wait."""
    agent = start("--exec", f"{server} stubborn")
    agent.until(lambda: agent.lines == [f"start {back(OLD)}"])
    agent.process.terminate()
    agent.until(lambda: agent.lines[1:] == [f"SIGTERM {back(OLD)}"])
    assert agent.process.poll() is None
    agent.stop(signal.SIGKILL)


def test_a_stubborn_command_is_restarted_after_the_grace_period(
    admin: httpx.Client, start: Start, server: str
) -> None:
    agent = start("--exec", f"{server} stubborn")
    agent.until(lambda: agent.lines == [f"start {back(OLD)}"])
    put(admin, token=NEW)
    agent.until(lambda: agent.lines[1:] == [f"SIGTERM {back(NEW)}"])
    assert [each["versions"] for each in replicas(admin)] == [{"token": 1}]  # what the command still uses

    agent.until(lambda: agent.lines[2:] == [f"start {back(NEW)}"])
    assert "is killed" in agent.log
    eventually(lambda: [each["versions"] for each in replicas(admin)] == [{"token": 2}])
    agent.stop(signal.SIGKILL)


def test_the_output_is_complete_however_the_command_ends(start: Start) -> None:
    agent = start("--exec", "sh -c 'seq 20000; echo end >&2'")
    assert agent.process.wait(60) == 0
    assert agent.output.split() == [str(number) for number in range(1, 20001)]
    assert "\nend\n" in agent.log


def test_at_a_terminal_the_command_has_one_whose_output_is_masked(
    elsewhere: Cli, start: Start, memory: Path
) -> None:
    code = "tty; cat $GUSSET_SECRETS_DIR/token; echo; read x; exit 3"
    words = ["agent", "--deployment", DEPLOYMENT, "--dir", str(memory), "--exec", f"sh -c '{code}'"]
    terminal = Terminal([sys.executable, "-m", "gusset", *words], elsewhere.environ)
    try:
        shown = terminal.until(b"***")
        assert b"/dev/pts/" in shown and b"INFO Ready: 1 secret of my-app" in shown
        terminal.type(b"\r")
        assert terminal.status() == 3
    finally:
        terminal.close()
    assert list(memory.iterdir()) == []


# --- on-change


def test_the_command_runs_once_per_change_and_not_at_the_start(
    admin: httpx.Client, start: Start, tmp_path: Path
) -> None:
    agent = start("--on-change", f"sh -c 'cat $GUSSET_SECRETS_DIR/token >> {tmp_path}/seen; echo ran'")
    agent.logged("Ready")
    for number, value in enumerate((NEW, NEWER), 1):
        put(admin, token=value)
        agent.logged("--on-change command has run", number)
    assert (tmp_path / "seen").read_bytes() == NEW + NEWER
    assert agent.lines == ["ran", "ran"] or agent.lines[1:] == ["ran", "ran"]


def test_a_failure_is_logged_and_counted_and_the_next_change_runs_it_again(
    admin: httpx.Client, start: Start
) -> None:
    agent = start("--on-change", "sh -c 'cat $GUSSET_SECRETS_DIR/token; exit 3'")
    agent.logged("Ready")
    put(admin, token=NEW)
    agent.logged("failed: exit status 3 (1 of 1 runs failed)")
    put(admin, token=NEWER)
    agent.logged("failed: exit status 3 (2 of 2 runs failed)")
    assert "***" in agent.output and back(NEW)[::-1] not in agent.output + agent.log


def test_a_command_that_a_signal_without_a_name_ends_is_run_again_at_the_next_change(
    admin: httpx.Client, start: Start
) -> None:
    """Of the real-time signals, which programs may send as they like, only the first and the last have a name."""
    agent = start("--on-change", "sh -c 'kill -40 $$'")
    agent.logged("Ready")
    put(admin, token=NEW)
    agent.logged("failed: ended by signal 40 (1 of 1 runs failed)")
    put(admin, token=NEWER)
    agent.logged("failed: ended by signal 40 (2 of 2 runs failed)")


def test_files_of_an_earlier_agent_that_are_out_of_date_are_a_change(
    admin: httpx.Client, start: Start, tmp_path: Path
) -> None:
    assert start("--once").process.wait(30) == 0
    agent = start("--keep-files", "--on-change", f"touch {tmp_path}/ran")
    agent.logged("Ready")
    agent.stop()
    assert not (tmp_path / "ran").exists()

    put(admin, token=NEW)
    agent = start("--keep-files", "--on-change", f"touch {tmp_path}/ran")
    agent.logged("--on-change command has run")


def test_a_command_that_runs_at_the_end_gets_sigterm(admin: httpx.Client, start: Start) -> None:
    agent = start("--on-change", "sh -c 'echo $$; exec sleep 60'")
    agent.logged("Ready")
    put(admin, token=NEW)
    agent.until(lambda: any(line.isdecimal() for line in agent.lines))
    [pid] = [int(line) for line in agent.lines if line.isdecimal()]
    assert agent.stop() == 0
    assert not is_running(pid)


# --- ChangeCommand, with a command in this process


def changes(words: list[str], **limits: float) -> ChangeCommand:
    command = DirectCommand(words, Masker(), has_input=False)
    environment: Mapping[bytes, bytes] = os.environb
    made = ChangeCommand(command, lambda: environment, **limits)
    made.start()
    return made


def test_changes_during_a_run_are_one_further_run(tmp_path: Path) -> None:
    go = tmp_path / "go"  # which ends the first run
    command = changes(
        ["sh", "-c", f"echo run >> {tmp_path}/runs; until [ -e {go} ]; do sleep 0.1; done; sleep 1"]
    )
    command.request()
    eventually(lambda: (tmp_path / "runs").exists())
    for _ in range(5):
        time.sleep(0.05)  # one request after another, not a burst
        command.request()
    go.touch()
    eventually(lambda: command.runs == 2)
    time.sleep(2.5)  # no third run begins: it would, after the second one, which takes a second
    assert (tmp_path / "runs").read_text() == "run\n" * 2
    command.stop()
    assert command.failures == 0


def test_a_burst_of_changes_is_one_run() -> None:
    command = changes(["true"])
    for _ in range(20):
        command.request()
    eventually(lambda: command.runs)
    time.sleep(0.5)  # no further run begins
    command.stop()
    assert (command.runs, command.failures) == (1, 0)


@pytest.mark.parametrize(
    "code", ["sleep 60", "trap '' TERM; sleep 60 & wait; sleep 60"], ids=["ends", "ignores TERM"]
)
def test_a_run_that_takes_too_long_is_ended(code: str, caplog: pytest.LogCaptureFixture) -> None:
    command = changes(["sh", "-c", code], timeout=0.3, grace_period=0.5)
    command.request()
    eventually(lambda: "not finished" in caplog.text)
    command.stop()
    assert command.failures == 1


def test_a_command_that_is_gone_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    command = changes(["/no/such/command"])
    command.request()
    eventually(lambda: command.failures == 1)
    command.stop()
    assert "there is no command" in caplog.text
    assert not [each for each in threading.enumerate() if each.name == "gusset-change-command"]
