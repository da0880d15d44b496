"""`gusset exec --watch`: a command with the newest values; and `--all`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.cli.test_exec_terminal import Terminal
from tests.conftest import Cli, leaks_in
from tests.serving.conftest import eventually

OLD, NEW = b"s3cr3t-v4lue-before", b"an0ther-v4lue-after"
# Prints the reversed value, which is not masked, then waits for signals.
SERVER = """
import os, signal, sys, time
def show(number=None, frame=None):
    file = os.environ["GUSSET_SECRETS_DIR"] + "/token"
    value = open(file).read() if os.path.exists(file) else "enon"
    print("start" if number is None else "signal", value[::-1], os.environ.get("TOKEN", "enon")[::-1], flush=True)
signal.signal(signal.SIGHUP, show)
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
show()
gusset = os.getppid()
while os.getppid() == gusset:
    time.sleep(0.1)  # short: of a signal just before it blocks, the handler runs only after it
"""


class Running:
    """`gusset exec` as a process; its output goes to files."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.process, self._out, self._err = process, out, err

    @property
    def lines(self) -> list[str]:
        return self._out.read_text().split("\n")[:-1]  # whole ones

    @property
    def errors(self) -> str:
        return self._err.read_text()

    def has(self, *lines: str) -> None:
        """Wait until these are all lines of the output."""
        eventually(lambda: len(self.lines) >= len(lines), f"{lines}, but {self.errors}")
        assert self.lines == list(lines)


@contextmanager
def started(gusset: Cli, tmp_path: Path, *args: str, **extra: str) -> Iterator[Running]:
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "gusset", "exec", *args],
            env=gusset.environ | extra,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    try:
        yield Running(process, out, err)
    finally:
        process.terminate()
        process.wait(30)


def server(*options: str) -> tuple[str, ...]:
    return (*options, "--", sys.executable, "-c", SERVER)


def back(value: bytes) -> str:
    return value[::-1].decode()


@pytest.fixture(autouse=True)
def stored(gusset: Cli) -> None:
    gusset("secret", "set", "token", input=OLD)


def test_a_new_version_restarts_the_command_with_new_files_and_variables(gusset: Cli, tmp_path: Path) -> None:
    options = server("--secret", "token", "--env", "TOKEN=token", "--watch", "restart")
    with started(gusset, tmp_path, *options) as running:
        running.has(f"start {back(OLD)} {back(OLD)}")

        gusset("secret", "set", "token", input=NEW)

        running.has(f"start {back(OLD)} {back(OLD)}", f"start {back(NEW)} {back(NEW)}")
        assert "token" in running.errors
        assert not leaks_in(running.errors.encode(), OLD, NEW)


def test_a_new_version_is_in_the_file_before_the_signal(gusset: Cli, tmp_path: Path) -> None:
    with started(gusset, tmp_path, *server("--secret", "token", "--watch", "hup")) as running:
        running.has(f"start {back(OLD)} none")
        gusset("secret", "set", "token", input=NEW)
        running.has(f"start {back(OLD)} none", f"signal {back(NEW)} none")


def test_a_burst_of_changes_is_one_restart(gusset: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    names = [f"s{number}" for number in range(20)]
    for name in names:
        (folder / name).write_bytes(OLD)
    script = "import os, time; d = os.environ['GUSSET_SECRETS_DIR']; print('start', *sorted({open(f'{d}/{n}').read()[::-1] for n in os.listdir(d)}), flush=True); time.sleep(60)"
    options = (
        "--secrets-dir",
        str(folder),
        "--all",
        "--watch",
        "restart",
        "--",
        sys.executable,
        "-c",
        script,
    )
    with started(gusset, tmp_path, *options) as running:
        running.has(f"start {back(OLD)}")
        for name in names:
            (folder / "..next").write_bytes(NEW)
            (folder / "..next").rename(folder / name)
        running.has(f"start {back(OLD)}", f"start {back(NEW)}")
        assert running.errors.count("Restarting") == 1


def test_values_before_and_after_a_change_are_masked(gusset: Cli, tmp_path: Path) -> None:
    script = 'cat "$GUSSET_SECRETS_DIR/token"; echo; sleep 60'
    with started(
        gusset, tmp_path, "--secret", "token", "--watch", "restart", "--", "sh", "-c", script
    ) as running:
        running.has("***")
        gusset("secret", "set", "token", input=NEW)
        running.has("***", "***")


def test_a_command_that_does_not_end_is_killed_after_the_grace_period(gusset: Cli, tmp_path: Path) -> None:
    options = (*server("--secret", "token", "--watch", "restart"), "stubborn")
    with started(gusset, tmp_path, *options) as running:
        running.has(f"start {back(OLD)} none")
        gusset("secret", "set", "token", input=NEW)
        running.has(f"start {back(OLD)} none", f"start {back(NEW)} none")
        assert "is killed" in running.errors
        running.process.send_signal(signal.SIGKILL)


def test_a_command_that_ends_by_itself_ends_gusset(gusset: Cli, tmp_path: Path) -> None:
    with started(
        gusset, tmp_path, "--secret", "token", "--watch", "restart", "--", "sh", "-c", "exit 7"
    ) as running:
        assert running.process.wait(30) == 7


def test_sigterm_ends_the_command_without_a_restart(gusset: Cli, tmp_path: Path) -> None:
    with started(gusset, tmp_path, *server("--secret", "token", "--watch", "restart")) as running:
        running.has(f"start {back(OLD)} none")
        running.process.terminate()
        assert running.process.wait(30) == 128 + signal.SIGTERM
        assert len(running.lines) == 1


def test_a_deleted_secret_has_no_file_any_more_and_a_warning_names_it(gusset: Cli, tmp_path: Path) -> None:
    with started(gusset, tmp_path, *server("--secret", "token", "--watch", "restart")) as running:
        running.has(f"start {back(OLD)} none")
        gusset("secret", "delete", "token", "--force")
        running.has(f"start {back(OLD)} none", "start none none")
        assert "WARNING token was deleted" in running.errors
        assert "gusset secret restore token" in running.errors


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--env", "T=token", "--watch", "HUP"], b"--watch restart"),
        (["--secret", "token", "--watch", "KILL"], b"--watch restart"),
        (["--secret", "token", "--watch", "reload"], b"--watch HUP"),
        (["--all", "--secret", "token"], b"leave one"),
    ],
    ids=["a signal with variables", "a signal that cannot be handled", "no signal", "--all with a name"],
)
def test_a_wrong_call_ends_with_status_2_and_a_hint(gusset: Cli, options: list[str], hint: bytes) -> None:
    assert hint in gusset("exec", *options, "--", "true", status=2).stderr


def test_all_provides_every_secret_of_the_vault_as_a_file(gusset: Cli) -> None:
    gusset("secret", "set", "second", input=NEW)
    gusset("secret", "set", "deleted", input=b"deleted-value")
    gusset("secret", "delete", "deleted")

    done = gusset("exec", "--all", "--", "sh", "-c", "ls $GUSSET_SECRETS_DIR; env")

    assert done.stdout.startswith(b"second\ntoken\n")
    assert not leaks_in(done.stdout, OLD, NEW)
    assert b"***" not in done.stdout  # no variable has a value
    record = json.loads(gusset("audit", "show", "--action", "secret.deliver", "--output", "json").stdout)[
        "records"
    ][0]
    assert record["details"]["versions"] == {"second": 1, "token": 1}


def test_all_and_a_variable_by_name(gusset: Cli) -> None:
    script = "ls $GUSSET_SECRETS_DIR; echo $TOKEN"
    assert gusset("exec", "--all", "--env", "TOKEN=token", "--", "sh", "-c", script).stdout == b"token\n***\n"


def test_all_of_a_folder_are_its_files_but_for_hidden_ones(gusset: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    (folder / "..data").mkdir(parents=True)
    (folder / "..data" / "key").write_bytes(NEW)
    (folder / "key").symlink_to("..data/key")
    (folder / "other").write_bytes(OLD)
    options = ("exec", "--all", "--secrets-dir", str(folder), "--")

    assert gusset(*options, "sh", "-c", "ls -A $GUSSET_SECRETS_DIR").stdout == b"key\nother\n"

    (folder / "not a name").write_bytes(OLD)
    assert str(folder).encode() in gusset(*options, "true", status=2).stderr


def test_all_of_no_secrets_is_an_error(gusset: Cli, tmp_path: Path) -> None:
    gusset("secret", "delete", "token")
    assert b"gusset secret set" in gusset("exec", "--all", "--", "true", status=5).stderr


def test_values_are_in_no_argument_environment_or_file_while_the_command_runs(
    gusset: Cli, tmp_path: Path
) -> None:
    """Neither of gusset and its processes nor of the command, before and after a change."""
    with started(gusset, tmp_path, *server("--all", "--watch", "HUP")) as running:
        running.has(f"start {back(OLD)} none")
        gusset("secret", "set", "token", input=NEW)
        running.has(f"start {back(OLD)} none", f"signal {back(NEW)} none")
        for pid in [running.process.pid, *_descendants(running.process.pid)]:
            assert not leaks_in(_arguments_and_environment(pid), OLD, NEW)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if leaks_in(path.read_bytes(), OLD, NEW)] == []
    assert not leaks_in(gusset("audit", "export").stdout, OLD, NEW)


def _arguments_and_environment(pid: int) -> bytes:
    """Those that this account may read: a process of gusset hides its environment from all but root."""
    with suppress(PermissionError):
        return Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def _descendants(pid: int) -> list[int]:
    children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [below for child in children for below in _descendants(child)]


def test_at_a_terminal_a_restart_keeps_the_terminal_and_what_is_typed(gusset: Cli) -> None:
    script = 'printf "%s got %s\\n" "$$" "$(rev < $GUSSET_SECRETS_DIR/token)"; stty -echo; read x; echo "read $x"; exit 3'
    options = ("exec", "--secret", "token", "--watch", "restart", "--", "sh", "-c", script)
    terminal = Terminal([sys.executable, "-m", "gusset", *options], gusset.environ)
    try:
        terminal.until(b"got " + OLD[::-1])
        gusset("secret", "set", "token", input=NEW)
        shown = terminal.until(b"got " + NEW[::-1])
        assert b"Restarting the command with the new values.\r\n" in shown
        terminal.type(b"word\r")
        assert b"read word\r\n" in terminal.rest()
        assert terminal.status() == 3
    finally:
        terminal.close()


def test_at_a_terminal_no_process_of_gusset_has_a_value_in_its_environment(gusset: Cli) -> None:
    """But the command has the one that a person named."""
    options = ("exec", "--env", "TOKEN=token", "--", "sh", "-c", "echo $TOKEN $$ up; exec sleep 60")
    terminal = Terminal([sys.executable, "-m", "gusset", *options], gusset.environ)
    try:
        pid = int(terminal.until(b" up").split()[-2])
        processes = [terminal.pid, *_descendants(terminal.pid)]
        # While `sh` becomes `sleep`, its environment is empty for a moment.
        eventually(lambda: bool(leaks_in(_arguments_and_environment(pid), OLD)))
        having = [each for each in processes if leaks_in(_arguments_and_environment(each), OLD)]
        assert having == [pid]
        os.kill(pid, signal.SIGTERM)
        assert terminal.status() == 128 + signal.SIGTERM
    finally:
        terminal.close()
