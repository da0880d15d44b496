"""The terminal of the person who runs `gusset exec`, while a command has a pseudo-terminal."""

from __future__ import annotations

import os
import select
import signal
import termios
import threading
import time
import tty
from contextlib import suppress

from gusset.cli.command_process import STDIN

_CHUNK = 4096
_BACKGROUND_PAUSE = 0.05  # seconds


class UserTerminal:
    """Standard input, a terminal: in raw mode while this process is in its foreground.

    In raw mode every key is passed on as bytes. The pseudo-terminal of the
    command echoes them and makes signals of them.
    """

    def __init__(self) -> None:
        self.settings = termios.tcgetattr(STDIN)
        self._taken = threading.Event()

    @property
    def taken(self) -> bool:
        """Whether it is in raw mode."""
        return self._taken.is_set()

    def take(self) -> None:
        """Turn raw mode on, if this process is in the foreground."""
        if self._in_foreground():
            with suppress(termios.error):  # it is gone
                tty.setraw(STDIN, termios.TCSANOW)
                self._taken.set()

    def release(self) -> None:
        """Restore the settings that it had at first."""
        if self._taken.is_set():
            self._taken.clear()
            if self._in_foreground():  # in the background, it has the settings of the shell
                with suppress(termios.error):
                    termios.tcsetattr(STDIN, termios.TCSANOW, self.settings)

    def _in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(STDIN) == os.getpgrp()
        except OSError:  # it is gone, or it is not the terminal of this process's session
            return os.isatty(STDIN)

    def copy_input(self, sink: int) -> None:
        """Start a thread that copies what is typed to `sink`. When the terminal is gone it sends SIGHUP."""
        threading.Thread(target=self._copy_input, args=(sink,), name="gusset-input", daemon=True).start()

    def _copy_input(self, sink: int) -> None:
        poll = select.poll()
        poll.register(STDIN, select.POLLIN)
        while True:
            self._taken.wait()
            if any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll()):
                os.kill(os.getpid(), signal.SIGHUP)  # the kernel sends it to the leader of a session alone
                return
            if not self._taken.is_set() or not self._in_foreground():  # it is typed for the shell
                time.sleep(_BACKGROUND_PAUSE)
                continue
            with suppress(
                OSError
            ):  # the shell has moved this process to the background, or the command ended
                os.write(sink, os.read(STDIN, _CHUNK))
