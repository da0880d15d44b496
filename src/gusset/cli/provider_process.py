"""Runs a provider's program for `gusset secret rotate`, one process for each step.

Values pass through its standard input and output only. What it writes to standard error is kept until the
program has ended: only then is a value known that it has made, and masked in it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import IO

from gusset.backoff import Backoff
from gusset.errors import ProviderFailed, UsageError
from gusset.portable import signal_name
from gusset.rotation.contract import EXIT_TEMPORARY, EXIT_UNKNOWN_STEP, MAX_OUTPUT, Created, value_in
from gusset.rotation.driver import StepUnknown
from gusset.secrets.fragments import fragments_of
from gusset.secrets.masking import Masker
from gusset.secrets.value import SecretValue

ATTEMPTS = 4  # at a step that fails temporarily
MAX_ERRORS = 64 * 1024  # bytes of standard error that are shown, the last ones

_TICK = 0.05  # seconds
_SILENCE = 1.0  # seconds to wait for the output of a program that has ended


class ProviderProcess:
    """A provider's program. See `rotation.driver.Provider`."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        timeout: float,
        held: list[SecretValue],
        print_error: Callable[[str], None],
    ) -> None:
        """`timeout` are the seconds for one run. `print_error` prints a line of its standard error.

        The values in `held` are masked in it; those that the program makes are added.
        """
        self._words = list(words)
        self._timeout = timeout
        self._held = held
        self._print_error = print_error
        self._output = b""
        self._errors = b""

    def run(self, step: str, request: bytes, while_running: Callable[[], None]) -> bytes:
        pauses = Backoff(1.0)
        for attempt in range(1, ATTEMPTS + 1):
            status = self._run_once(step, request, while_running)
            if status != EXIT_TEMPORARY or attempt == ATTEMPTS:
                break
            self.show(None)
            self._print_error(f"the step {step} failed temporarily; gusset tries again")
            time.sleep(pauses.next_delay())
            while_running()
        if status == EXIT_UNKNOWN_STEP:
            raise StepUnknown
        if status != 0:
            ended = f"exit status {status}" if status > 0 else signal_name(-status)
            raise ProviderFailed(
                f"the provider's program failed in the step {step} ({ended})",
                hint="its own messages are above; run the same command again to continue with this step",
            )
        return self._output

    def _run_once(self, step: str, request: bytes, while_running: Callable[[], None]) -> int:
        try:
            process = subprocess.Popen(
                self._words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=_die_with_this_process(),
            )
        except FileNotFoundError:
            raise UsageError(f"there is no command {self._words[0]!r}") from None
        except OSError as error:
            raise UsageError(f"{self._words[0]!r} cannot be started: {error.strerror}") from None
        pipes = _Pipes.start(process, request)
        try:
            self._wait(step, process, pipes, while_running)
        finally:
            if process.poll() is None or pipes.open:
                _kill_group(process)
            process.wait()
            self._output, self._errors = pipes.collect()
        return process.returncode

    def _wait(
        self,
        step: str,
        process: subprocess.Popen[bytes],
        pipes: _Pipes,
        while_running: Callable[[], None],
    ) -> None:
        deadline = time.monotonic() + self._timeout
        while not pipes.too_large:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_TICK)
                pipes.wait(_SILENCE)
                break
            if time.monotonic() >= deadline:
                raise ProviderFailed(
                    f"the provider's program was stopped in the step {step} after {self._timeout:g} seconds",
                    hint="give it more time with --step-timeout",
                )
            while_running()
        if pipes.too_large:
            raise ProviderFailed(f"the output of the provider's program in the step {step} is too large")

    def show(self, created: Created | None) -> None:
        value = value_in(self._output) if created is None else created.value
        if value is not None and value not in self._held:
            self._held.append(value)
        masker = Masker(self._held)
        if created is None:  # there may be a value that is not known, so all is masked that may be one
            words = [word.strip(b"\"',:{}[]") for word in self._output.split()]
            masker.learn([SecretValue(word) for word in [*words, *fragments_of(self._errors)]])
        text = masker.mask(self._errors, "stderr").decode(errors="replace")
        for line in text.splitlines():
            self._print_error(line)
        self._output = self._errors = b""


class _Pipes:
    """The pipes of a process, each with a thread: portable, and none can block another."""

    def __init__(self) -> None:
        self._output = bytearray()
        self._errors = bytearray()
        self._cut = False  # whether the start of `_errors` was dropped
        self.too_large = False
        self._threads: Sequence[threading.Thread] = ()

    @classmethod
    def start(cls, process: subprocess.Popen[bytes], request: bytes) -> _Pipes:
        """Write `request` to the process, and read what it writes."""
        assert process.stdin and process.stdout and process.stderr  # noqa: S101  # all are pipes
        pipes = cls()
        pipes._threads = (
            threading.Thread(target=_write, args=(process.stdin, request), daemon=True),
            threading.Thread(target=pipes._read_output, args=(process.stdout,), daemon=True),
            threading.Thread(target=pipes._read_errors, args=(process.stderr,), daemon=True),
        )
        for thread in pipes._threads:
            thread.start()
        return pipes

    @property
    def open(self) -> bool:
        """Whether a process still has a pipe open."""
        return any(thread.is_alive() for thread in self._threads)

    def wait(self, seconds: float) -> None:
        """Wait until all output is read. A process that was left in the background may keep a pipe open."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def collect(self) -> tuple[bytes, bytes]:
        """Standard output and standard error, as far as they were read."""
        self.wait(_SILENCE)
        errors = bytes(self._errors)
        if self._cut:  # perhaps within a value, which would not be found
            errors = b"...\n" + errors.partition(b"\n")[2]
        return bytes(self._output), errors

    def _read_output(self, pipe: IO[bytes]) -> None:
        with pipe, suppress(OSError, ValueError):
            while chunk := os.read(pipe.fileno(), 65_536):
                if len(self._output) + len(chunk) > MAX_OUTPUT:
                    self.too_large = True
                    return
                self._output += chunk

    def _read_errors(self, pipe: IO[bytes]) -> None:
        with pipe, suppress(OSError, ValueError):
            while chunk := os.read(pipe.fileno(), 65_536):
                self._errors += chunk
                self._cut = self._cut or len(self._errors) > MAX_ERRORS
                del self._errors[:-MAX_ERRORS]


def _write(pipe: IO[bytes], data: bytes) -> None:
    with suppress(OSError), pipe:  # it may end without reading its input
        pipe.write(data)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the program and what it has started, as far as that stayed in its group."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _die_with_this_process() -> Callable[[], None] | None:
    """Has the kernel kill the program when gusset is killed: else it would run beside its next attempt."""
    if sys.platform != "linux":
        return None
    from gusset.runtime.process import die_with_parent

    return partial(die_with_parent, os.getpid())
