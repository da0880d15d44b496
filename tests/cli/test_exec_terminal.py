"""`gusset exec` at a terminal: the command has a pseudo-terminal, whose output is masked."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.test_exec import state
from tests.conftest import Cli, leaks_in
from tests.serving.conftest import eventually, is_running

VALUE = b"s3cr3t-v4lue-of-a-terminal"
PATIENCE = 60.0  # seconds
INT, QUIT, TSTP, EOT = b"\x03", b"\x1c", b"\x1a", b"\x04"


class Terminal:
    """A terminal of 30 lines and 97 columns with a process, as a terminal emulator has one."""

    def __init__(self, argv: list[str], environ: dict[str, str]) -> None:
        self.shown = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            termios.tcsetwinsize(0, (30, 97))
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP):
                signal.signal(number, signal.SIG_DFL)  # the tests may run in the background
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            os.execve(argv[0], argv, environ)
        eventually(lambda: termios.tcgetwinsize(self.fd) == (30, 97), "the process has started")
        self.settings = termios.tcgetattr(self.fd)

    def type(self, data: bytes) -> None:
        os.write(self.fd, data)

    def until(self, text: bytes) -> bytes:
        """Read until `text` is shown; what was shown since the last call."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.shown:
            assert time.monotonic() < deadline, f"{text!r} was never shown: {self.shown!r}"
            self._read()
        before, found, self.shown = self.shown.partition(text)
        return before + found

    def rest(self) -> bytes:
        """What is shown until the process has ended."""
        while self._read():
            pass
        return self.shown

    def _read(self) -> bool:
        if not select.select([self.fd], [], [], PATIENCE)[0]:
            raise AssertionError(f"nothing more is shown after {self.shown!r}")
        try:
            self.shown += (data := os.read(self.fd, 65_536))
        except OSError:  # no process has it open any more
            return False
        return bool(data)

    def status(self) -> int:
        """The exit status, once the process has ended."""
        self.rest()
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.fd)[3] & termios.ICANON

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


Run = Callable[..., Terminal]


@pytest.fixture
def run(gusset: Cli) -> Iterator[Run]:
    """Runs `gusset exec --secret token -- COMMAND` at a new terminal."""
    gusset("secret", "set", "token", input=VALUE)
    terminals = []

    def start(*command: str, options: tuple[str, ...] = ("--secret", "token")) -> Terminal:
        argv = [sys.executable, "-m", "gusset", "exec", *options, "--", *command]
        terminals.append(Terminal(argv, gusset.environ))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


@pytest.fixture
def shell(gusset: Cli) -> Iterator[Terminal]:
    """A shell with job control, whose prompt is `ready>`."""
    gusset("secret", "set", "token", input=VALUE)
    environ = gusset.environ | {
        "PS1": "ready>",
        "PYTHON": sys.executable,
        "BASH_SILENCE_DEPRECATION_WARNING": "1",
    }
    terminal = Terminal(["/bin/bash", "--norc", "--noprofile", "--noediting", "-i"], environ)
    terminal.until(b"ready>")
    yield terminal
    terminal.close()


EXEC = "$PYTHON -m gusset exec --secret token --"


def python(script: str) -> tuple[str, ...]:
    return (sys.executable, "-c", script)


def test_the_command_has_a_terminal_with_the_size_of_the_users(run: Run) -> None:
    script = (
        "import os, sys; print([os.isatty(fd) for fd in (0, 1, 2)], os.get_terminal_size(),"
        " os.tcgetpgrp(0) == os.getpgrp(), os.ttyname(0) == os.ttyname(2), open('/dev/tty').isatty())"
    )
    terminal = run(*python(script))
    assert terminal.rest() == (
        b"[True, True, True] os.terminal_size(columns=97, lines=30) True True True\r\n"
    )
    assert terminal.status() == 0


def test_a_new_size_reaches_the_command_with_a_signal(run: Run) -> None:
    # Not `input()`: of a signal just before it blocks, Python's handler would run only after it.
    script = (
        "import os, select, signal\n"
        "signal.signal(signal.SIGWINCH, lambda *_: print('now', os.get_terminal_size(), flush=True))\n"
        "print('up', flush=True)\n"
        "while not select.select([0], [], [], 0.1)[0]: pass\n"
    )
    terminal = run(*python(script))
    terminal.until(b"up")
    termios.tcsetwinsize(terminal.fd, (41, 123))
    terminal.until(b"now os.terminal_size(columns=123, lines=41)")
    terminal.type(b"\r")
    assert terminal.status() == 0


def test_colours_pass_and_values_are_masked(run: Run) -> None:
    script = "import os; v = open(os.environ['GUSSET_SECRETS_DIR'] + '/token').read(); print(f'\\033[31m{v}\\033[0m')"
    assert run(*python(script)).rest() == b"\x1b[31m***\x1b[0m\r\n"


def test_a_value_written_to_the_terminal_itself_is_masked(run: Run) -> None:
    """Past standard output, as programs do that prompt for a password."""
    shown = run("sh", "-c", 'cat "$GUSSET_SECRETS_DIR/token" > /dev/tty').rest()
    assert shown == b"***"


def test_a_value_of_short_lines_is_masked_with_the_line_ends_of_a_terminal(gusset: Cli, run: Run) -> None:
    """No line is long enough to be masked by itself."""
    gusset("secret", "set", "token", "--exact", input=b"ab12\ncd34\nef56\n")
    assert run("sh", "-c", 'cat "$GUSSET_SECRETS_DIR/token"; echo end').rest() == b"***end\r\n"


def test_a_prompt_is_shown_at_once_and_a_value_pasted_there_is_masked(run: Run) -> None:
    """The terminal echoes it, and the command reads it whole."""
    terminal = run(*python("print('read', len(input('Token: ')))"))
    terminal.until(b"Token: ")
    terminal.type(VALUE + b"\r")
    shown = terminal.rest()
    assert b"***" in shown and f"read {len(VALUE)}".encode() in shown
    assert not leaks_in(shown, VALUE)


@pytest.mark.parametrize(
    ("key", "number"), [(INT, signal.SIGINT), (QUIT, signal.SIGQUIT)], ids=["^C", "^backslash"]
)
def test_a_key_ends_the_command_by_its_signal(run: Run, key: bytes, number: int) -> None:
    terminal = run("sh", "-c", "ulimit -c 0; echo up; exec sleep 60")
    terminal.until(b"up")
    terminal.type(key)
    assert terminal.status() == 128 + number


def test_ctrl_d_is_the_end_of_the_input(run: Run) -> None:
    terminal = run("sh", "-c", "echo up; cat; echo ended")
    terminal.until(b"up\r\n")
    terminal.type(b"line\r" + EOT)
    assert terminal.rest() == b"line\r\nline\r\nended\r\n"


def test_a_program_in_raw_mode_gets_every_key(run: Run) -> None:
    """As an editor: no echo, control characters as they are, line feeds unchanged."""
    script = (
        "import os, sys, tty\n"
        "tty.setraw(0); os.write(1, b'up\\n')\n"
        "while (key := os.read(0, 1)) != b'q': os.write(1, b'<%s>\\n' % key.hex().encode())\n"
    )
    terminal = run(*python(script))
    terminal.until(b"up\n")
    for key in (INT, TSTP, EOT, b"\r", b"\x1b"):
        terminal.type(key)
        assert terminal.until(b">\n") == f"<{key.hex()}>\n".encode()
    terminal.type(b"q")
    assert terminal.status() == 0


def test_large_output_arrives_whole(run: Run) -> None:
    terminal = run(*python("print('x' * 199_999)"))
    time.sleep(0.5)  # the command ends while the terminal is not read
    assert len(terminal.rest()) == 200_001  # with the terminal's line end
    assert terminal.status() == 0


def test_output_of_a_process_left_behind_is_forwarded_while_it_flows(run: Run) -> None:
    terminal = run("sh", "-c", "(sleep 0.3; echo late) & echo early")
    assert terminal.rest() == b"early\r\nlate\r\n"


def test_a_silent_process_left_behind_is_neither_waited_for_nor_ended(run: Run) -> None:
    terminal = run("sh", "-c", "sleep 40 & echo $! end")
    pid = int(terminal.until(b" end").split()[0])
    assert terminal.status() == 0
    assert is_running(pid)
    os.kill(pid, signal.SIGKILL)


def test_the_exit_status_is_that_of_the_command(run: Run) -> None:
    assert run("sh", "-c", "exit 42").status() == 42


@pytest.mark.parametrize("number", [0, signal.SIGTERM], ids=["the command's end", "SIGTERM"])
def test_the_terminals_settings_are_restored(run: Run, number: int) -> None:
    terminal = run("sh", "-c", "echo up; read x")
    terminal.until(b"up")
    assert terminal.is_raw
    if number:
        os.kill(terminal.pid, number)
    else:
        terminal.type(b"\r")
    assert terminal.status() == (128 + number if number else 0)
    assert termios.tcgetattr(terminal.fd) == terminal.settings


def test_the_terminals_settings_are_restored_when_the_command_cannot_start(run: Run) -> None:
    terminal = run("no-such-command-here")
    assert b"there is no command" in terminal.rest()
    assert terminal.status() == 2
    assert termios.tcgetattr(terminal.fd) == terminal.settings


def test_standard_error_that_is_redirected_stays_apart(run: Run, shell: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "errors"
    script = 'cat "$GUSSET_SECRETS_DIR/token" >&2; test -t 0 -a -t 1 -a ! -t 2 && echo as expected'
    shell.type(f"{EXEC} sh -c '{script}' 2> {file}\r".encode())
    shell.until(b"\nas expected")
    shell.until(b"ready>")
    assert file.read_bytes() == b"***"


def test_the_terminal_is_gone_for_the_command_when_the_users_is(run: Run) -> None:
    """SIGHUP ends it, as it ends programs of a terminal that is closed."""
    terminal = run("sh", "-c", "echo $$ up; sleep 60")
    pid = int(terminal.until(b" up").split()[0])
    os.close(terminal.fd)
    terminal.fd = os.open(os.devnull, os.O_RDONLY)
    eventually(lambda: not is_running(pid), "the command has ended")


def test_the_command_ends_when_gusset_is_killed(run: Run) -> None:
    """Its terminal is closed then."""
    terminal = run("sh", "-c", "echo $$ up; sleep 60")
    pid = int(terminal.until(b" up").split()[0])
    os.kill(terminal.pid, signal.SIGKILL)
    eventually(lambda: not is_running(pid), "the command has ended")


def test_ctrl_z_stops_the_job_and_fg_continues_it(shell: Terminal) -> None:
    """The shell has its terminal as it was; continued, the command has it in raw mode again."""
    before = termios.tcgetattr(shell.fd)
    shell.type(f"{EXEC} sh -c 'echo got up; read x; echo got $x'\r".encode())
    shell.until(b"\ngot up")
    shell.type(TSTP)
    shell.until(b"Stopped")
    shell.until(b"ready>")
    assert termios.tcgetattr(shell.fd) == before
    termios.tcsetwinsize(shell.fd, (50, 100))

    shell.type(b"fg\r")
    eventually(lambda: shell.is_raw, "gusset is in the foreground again")
    shell.type(b"word\r")
    shell.until(b"got word")
    shell.until(b"ready>")
    assert termios.tcgetattr(shell.fd) == before


def test_a_command_that_a_process_stops_stops_gusset_until_it_is_continued(run: Run) -> None:
    terminal = run("sh", "-c", "echo $$ up; read x; echo got $x")
    pid = int(terminal.until(b" up").split()[0])
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: state(terminal.pid) == "T", "gusset is stopped")
    assert termios.tcgetattr(terminal.fd) == terminal.settings

    os.kill(terminal.pid, signal.SIGCONT)
    eventually(lambda: terminal.is_raw, "gusset is continued")
    terminal.type(b"word\r")
    terminal.until(b"got word")


def test_ctrl_z_where_no_shell_could_continue_the_job_has_no_effect(run: Run) -> None:
    """As the kernel has it for other programs: gusset is the first process of the terminal."""
    terminal = run("sh", "-c", "echo up; read x; echo got $x")
    terminal.until(b"up")
    terminal.type(TSTP)
    terminal.type(b"word\r")
    terminal.until(b"got word")
    assert terminal.status() == 0


def test_a_job_in_the_background_runs_on_and_leaves_the_terminal_to_the_shell(
    shell: Terminal, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    # It starts no process: a shell that is stopped between vfork and exec never becomes a stopped job.
    script = f"echo got up; read line < {go}; echo got on; read x; echo got $x"
    shell.type(f"{EXEC} sh -c '{script}'\r".encode())
    shell.until(b"\ngot up")
    shell.type(TSTP)
    shell.until(b"ready>")
    shell.type(b"bg\r")
    shell.until(b"ready>")
    shell.type(b"echo typed for the she''ll\r")
    shell.until(b"typed for the shell")
    go.write_text("go\n")
    shell.until(b"got on")

    shell.type(b"fg\r")
    eventually(lambda: shell.is_raw, "gusset has noticed that it is in the foreground")
    shell.type(b"word\r")
    shell.until(b"got word")


def test_a_command_started_in_the_background_does_not_take_the_terminal(shell: Terminal) -> None:
    shell.type(f"{EXEC} sh -c 'echo got up; sleep 0.3; echo got on' &\r".encode())
    shell.until(b"got up\r")
    shell.until(b"got on\r")
    shell.type(b"echo she''ll\r")
    shell.until(b"shell")


def test_a_shell_with_job_control_works_as_the_command(run: Run) -> None:
    """It has jobs of its own: Ctrl-Z stops its job, not gusset."""
    terminal = run("env", "PS1=inner>", "bash", "--norc", "--noediting", "-i")
    terminal.until(b"inner>")
    terminal.type(b"cat\r")
    terminal.until(b"cat")
    terminal.type(b"line\r")
    terminal.until(b"line\r\nline")
    terminal.type(TSTP)
    terminal.until(b"Stopped")
    terminal.until(b"inner>")
    terminal.type(b"fg\r")
    terminal.until(b"cat\r\n")
    terminal.type(b"more\r" + EOT)
    terminal.until(b"more\r\nmore\r\n")
    terminal.type(b"exit 5\r")
    assert terminal.status() == 5


@pytest.mark.parametrize(
    ("redirection", "ends"),
    [
        ("> {file}", "true false true"),
        ("< /dev/null", "false true true"),
        ("2>&1 | cat > {file}", "true false false"),
    ],
    ids=["output", "input", "pipeline"],
)
def test_only_what_is_a_terminal_is_one_for_the_command(
    shell: Terminal, tmp_path: Path, redirection: str, ends: str
) -> None:
    """With redirected input or output the terminal is the user's own: its keys work without gusset."""
    said, file = tmp_path / "said", tmp_path / "file"
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\n"
        "print('isatty', *[str(os.isatty(fd)).lower() for fd in (0, 1, 2)], file=open(sys.argv[1], 'w'))\n"
        "tty = next((fd for fd in (1, 2) if os.isatty(fd)), None)\n"
        "if tty is not None: assert tuple(os.get_terminal_size(tty)) == (97, 30)\n"
        "value = open(os.environ['GUSSET_SECRETS_DIR'] + '/token').read()\n"
        "print('got', value, flush=True); print('err', value, file=sys.stderr, flush=True)\n"
        "while True: time.sleep(0.1)\n"  # not one long sleep: it could miss a signal just before it
    )
    shell.type(f"{EXEC} $PYTHON {script} {said} {redirection.format(file=file)}\r".encode())
    eventually(lambda: said.exists() and said.read_text() == f"isatty {ends}\n", "what it has")
    if "true" in ends.split()[1:]:
        shell.until(b"err ***")
    else:
        eventually(lambda: b"err ***" in file.read_bytes(), "the output in the file")
    assert not shell.is_raw
    shell.type(INT)
    shell.until(b"ready>")
    shell.type(b"echo status ${PIPESTATUS[0]}\r")
    shell.until(b"status 130")
    if file.exists():
        assert b"got ***" in file.read_bytes()
