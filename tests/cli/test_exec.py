"""`gusset exec -- COMMAND`: any command, with chosen secrets only."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, leaks_in
from tests.serving.conftest import eventually

VALUE = b"s3cr3t-v4lue-of-exec\nsecond line"


@pytest.fixture(autouse=True)
def stored(gusset: Cli) -> None:
    gusset("secret", "set", "token", "--exact", input=VALUE)
    gusset("secret", "set", "other", input=b"another-secret-value")


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


@contextmanager
def started(gusset: Cli, *command: str, before: Sequence[str] = (), **options: Any) -> Iterator[Any]:
    """`gusset exec --secret token -- COMMAND` as a process, with its output in a pipe; `before` starts it."""
    arguments = [*before, sys.executable, "-m", "gusset", "exec", "--secret", "token", "--", *command]
    with subprocess.Popen(arguments, env=gusset.environ, stdout=subprocess.PIPE, **options) as process:
        yield process


def test_secrets_are_files_in_memory_for_one_account(gusset: Cli) -> None:
    """A file of mode 0400 in a folder of mode 0700, on a file system in memory, exact to the byte."""
    script = (
        "import os, stat, subprocess; d = os.environ['GUSSET_SECRETS_DIR']; f = os.path.join(d, 'token');"
        "print(oct(stat.S_IMODE(os.stat(d).st_mode)), oct(stat.S_IMODE(os.stat(f).st_mode)), os.listdir(d));"
        "print(subprocess.check_output(['stat', '-f', '-c', '%T', d]).decode().strip());"
        "print(open(f, 'rb').read()[::-1].hex()); print(d)"
    )
    lines = gusset("exec", "--secret", "token", "--", *python(script)).stdout.decode().splitlines()

    assert lines[0] == "0o700 0o400 ['token']"
    assert lines[1] in ("tmpfs", "ramfs")
    assert bytes.fromhex(lines[2])[::-1] == VALUE
    assert not Path(lines[3]).exists()


def test_an_environment_variable_has_a_value_only_with_env(gusset: Cli) -> None:
    """`--env VARIABLE=NAME` sets it; nothing else of the vault is in the environment."""
    script = "import os; print(os.environ['THE_TOKEN'][::-1]); print('another' in str(os.environ))"

    done = gusset("exec", "--env", "THE_TOKEN=token", "--", *python(script))

    assert done.stdout.decode() == VALUE[::-1].decode() + "\nFalse\n"


def test_values_in_output_are_masked(gusset: Cli) -> None:
    """Values that the command prints, on either stream, are replaced."""
    script = (
        "import os, sys, base64; v = open(os.environ['GUSSET_SECRETS_DIR'] + '/token', 'rb').read();"
        "sys.stdout.buffer.write(b'out ' + v + b'\\n');"
        "sys.stderr.write('err ' + base64.b64encode(v).decode())"
    )
    done = gusset("exec", "--secret", "token", "--", *python(script))

    assert done.stdout == b"out ***\n"
    assert done.stderr == b"err ***"


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_both_streams_in_one_place_keep_the_order_in_which_they_were_written(
    gusset: Cli, tmp_path: Path, kind: str
) -> None:
    """`gusset exec -- COMMAND > log 2>&1` and `2>&1 | less` show what COMMAND alone would show."""
    script = (
        "import os; v = open(os.environ['GUSSET_SECRETS_DIR'] + '/token', 'rb').read()\n"
        "for i in range(500): os.write(1, b'out '); os.write(2, b'e'); os.write(2, b'rr ' + v + b'\\n')"
    )
    with (tmp_path / "log").open("wb+") as log:
        into = subprocess.PIPE if kind == "pipe" else log
        done = subprocess.run(
            [sys.executable, "-m", "gusset", "exec", "--secret", "token", "--", *python(script)],
            env=gusset.environ,
            stdout=into,
            stderr=subprocess.STDOUT,
            check=True,
        )
        shown = done.stdout if kind == "pipe" else (tmp_path / "log").read_bytes()

    assert shown == b"out err ***\n" * 500


def test_the_exit_status_is_that_of_the_command(gusset: Cli) -> None:
    """Its status, or 128 and the signal that ended it."""
    gusset("exec", "--secret", "token", "--", *python("raise SystemExit(42)"), status=42)
    gusset("exec", "--secret", "token", "--", *python("import os; os.kill(os.getpid(), 15)"), status=143)


def test_missing_secrets_are_listed_together(gusset: Cli) -> None:
    """Nothing is run, and one message names all missing secrets."""
    done = gusset(
        "exec", "--secret", "token", "--secret", "a", "--env", "b", "--", "touch", "/nonexistent", status=5
    )

    assert b"a, b" in done.stderr and b"gusset secret set a" in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["--", "true"],
        ["--secret", "token"],
        ["--secret", "token", "--", "no-such-command-here"],
        ["--secret", "token", "--", ""],
        ["--env", "A=B=token", "--", "true"],
        ["--env", "=token", "--", "true"],
    ],
    ids=["no secret", "no command", "unknown command", "empty command", "two equals signs", "no variable"],
)
def test_a_wrong_call_ends_with_status_2_and_a_hint(gusset: Cli, args: list[str]) -> None:
    assert gusset("exec", *args, status=2).stderr


@pytest.mark.parametrize(
    "before", [(), ("sh", "-c", 'exec "$@" <&-', "sh")], ids=["", "with-a-closed-standard-input"]
)
def test_the_folder_is_removed_when_gusset_is_killed(gusset: Cli, before: tuple[str, ...]) -> None:
    """After `kill -9` of gusset no file is left: a reaper sees its pipe close, whatever number the pipe has."""
    script = "import os, sys, time; print(os.environ['GUSSET_SECRETS_DIR'], flush=True); time.sleep(60)"
    with started(gusset, *python(script), before=before, start_new_session=True) as process:
        folder = Path(process.stdout.readline().decode().strip())
        assert (folder / "token").exists()

        process.kill()
        process.wait()
        eventually(lambda: not folder.exists(), "the folder is removed")
        os.killpg(process.pid, signal.SIGKILL)  # the command itself


# Not one long sleep: of a signal just before it blocks, Python's handler would run only after it.
UNTIL_A_SIGNAL = "while True: time.sleep(0.1)\n"
SIGNALS = ["SIGINT", "SIGQUIT", "SIGHUP", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGCONT"]


@pytest.mark.parametrize("name", SIGNALS)
def test_each_signal_is_forwarded_to_the_command(gusset: Cli, name: str) -> None:
    """A signal sent to gusset alone reaches the command, whose exit status counts."""
    script = (
        f"import signal, sys, time; signal.signal(signal.{name}, lambda *_: sys.exit(7))\n"
        f"print('up', flush=True)\n{UNTIL_A_SIGNAL}"
    )
    with started(gusset, *python(script)) as process:
        process.stdout.readline()
        process.send_signal(signal.Signals[name])
        assert process.wait(30) == 7


def test_a_stop_signal_stops_the_command_and_gusset_until_they_are_continued(gusset: Cli) -> None:
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with started(gusset, *python(script), process_group=0) as process:
        both = (process.pid, int(process.stdout.readline()))

        process.send_signal(signal.SIGTSTP)
        eventually(lambda: [state(pid) for pid in both] == ["T", "T"], "both are stopped")
        process.send_signal(signal.SIGCONT)
        eventually(lambda: "T" not in [state(pid) for pid in both], "both are continued")
        process.terminate()
        assert process.wait(30) == 128 + 15


def state(pid: int) -> str:
    """The state of a process as /proc has it: T for stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_ctrl_c_at_a_terminal_interrupts_the_command_once(gusset: Cli) -> None:
    """The terminal sends SIGINT to the command as well, so gusset does not forward it."""
    script = (
        "import signal, sys, time; got = []\n"
        "signal.signal(signal.SIGINT, lambda *_: (got.append(1), print('interrupted', flush=True)))\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(40 + len(got)))\n"
        f"print('up', flush=True)\n{UNTIL_A_SIGNAL}"
    )
    arguments = ["-m", "gusset", "exec", "--secret", "token", "--", *python(script)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, *arguments], gusset.environ)
    read_until(terminal, b"up")
    os.write(terminal, b"\x03")
    read_until(terminal, b"interrupted")
    os.kill(pid, signal.SIGTERM)  # is forwarded after every SIGINT
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 41


def read_until(fd: int, text: bytes) -> bytes:
    """Read until `text` has been printed; everything that was read."""
    data = b""
    while text not in data:
        data += os.read(fd, 1024)
    return data


@pytest.mark.parametrize("attempt", range(5))
def test_a_signal_during_the_start_leaves_no_command_behind(
    gusset: Cli, tmp_path: Path, attempt: int
) -> None:
    """SIGTERM right after the command has been started ends it too."""
    pid_file = tmp_path / "pid"
    script = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    with started(gusset, *python(script)) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        eventually(lambda: len(children.read_text().split()) >= 2, "the reaper and the command are started")
        below = children.read_text().split()
        process.terminate()
        assert process.wait(30) == 128 + 15
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), "none is left")


def test_a_prompt_without_a_newline_is_forwarded_while_the_command_waits(gusset: Cli) -> None:
    script = "import sys, time; print('Password: ', end='', flush=True); time.sleep(60)"
    with started(gusset, *python(script)) as process:
        assert os.read(process.stdout.fileno(), 100) == b"Password: "
        process.terminate()


def test_a_slow_reader_gets_all_output(gusset: Cli) -> None:
    """What is in the pipes when the command ends is forwarded, however long the reader takes."""
    with started(gusset, *python("print('x' * 199_999)")) as process:
        received = b""
        while data := os.read(process.stdout.fileno(), 4096):
            received += data
            time.sleep(0.05)  # the reader is slow
        assert process.wait(30) == 0
    assert len(received) == 200_000


def test_output_of_a_child_left_behind_is_forwarded_while_it_flows(gusset: Cli) -> None:
    done = gusset("exec", "--secret", "token", "--", "sh", "-c", "(sleep 0.3; echo late) & echo early")
    assert done.stdout == b"early\nlate\n"


def test_a_silent_child_left_behind_is_not_waited_for(gusset: Cli) -> None:
    """It holds the pipe open, but does not write."""
    with started(gusset, "sh", "-c", "sleep 40 & echo $!") as process:
        pid = int(process.stdout.readline())
        assert process.wait(20) == 0
        os.kill(pid, signal.SIGKILL)


def test_the_delivery_is_in_the_audit_log(gusset: Cli) -> None:
    """The record has names and versions, never a value."""
    gusset("exec", "--secret", "token", "--", "true")

    record = gusset("audit", "show", "--action", "secret.deliver", "--output", "json").stdout

    assert b'"token": 1' in record
    assert not leaks_in(record, VALUE)
