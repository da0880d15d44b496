"""The secrets that `gusset exec` and `gusset agent` provide: as files, as variables, and followed."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from gusset.cli.signal_forwarding import wake
from gusset.errors import UsageError
from gusset.runtime.declared_secrets import Values
from gusset.runtime.secret_watcher import SecretWatcher, acknowledge
from gusset.secrets.masking import Masker
from gusset.secrets.recent_values import RecentValues
from gusset.secrets.sources.source import SecretSource
from gusset.secrets.value import SecretValue

log = logging.getLogger("gusset")


class Folder(Protocol):
    """A folder in memory with secrets as files."""

    @property
    def path(self) -> Path: ...
    def replace(self, values: Mapping[str, SecretValue], previous: Mapping[str, SecretValue]) -> None:
        """Make these the only values, and `previous` those before them. Raises HostError."""


class ProvidedSecrets:
    """Puts values into the folder and the environment of a command, and teaches them to its masker."""

    def __init__(
        self,
        folder: Folder,
        masker: Masker,
        *,
        files: Sequence[str],
        variables: Mapping[str, str],
        held: list[SecretValue],
        restarts: bool = False,
    ) -> None:
        """`files` are names of secrets; `variables` maps variables to names of secrets.

        All values are added to `held`. With `restarts` the command is started again for new values:
        it uses them from that start on, not from when the files were replaced.
        """
        self._folder = folder
        self._files = files
        self._variables = variables
        self._held = held
        # A running command keeps its environment, and what it has read at its start.
        self._used_from_start = restarts or bool(variables)
        self._values: Values = {}
        self._recent = RecentValues(masker)
        self._source: SecretSource | None = None  # that is being followed
        self._changed = threading.Event()

    @property
    def names(self) -> list[str]:
        """The names of all of them."""
        return sorted({*self._files, *self._variables.values()})

    def provide(self, values: Values) -> None:
        """Make these the current values. Secrets without a value have no file and no variable.

        Raises:
            UsageError: a value cannot be that of an environment variable; the values stay as they were.
            HostError: there is no room for the files.
        """
        for name in self._variables.values():
            if name in values:
                _for_environment(name, values[name].value)
        new = {name: each.value for name, each in values.items()}
        kept = {name: each.previous.value for name, each in values.items() if each.previous}
        self._learn(kept, new)
        self._folder.replace(
            {name: new[name] for name in self._files if name in new},
            {name: kept[name] for name in self._files if name in kept},
        )
        self._values = values
        if not self._used_from_start:
            self._acknowledge()

    def _learn(self, *groups: Mapping[str, SecretValue]) -> None:
        """Mask these values from now on, and forget those of long ago."""
        shown = [{name: _on_terminal(value) for name, value in group.items()} for group in groups]
        forgotten = self._recent.add(*groups, *shown)
        used = {value for group in (*groups, *shown) for value in group.values()}
        self._held[:] = [value for value in self._held if value not in forgotten]
        self._held += used.difference(self._held)

    def _acknowledge(self) -> None:
        if self._source is not None:
            acknowledge(self._source, self._values)

    def environment(self) -> dict[bytes, bytes]:
        """This process's environment with the folder and the variables, for a command that starts now."""
        values = self._values
        self._acknowledge()
        return {
            **os.environb,
            b"GUSSET_SECRETS_DIR": os.fsencode(self._folder.path),
            **{
                os.fsencode(variable): _for_environment(name, values[name].value)
                for variable, name in self._variables.items()
                if name in values
            },
        }

    @contextmanager
    def following(
        self, source: SecretSource, on_change: Callable[[], object] | None = None
    ) -> Iterator[None]:
        """Provide each new set of values of `source` within the context; see `take_change`.

        `on_change` is then called on the watcher's thread.
        """

        def update(values: Values) -> None:
            if self._update(values) and on_change is not None:
                on_change()

        self._source = source
        if not self._used_from_start:
            self._acknowledge()
        watcher = SecretWatcher(source, update)
        watcher.start(self.names, self._values)
        try:
            yield
        finally:
            watcher.stop()

    def _update(self, values: Values) -> bool:
        """Provide these values; returns whether that is a change. The end of an overlap is not one."""
        removed = sorted(self._values.keys() - values.keys())
        changed = _current(values) != _current(self._values)
        self.provide(values)
        for name in removed:
            log.warning(
                "%s was deleted, and the command no longer has it; `gusset secret restore %s` restores it",
                name,
                name,
            )
        if changed:
            self._changed.set()
            wake()
        return changed

    def take_change(self) -> bool:
        """Whether there were new values since the last call."""
        changed = self._changed.is_set()
        self._changed.clear()
        return changed


def _current(values: Values) -> dict[str, tuple[SecretValue, int | None]]:
    """The values and versions, without the previous ones."""
    return {name: (each.value, each.version) for name, each in values.items()}


def _on_terminal(value: SecretValue) -> SecretValue:
    """The value with the line ends that a terminal writes."""
    return SecretValue(value.reveal().replace(b"\n", b"\r\n"))


def _for_environment(name: str, value: SecretValue) -> bytes:
    data = value.reveal()
    if b"\0" in data:
        raise UsageError(
            f"the value for {name} has a NUL byte, which an environment variable cannot have",
            hint=f"pass it as a file: --secret {name}",
        )
    return data
