"""A command of `gusset exec` or `gusset agent` as a process, and its output through the masker.

`DirectCommand` runs it in this process's own session, for input or output that
is redirected. At a terminal, `terminal_session.py` runs it.
"""

from __future__ import annotations

import os
import signal
import termios
import tty
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from gusset.cli.signal_forwarding import is_from_kernel, stop_this_process
from gusset.errors import UsageError
from gusset.runtime.output_pump import OutputPump
from gusset.secrets.masking import Masker

STDIN, STDOUT, STDERR = 0, 1, 2

# A terminal sends these to its whole foreground process group, of which the command is a member too.
# SIGHUP is not among them: when a connection ends, only the session's leader gets it.
_FROM_TERMINAL_TO_ALL = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGWINCH})

# Python ignores these; a command gets their default action.
_DEFAULT = (signal.SIGPIPE, signal.SIGXFSZ)


class Command(Protocol):
    """A command that can be started, and started again after it has ended."""

    def start(self, environment: Mapping[bytes, bytes]) -> None:
        """Start it. Raises UsageError when that is not possible."""

    def poll(self) -> int | None:
        """Its exit status once it has ended, negative for a signal; else None. Call it after each SIGCHLD."""

    @property
    def poll_interval(self) -> float | None:
        """Seconds after which `poll` must be called even without a signal."""

    def send(self, number: int) -> None:
        """Send it a signal."""

    def receive(self, received: signal.struct_siginfo) -> None:
        """Forward a signal that this process has received, unless the command has got it too."""

    def drain(self, silence: float) -> None:
        """Wait until all output is forwarded; see `OutputPump.drain`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Output:
    """One output of the command: it writes to `end`, and a pump copies from `source` to `sink`."""

    source: int
    end: int
    sink: int

    @classmethod
    def open(cls, sink: int) -> _Output:
        """A pipe; for a terminal, a pseudo-terminal that passes everything on unchanged."""
        if not os.isatty(sink):
            source, end = os.pipe()
            return cls(source=source, end=end, sink=sink)
        source, end = os.openpty()
        tty.setraw(end)
        copy_size(sink, source)
        return cls(source=source, end=end, sink=sink)


class DirectCommand:
    """Runs the command in this process's session and process group.

    Its input is this process's input. Outputs that are terminals stay terminals
    for the command, but the session's terminal is the user's own: job control and
    the signals of its keys need nothing of this process.
    """

    poll_interval = None

    def __init__(self, words: Sequence[str], masker: Masker, *, has_input: bool = True) -> None:
        """Call this before signals are blocked: the command gets the current signal mask.

        Without `has_input`, its input is empty.
        """
        self._words = words
        self._masker = masker
        self._has_input = has_input
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._pid = 0
        self._pumps: list[OutputPump] = []
        self._masters: dict[int, int] = {}  # of pseudo-terminals -> the terminal that each stands for

    def start(self, environment: Mapping[bytes, bytes]) -> None:
        outputs = _open_outputs()
        actions: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_DUP2, output.end, fd) for fd, output in outputs.items()
        ]
        if not self._has_input:
            actions.append((os.POSIX_SPAWN_OPEN, STDIN, os.devnull, os.O_RDONLY, 0))
        try:
            # Not `subprocess`: it could change the signal mask only by code that is not safe beside threads.
            self._pid = os.posix_spawnp(
                self._words[0],
                list(self._words),
                environment,
                file_actions=actions,
                setsigmask=self._mask,
                setsigdef=_DEFAULT,
            )
        except (OSError, ValueError) as error:
            raise start_error(self._words, error) from None
        finally:
            for output in set(outputs.values()):
                os.close(output.end)
        self._forward_output(set(outputs.values()))

    def _forward_output(self, outputs: set[_Output]) -> None:
        for master in self._masters:
            os.close(master)
        self._masters = {}
        for output in outputs:
            if os.isatty(output.sink):
                self._masters[os.dup(output.source)] = output.sink  # the pump closes its own
            self._pumps.append(OutputPump.start(output.source, output.sink, self._masker.stream()))

    def poll(self) -> int | None:
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def send(self, number: int) -> None:
        os.kill(self._pid, number)  # at least a zombie until `poll` has returned its status

    def receive(self, received: signal.struct_siginfo) -> None:
        number = received.si_signo
        if number == signal.SIGWINCH and self._masters:
            for master, terminal in self._masters.items():
                copy_size(terminal, master)
            self.send(number)  # again if the terminal has sent it: the command has now the new size
        elif not (is_from_kernel(received) and number in _FROM_TERMINAL_TO_ALL):
            self.send(number)
        if number == signal.SIGTSTP:
            stop_this_process()

    def drain(self, silence: float) -> None:
        for pump in self._pumps:
            pump.drain(silence)
        self._pumps.clear()


def _open_outputs() -> dict[int, _Output]:
    """Both outputs of the command. If they go to the same place, they share one, which keeps the order."""
    stdout = _Output.open(STDOUT)
    return {STDOUT: stdout, STDERR: stdout if _is_same_place() else _Output.open(STDERR)}


def _is_same_place() -> bool:
    """Whether standard output and standard error are the same terminal, pipe or file."""
    try:
        return os.path.sameopenfile(STDOUT, STDERR)
    except OSError:  # one of them is closed
        return False


def copy_size(terminal: int, pseudo_terminal: int) -> None:
    """Give a pseudo-terminal the size of a terminal. Processes in its foreground get SIGWINCH."""
    with suppress(termios.error):  # the terminal is gone
        termios.tcsetwinsize(pseudo_terminal, termios.tcgetwinsize(terminal))


def start_error(words: Sequence[str], error: OSError | ValueError) -> UsageError:
    """The error for a command that cannot be started. Python raises ValueError for an empty name."""
    if isinstance(error, FileNotFoundError | ValueError):
        return UsageError(f"there is no command {words[0]!r}")
    if isinstance(error, PermissionError):
        return UsageError(f"{words[0]!r} cannot be executed")
    return UsageError(f"{words[0]!r} cannot be started: {error.strerror}")
