"""Follows a source of secrets and hands on each new set of values."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection

from gusset.errors import Denied, GussetError, Unreachable
from gusset.runtime.declared_secrets import Values
from gusset.secrets.sources.source import SecretSource

log = logging.getLogger("gusset.serving")

_FIRST_RETRY = 0.5  # seconds, doubled up to
_LAST_RETRY = 30.0


class SecretWatcher:
    """A thread that follows a source and hands each new set of values to `on_values`.

    While the source refuses or does not answer, what is held stays: that is
    said once, and tried again with growing pauses until it succeeds.
    """

    def __init__(
        self,
        names: Collection[str],
        source: SecretSource,
        held: Values,
        on_values: Callable[[Values], object],
    ) -> None:
        self._source = source
        self._on_values = on_values
        self._guard = threading.RLock()  # of the four below, and of who may hand values on
        self._names = names
        self._held = held
        self._again = False  # they are to be read before they are watched
        self._over = threading.Event()  # set when other names are followed, or none any more
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="gusset-rotation", daemon=True)
        if names:
            self._thread.start()

    def follow(self, names: Collection[str], held: Values) -> None:
        """Follow these from now on. They are read at once, since what is `held` was read a while ago."""
        with self._guard:
            self._names, self._held, self._again = names, held, True
            self._over.set()
            self._over = threading.Event()
        if names and self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        """Return when the source is no longer used, or after two seconds."""
        with self._guard:
            self._stopped = True
            self._over.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _run(self) -> None:
        while not self._stopped:
            with self._guard:
                names, over, again, self._again = self._names, self._over, self._again, False
            if again:
                self._read(names, over)
            self._watch(names, over)

    def _watch(self, names: Collection[str], over: threading.Event) -> None:
        while not over.is_set():
            try:
                for _ in self._source.watch(names, over):
                    if over.is_set():
                        return
                    self._read(names, over)
            except Exception as error:  # a source must not, but without us the model would never hear again
                # Its type only: what a library says may hold a value.
                log.error("Watching secrets failed, and goes on: %s", type(error).__name__)  # noqa: TRY400
            over.wait(_FIRST_RETRY)

    def _read(self, names: Collection[str], over: threading.Event) -> None:
        pause = _FIRST_RETRY
        troubled = ""
        while not over.is_set():
            doing = "read again"
            try:
                values = self._source.read(names)
                doing = "handed on"  # there may be no room for them
                self._take(names, values, over)
            except Exception as error:
                if troubled != doing:
                    log.warning(
                        "Secrets could not be %s, the model keeps what it has: %s", doing, _why(error)
                    )
                troubled = doing
                over.wait(pause)
                pause = min(pause * 2, _LAST_RETRY)
            else:
                if troubled:
                    log.info("Secrets can be %s.", troubled)
                return

    def _take(self, names: Collection[str], values: Values, over: threading.Event) -> None:
        with self._guard:
            changed = [name for name in names if values.get(name) != self._held.get(name)]
            if over.is_set() or not changed:
                return
            self._on_values(values)
            if not over.is_set():  # else `follow` was called from there, and knows better
                self._held = values
            gone = [name for name in changed if name not in values]
            said = ", ".join(f"{name} (removed)" if name in gone else name for name in changed)
            log.info("Secrets changed: %s", said)


def _why(error: Exception) -> str:
    if not isinstance(error, GussetError):
        return type(error).__name__  # what a library says may hold a value
    kind = {Denied: "denied", Unreachable: "unreachable"}.get(type(error), "failed")
    return f"{kind}: {error.message}"
