"""What the supervisors of models and of images have in common."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gusset.backoff import Backoff
from gusset.runtime import logs
from gusset.runtime.browser_rules import BrowserRules
from gusset.runtime.declared_secrets import Values
from gusset.runtime.process import harden
from gusset.runtime.tls import TlsFiles
from gusset.secrets.masking import Masker, maskable
from gusset.secrets.recent_values import RecentValues
from gusset.secrets.sources.environment import ENVIRONMENT_PREFIX

log = logging.getLogger("gusset")

DRAIN_SECONDS = 30.0  # that a stopping server waits for requests in flight

_FIRST_RESTART = 0.2  # seconds
_STABLE = 60.0  # seconds; a replica that was ready and ran this long is restarted without a longer delay


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """How a deployment is served, whether it is a model or an image.

    Port 0 takes a free port. `announce` is called once, with the address, as in
    "http://127.0.0.1:8080", when all replicas are ready. What the deployment
    prints goes to `output_fd` and standard error, masked. A stop waits
    `drain_seconds` for requests in flight. `browser_rules` say which web pages
    may send requests. With `tls` the port speaks HTTPS. `quiet_stop`: a stop by a
    signal is not logged, since no person has sent it. `cache` is the folder for
    what can be made or downloaded again. `allow_missing`: see `read_secrets`.
    """

    cache: Path
    host: str = "127.0.0.1"
    port: int = 8080
    allow_missing: Collection[str] = ()
    debuggable: bool = False
    announce: Callable[[str], object] = lambda address: None
    output_fd: int = 1
    drain_seconds: float = DRAIN_SECONDS
    browser_rules: BrowserRules | None = None
    tls: TlsFiles | None = None
    quiet_stop: bool = False


def prepare_process(*, debuggable: bool, mask: logs.Mask) -> None:
    """Harden this process, unless debuggers may attach, and log to standard error, masked.

    A caller that has given the logger "gusset" handlers keeps them.
    """
    if not debuggable:
        harden()
    if not log.handlers:
        logs.log_to_stderr(readable=sys.stderr.isatty(), mask=mask)
    if debuggable:
        log.warning("Debuggers may attach to this server and read the values of secrets.")


class StopSignals:
    """SIGTERM and SIGINT: the first sets `drain`, the second `stop_now`."""

    def __init__(self, *, quiet: bool = False) -> None:
        """With `quiet` they are not logged."""
        self._quiet = quiet
        self.drain = asyncio.Event()
        self.stop_now = asyncio.Event()

    def install(self) -> None:
        """Handle the signals on the running event loop, which must be the main thread's."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if self.drain.is_set():
            self.stop_now.set()
        else:
            if not self._quiet:
                log.info("Stopping when the requests in flight have finished. A second signal stops at once.")
            self.drain.set()


class RestartBackoff:
    """How long to wait before replacing a replica that has ended."""

    def __init__(self) -> None:
        self._backoff = Backoff(_FIRST_RESTART)

    def note_end(self, *, started_at: float, was_ready: bool) -> None:
        """A replica has ended, which started at `started_at` by `time.monotonic()`. Call it once for each."""
        if was_ready and time.monotonic() - started_at > _STABLE:
            self._backoff.reset()

    def next_delay(self) -> float:
        """How long to wait before the next attempt to replace it, in seconds."""
        return self._backoff.next_delay()


class Announcer:
    """Announces the address once, when the deployment is ready for the first time."""

    def __init__(self, address: str, announce: Callable[[str], object]) -> None:
        self._address = address
        self._announce = announce
        self.is_done = False

    def announce(self) -> None:
        """Call `announce` with the address, unless that was done before."""
        if self.is_done:
            return
        self.is_done = True
        try:
            self._announce(self._address)
        except OSError as error:  # standard output was closed; the deployment is served all the same
            log.warning("The address %s could not be announced: %s", self._address, error.strerror)


class SecretIntake:
    """Every new value passes here first: the masker learns it before anything else gets it.

    Warns, once per name, of values that cannot be masked, that came from the
    environment, or that look like a mistake. Thread-safe.
    """

    def __init__(self) -> None:
        self.masker = Masker()
        self._recent = RecentValues(self.masker)
        self._lock = threading.Lock()
        self._warned: set[tuple[str, str]] = set()  # a name or origin, and what was wrong with it

    def mask_log(self, text: str) -> str:
        """A text of a log of this process, masked."""
        return self.masker.mask_text(text, "log")

    def accept(self, values: Values, *, number: int = 0, in_use: int | None = None) -> None:
        """Have the masker learn the current values, and warn where needed.

        It forgets old ones: for `number` and `in_use` see `RecentValues.add`.
        """
        previous = {name: each.previous.value for name, each in values.items() if each.previous}
        current = {name: delivered.value for name, delivered in values.items()}
        self._recent.add(previous, current, number=number, in_use=in_use)
        short = {name for name, delivered in values.items() if not maskable(delivered.value)}
        exposed = {held.origin for held in values.values() if held.origin.startswith(ENVIRONMENT_PREFIX)}
        if short := self._new(short, "unmaskable"):
            log.warning("Too short to be masked in output (under 8 bytes): %s", ", ".join(sorted(short)))
        if exposed := self._new(exposed, "environment"):
            log.warning(
                "These values come from the environment, where other processes may read them: %s. "
                "Store them with: gusset secret set NAME",
                ", ".join(sorted(exposed)),
            )
        if values:  # on a thread, since a start must not wait for the doctor's import
            warn = threading.Thread(target=self._warn_of_mistakes, args=(values,), daemon=True)
            with contextlib.suppress(RuntimeError):  # the system has no more threads; the values matter more
                warn.start()

    def _new(self, subjects: set[str], code: str) -> set[str]:
        """Those of `subjects` not yet warned about for the reason `code`. Marks them as warned about."""
        with self._lock:
            new = {subject for subject in subjects if (subject, code) not in self._warned}
            self._warned |= {(subject, code) for subject in new}
        return new

    def _warn_of_mistakes(self, values: Values) -> None:
        """Warn of what the value doctor finds, whichever source a value came from."""
        from gusset.secrets.value_doctor import examine  # slow to import; see `accept`

        now = datetime.now(UTC)
        for name, delivered in values.items():
            for finding in examine(delivered.value.reveal(), name=name, now=now):
                if finding.code != "short" and self._new({name}, finding.code):
                    text = f"{finding.message}. {finding.hint}."
                    log.warning("%s (from %s): %s", name, delivered.origin, text)
