"""Runs a command in a session of its own on a pseudo-terminal, whose output passes the masker.

A forked process leads the session, and the command is a job in it: a process
group of its own in the foreground. Without a leader that is the command's
parent, Ctrl-Z could not stop the command.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import termios
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from gusset.cli.command_process import STDERR, STDIN, STDOUT, copy_size, start_error
from gusset.cli.forked import ForkedProcess
from gusset.cli.signal_forwarding import ending_by_exception, is_from_kernel, stop_process_group
from gusset.cli.user_terminal import UserTerminal
from gusset.runtime.output_pump import OutputPump
from gusset.secrets.masking import Masker

_BACKGROUND_POLL = 0.25  # seconds


class TerminalSession:
    """A `Command` on a pseudo-terminal. Standard input and output of this process are a terminal."""

    def __init__(
        self, words: Sequence[str], masker: Masker, *, leader: ForkedProcess, ends: _Ends, mask: set[int]
    ) -> None:
        """`mask` are the signals that the command has blocked."""
        self._words = words
        self._masker = masker
        self._leader = leader
        self._ends = ends
        self._mask = mask
        self._terminal = UserTerminal()
        self._pid = 0
        self._pumps: list[OutputPump] = []

    @classmethod
    @contextmanager
    def open(cls, words: Sequence[str], masker: Masker) -> Iterator[TerminalSession]:
        """Open the pseudo-terminal and fork the leader. At the end the user's terminal is as it was before.

        Call this before this process has threads or values.
        """
        ends = _Ends.open()
        leader = ForkedProcess.start(wakes_parent=True)
        try:
            leader.submit(_lead, ends)
            session = cls(words, masker, leader=leader, ends=ends, mask=leader.result())
            ends.close_those_of_command()
            with ending_by_exception(), _without_job_control():
                try:
                    yield session
                finally:
                    session._terminal.release()
        except BaseException:
            leader.kill()  # it may be waiting for the command
            raise
        finally:
            leader.close()

    @property
    def poll_interval(self) -> float | None:
        """While in the background: no signal comes when the shell moves a running job to the foreground."""
        return None if self._terminal.taken else _BACKGROUND_POLL

    def start(self, environment: Mapping[bytes, bytes]) -> None:
        self._take_terminal()
        if not self._pumps:
            self._forward()
        job = _Job(list(self._words), dict(environment), self._terminal.settings, self._mask)
        self._leader.submit(_start, job, self._ends)
        try:
            self._pid = self._leader.result()
        except (OSError, ValueError) as error:
            raise start_error(self._words, error) from None
        self._leader.submit(_wait, self._pid)

    def _forward(self) -> None:
        """Start the threads that copy input and output."""
        ends, stream = self._ends, self._masker.stream
        self._pumps.append(OutputPump.start(os.dup(ends.master), STDOUT, stream()))
        if ends.stderr_source is not None:
            self._pumps.append(OutputPump.start(ends.stderr_source, STDERR, stream()))
        self._terminal.copy_input(os.dup(ends.master))

    def _take_terminal(self) -> None:
        copy_size(STDIN, self._ends.master)
        self._terminal.take()

    def poll(self) -> int | None:
        if not self._terminal.taken:
            self._take_terminal()
        if not self._leader.has_result():
            return None
        try:
            change: _Change = self._leader.result()
        except EOFError:  # the leader was killed, and with it the session ends
            return -signal.SIGHUP
        if not change.stopped:
            return change.status
        self._leader.submit(_wait, self._pid)
        self._stop(change.status)
        return None

    def _stop(self, number: int) -> None:
        """Stop this process, since the command was stopped by the signal `number`; continue both."""
        self._terminal.release()
        if number == signal.SIGSTOP:
            os.kill(os.getpid(), number)
        else:
            stop_process_group()
        signal.sigtimedwait({signal.SIGCONT}, 0)  # else it would be forwarded once more
        self._take_terminal()
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGCONT)

    def send(self, number: int) -> None:
        os.kill(self._pid, number)  # a zombie until the next start or the leader's end

    def receive(self, received: signal.struct_siginfo) -> None:
        if received.si_signo in (signal.SIGWINCH, signal.SIGCONT):
            self._take_terminal()
        if received.si_signo == signal.SIGWINCH and is_from_kernel(received):
            return  # the pseudo-terminal has sent it, too
        self.send(received.si_signo)

    def drain(self, silence: float) -> None:
        with suppress(OSError, EOFError):  # the leader was killed
            self._leader.submit(_leave, self._ends)
            self._leader.result()
        for pump in self._pumps:
            pump.drain(silence)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ends:
    """The descriptors of the pseudo-terminal, and of a pipe if standard error is not a terminal."""

    master: int
    slave: int
    stderr_source: int | None = None
    stderr: int

    @classmethod
    def open(cls) -> _Ends:
        master, slave = os.openpty()
        termios.tcsetattr(slave, termios.TCSANOW, termios.tcgetattr(STDIN))
        if os.isatty(STDERR):
            return cls(master=master, slave=slave, stderr=slave)
        source, stderr = os.pipe()
        return cls(master=master, slave=slave, stderr_source=source, stderr=stderr)

    def close_those_of_command(self) -> None:
        for fd in {self.slave, self.stderr}:
            os.close(fd)


@contextmanager
def _without_job_control() -> Iterator[None]:
    """Within the context, this process can use its terminal in the background without being stopped."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTIN, signal.SIGTTOU})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# Called in the leader.


@dataclass(frozen=True, slots=True)
class _Job:
    words: list[str]
    environment: dict[bytes, bytes] = field(repr=False)  # it may have values
    settings: list[Any]  # of the terminal, as `termios.tcgetattr` returns them
    mask: set[int]


@dataclass(frozen=True, slots=True)
class _Change:
    """The command was stopped, by the signal `status`, or has ended with `status`."""

    stopped: bool
    status: int


def _lead(ends: _Ends) -> set[int]:
    """Lead a new session on the pseudo-terminal; the signals that were blocked before."""
    os.close(ends.master)
    if ends.stderr_source is not None:
        os.close(ends.stderr_source)
    os.setsid()
    fcntl.ioctl(ends.slave, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # It is in the foreground while no command runs, and gets the signals of the terminal's keys.
    keys = {signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, keys)}


def _start(job: _Job, ends: _Ends) -> int:
    """Start the command as the job in the foreground; its process id."""
    with suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # the command that ran before
    termios.tcsetattr(ends.slave, termios.TCSANOW, job.settings)

    def before_exec() -> None:
        os.tcsetpgrp(STDIN, os.getpid())
        signal.pthread_sigmask(signal.SIG_SETMASK, job.mask)

    process = subprocess.Popen(
        job.words,
        env=job.environment,
        stdin=ends.slave,
        stdout=ends.slave,
        stderr=ends.stderr,
        process_group=0,
        preexec_fn=before_exec,  # the leader has a single thread
    )
    process.returncode = 0  # else its destructor would wait for the command, which `_wait` does
    return process.pid


def _wait(pid: int) -> _Change:
    """Wait until the command stops or ends. When it has ended, its process id stays reserved."""
    result = os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
    assert result is not None  # noqa: S101  # only WNOHANG returns None
    if result.si_code == os.CLD_STOPPED:
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG)
        return _Change(True, result.si_status)
    return _Change(False, result.si_status if result.si_code == os.CLD_EXITED else -result.si_status)


def _leave(ends: _Ends) -> None:
    """Close the outputs, and let no process that the command left behind get SIGHUP when the leader ends."""
    os.tcsetpgrp(ends.slave, os.getpgrp())
    ends.close_those_of_command()
