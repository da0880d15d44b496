"""Runs the command of `gusset exec` or `gusset agent`: forwards signals, and restarts it for new values."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from gusset.cli.command_process import Command, DirectCommand
from gusset.cli.provided_secrets import ProvidedSecrets
from gusset.cli.signal_forwarding import ENDING, ReceivedSignals
from gusset.secrets.masking import Masker

log = logging.getLogger("gusset")

RESTART: Literal["restart"] = "restart"
# What to do with the command when it has new values: start it again, or send it this signal.
OnChange = Literal["restart"] | signal.Signals

GRACE_PERIOD = 10.0  # seconds between SIGTERM and SIGKILL
# Seconds after a change in which further changes join it, so that a burst of them is one restart.
DEBOUNCE = 0.5

# Seconds without output after which a child that the command left behind, and that holds the pipe open, is
# not waited for any longer.
SILENCE = 1.0


@contextmanager
def open_command(words: Sequence[str], masker: Masker) -> Iterator[Command]:
    """The command, not started yet; at a terminal it gets its own. This may fork."""
    if at_terminal():
        from gusset.cli.terminal_session import TerminalSession

        with TerminalSession.open(words, masker) as session:
            yield session
    else:
        yield DirectCommand(words, masker)


def at_terminal() -> bool:
    """Whether a command gets a terminal of its own. The user's one is then in raw mode."""
    return os.isatty(0) and os.isatty(1)


def signal_named(text: str) -> signal.Signals | None:
    """The signal of a name such as HUP, if a process can handle it."""
    name = "SIG" + text.upper().removeprefix("SIG")
    if name not in signal.Signals.__members__ or name in ("SIGKILL", "SIGSTOP"):
        return None
    return signal.Signals[name]


class CommandRun:
    """One command from its start to its end, with restarts between."""

    def __init__(self, command: Command, secrets: ProvidedSecrets, on_change: OnChange | None) -> None:
        """Without `on_change`, new values are ignored."""
        self._command = command
        self._secrets = secrets
        self._on_change = on_change
        self._act_at: float | None = None  # when to apply `on_change`; None when there was no change
        self._kill_at: float | None = None  # when to kill a command that does not end
        self._restarting = False  # whether it got SIGTERM to be started again

    def run(self, signals: ReceivedSignals) -> int:
        """Start the command; its exit status when it has ended by itself, negative for a signal.

        Raises:
            UsageError: it cannot be started.
        """
        self._command.start(self._secrets.environment())
        while True:
            status = self._command.poll()
            if status is not None:
                if not self._restarting:
                    return status
                self._start_again()
            self._act()
            received = signals.wait(self._timeout())
            if received is not None:
                self._receive(received)

    def _receive(self, received: signal.struct_siginfo) -> None:
        if received.si_signo in ENDING:  # who sends it does not expect a restart
            self._restarting, self._kill_at = False, None
        if received.si_signo == signal.SIGTERM:
            self._on_change = None
        self._command.receive(received)

    def _start_again(self) -> None:
        self._restarting, self._kill_at, self._act_at = False, None, None
        self._secrets.take_change()  # the environment below is newer
        self._command.start(self._secrets.environment())

    def _act(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        if self._secrets.take_change() and self._on_change is not None and self._act_at is None:
            self._act_at = now + DEBOUNCE
        if self._kill_at is not None and now >= self._kill_at:
            log.warning("The command has not ended after %.0f s and is killed.", GRACE_PERIOD)
            self._kill_at = None
            self._command.send(signal.SIGKILL)
        if self._act_at is not None and now >= self._act_at and not self._restarting:
            self._act_at = None
            self._apply()

    def _apply(self) -> None:
        if isinstance(self._on_change, signal.Signals):
            log.info("Sending %s to the command.", self._on_change.name)
            self._command.send(self._on_change)
        elif self._on_change is not None:
            log.info("Restarting the command with the new values.")
            self._restarting, self._kill_at = True, time.monotonic() + GRACE_PERIOD
            self._command.send(signal.SIGTERM)

    def _timeout(self) -> float | None:
        """Seconds until something is due."""
        due = [self._kill_at, None if self._restarting else self._act_at]
        waits = [at - time.monotonic() for at in due if at is not None]
        if self._command.poll_interval is not None:
            waits.append(self._command.poll_interval)
        return min(waits, default=None)
