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
        self._names = names
        self._source = source
        self._held = held
        self._on_values = on_values
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gusset-rotation", daemon=True)
        if names:
            self._thread.start()

    def stop(self) -> None:
        """Return when the source is no longer used, or after two seconds."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                for _ in self._source.watch(self._names, self._stop):
                    if self._stop.is_set():
                        return
                    self._follow()
            except Exception as error:  # a source must not, but without us the model would never hear again
                # Its type only: what a library says may hold a value.
                log.error("Watching secrets failed, and goes on: %s", type(error).__name__)  # noqa: TRY400
            self._stop.wait(_FIRST_RETRY)

    def _follow(self) -> None:
        pause = _FIRST_RETRY
        troubled = ""
        while not self._stop.is_set():
            doing = "read again"
            try:
                values = self._source.read(self._names)
                doing = "handed on"  # there may be no room for them
                self._take(values)
            except Exception as error:
                if troubled != doing:
                    log.warning(
                        "Secrets could not be %s, the model keeps what it has: %s", doing, _why(error)
                    )
                troubled = doing
                self._stop.wait(pause)
                pause = min(pause * 2, _LAST_RETRY)
            else:
                if troubled:
                    log.info("Secrets can be %s.", troubled)
                return

    def _take(self, values: Values) -> None:
        changed = [name for name in self._names if values.get(name) != self._held.get(name)]
        if not changed:
            return
        self._on_values(values)
        self._held = values
        gone = [name for name in changed if name not in values]
        log.info("Secrets changed: %s", ", ".join(f"{n} (removed)" if n in gone else n for n in changed))


def _why(error: Exception) -> str:
    if not isinstance(error, GussetError):
        return type(error).__name__  # what a library says may hold a value
    kind = {Denied: "denied", Unreachable: "unreachable"}.get(type(error), "failed")
    return f"{kind}: {error.message}"
