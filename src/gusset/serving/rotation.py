"""Reads a deployment's secrets at the start, and again whenever they may have changed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from gusset.errors import Denied, GussetError, SecretsMissing, Unreachable
from gusset.secrets.source import Delivered, SecretSource
from gusset.serving.deployment import DeclaredSecret

log = logging.getLogger("gusset.serving")

Values = Mapping[str, Delivered]

_FIRST_RETRY = 0.5  # seconds, doubled up to
_LAST_RETRY = 30.0


class Declaring(Protocol):
    """Something that is served and declares secrets: a model, or an image."""

    @property
    def name(self) -> str: ...
    @property
    def config_file(self) -> str: ...
    @property
    def secrets(self) -> Sequence[DeclaredSecret]: ...
    @property
    def declared(self) -> tuple[str, ...]: ...


def read_secrets(deployment: Declaring, source: SecretSource, allow_missing: Collection[str] = ()) -> Values:
    """The declared secrets that `source` has.

    `allow_missing` names those that may lack, beside the optional ones; "all" allows it of all.

    Raises:
        SecretsMissing: naming every other one that lacks, where it is declared and how to add it.
        Denied, Unreachable: as the source says; that is never taken for missing.
    """
    if not deployment.secrets:
        return {}
    held = source.read(deployment.declared)
    missing = [
        secret
        for secret in deployment.secrets
        if secret.name not in held and not secret.optional and secret.name not in allow_missing
    ]
    if missing and "all" not in allow_missing:
        raise _missing(deployment, missing)
    return held


def _missing(deployment: Declaring, missing: list[DeclaredSecret]) -> SecretsMissing:
    lines = []
    for secret in missing:
        place = deployment.config_file if secret.line is None else f"{deployment.config_file}:{secret.line}"
        lines.append(f"  {secret.name} ({place}): gusset secret set {secret.name}")
    what = "a secret that has" if len(missing) == 1 else f"{len(missing)} secrets that have"
    return SecretsMissing(
        f"{deployment.name} declares {what} no value:\n" + "\n".join(lines),
        names=[secret.name for secret in missing],
        hint="add them, or start without: --allow-missing NAME",
    )


class Rotation:
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
