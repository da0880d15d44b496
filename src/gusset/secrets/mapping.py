"""`Secrets`: what a model's code gets as `kwargs["secrets"]`.

Look-ups are answered from a dict that is never changed, only replaced as a
whole, so they need no lock and always see one consistent set of values.
"""

from __future__ import annotations

import logging
import queue
import threading
import traceback
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from typing import NoReturn, SupportsIndex

from gusset.errors import InvalidName, SecretLookupError, SecretNotDeclared, SecretNotSet, SecretNotText
from gusset.secrets.masking import Masker
from gusset.secrets.name import check_name, fold_name
from gusset.secrets.value import SecretText, SecretValue

Given = Mapping[str, SecretValue | bytes]
Changed = SecretText | bytes | None
Callback = Callable[[Changed], object]

_log = logging.getLogger("gusset.secrets")


class Secrets(Mapping[str, SecretText]):
    """The declared secrets of a model, by the spelling in its config.yaml.

    Length, iteration, `in`, `keys`, `items` and `dict(...)` cover the declared
    names that have a value. A miss is a `KeyError` that says what to do. Values
    follow rotation: look them up where they are used, or ask for `on_change`.

    A value that is not UTF-8 is among the names, and `bytes` gives it; every
    access that would give its text (`s[name]`, `get`, `items`, `values`,
    `dict(s)`) raises `SecretNotText`.
    """

    __slots__ = ("_calls", "_declared", "_file", "_masker", "_raw", "_texts", "_writing")

    def __init__(
        self,
        declared: Iterable[str],
        values: Given,
        *,
        config_file: str = "config.yaml",
        masker: Masker | None = None,
    ) -> None:
        """Only `values` whose names are in `declared` are kept.

        `masker` masks the tracebacks of failing callbacks; `config_file` is the
        name that errors advise to edit.
        """
        self._declared = tuple(dict.fromkeys(declared))
        self._file = config_file
        self._masker = masker
        self._writing = threading.Lock()
        self._calls: _Calls | None = None
        self._raw = self._own(values)
        self._texts = _texts_of(self._raw)

    @property
    def declared(self) -> tuple[str, ...]:
        """All declared names, with a value or without, in the order of the config."""
        return self._declared

    @property
    def _base_secrets(self) -> dict[str, None]:
        """The `secrets:` map of the config; published models read its keys."""
        return dict.fromkeys(self._declared)

    def __getitem__(self, name: str) -> SecretText:
        """The newest value that has reached this process.

        Raises:
            SecretNotDeclared: `name` is not under `secrets:` in the config.
            SecretNotSet: it is declared, but no source has a value.
            SecretNotText: the value is not UTF-8; use `bytes`.
        """
        try:
            return self._texts[name]
        except KeyError:
            raise self._miss(name) from None

    def bytes(self, name: str) -> bytes:
        """The exact bytes of a secret, whatever they are; misses raise as in `s[name]`."""
        try:
            return self._raw[name].reveal()
        except KeyError:
            raise self._miss(name) from None

    def __contains__(self, name: object) -> bool:
        return name in self._raw

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def items(self) -> ItemsView[str, SecretText]:
        """Pairs of name and value as they are now; a rotation meanwhile does not show."""
        return ItemsView(self._snapshot())

    def values(self) -> ValuesView[SecretText]:
        """The values as they are now; a rotation meanwhile does not show."""
        return ValuesView(self._snapshot())

    def on_change(self, name: str, callback: Callback) -> None:
        """Call `callback(value)` after each change of `name` that reaches this process.

        `value` is the new text; `bytes` when it is not UTF-8; None when the
        secret is gone. Calls come one at a time, in the order of the changes,
        on one thread of their own, when look-ups already answer with the new
        value. What a callback raises is logged and stops nothing.

        Raises:
            SecretNotDeclared: such a name never changes.
        """
        if name not in self._declared:
            raise self._miss(name)
        if not callable(callback):
            raise TypeError("on_change needs a callable that takes the new value")
        with self._writing:
            if self._calls is None:
                self._calls = _Calls(self._masker or Masker(self._raw.values()))
            self._calls.add(name, callback)

    def replace(self, values: Mapping[str, SecretValue]) -> None:
        """Let look-ups answer from `values` from now on, then queue the callbacks of what changed.

        For the code that keeps a replica up to date; `values` is the whole set,
        and a declared name that it lacks has no value any more.
        """
        new = self._own(values)
        texts = _texts_of(new)
        with self._writing:
            old, self._raw, self._texts = self._raw, new, texts
            if self._calls is None:
                return
            for name in self._declared:
                if old.get(name) != new.get(name):
                    self._calls.queue(name, _changed(name, new, texts))

    def __repr__(self) -> str:
        raw = self._raw
        names = (name if name in raw else f"{name} (not set)" for name in self._declared)
        return f"Secrets({', '.join(names)})"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            "Secrets cannot be pickled or copied; pass on the values that are needed, as in secrets['name']"
        )

    def _own(self, values: Given) -> dict[str, SecretValue]:
        present = ((name, values[name]) for name in self._declared if name in values)
        return {name: v if isinstance(v, SecretValue) else SecretValue(v) for name, v in present}

    def _snapshot(self) -> Secrets:
        return Secrets(self._declared, self._raw, config_file=self._file)

    def _miss(self, name: object) -> SecretLookupError | SecretNotText:
        if name in self._raw:
            return SecretNotText(
                f"the secret {name!r} is not UTF-8 text; secrets.bytes({name!r}) gives its exact bytes"
            )
        if name in self._declared:
            return SecretNotSet(
                f"the secret {name!r} is declared in {self._file}, but has no value; "
                f"add it with: gusset secret set {name}"
            )
        return self._undeclared(name)

    def _undeclared(self, name: object) -> SecretNotDeclared:
        try:
            asked = check_name(name)  # type: ignore[arg-type]
        except InvalidName as wrong:
            return SecretNotDeclared(f"no such secret: {wrong.message}")
        for known in self._declared:
            if fold_name(known) == fold_name(asked):
                return SecretNotDeclared(
                    f"the secret {asked!r} is not declared; {self._file} spells it {known!r}"
                )
        return SecretNotDeclared(
            f'the secret {asked!r} is not declared; add "{asked}: null" under "secrets:" in {self._file}'
        )


def _texts_of(raw: Mapping[str, SecretValue]) -> dict[str, SecretText]:
    texts = {}
    for name, value in raw.items():
        try:
            texts[name] = SecretText(value.reveal(), "utf-8")
        except UnicodeDecodeError:
            continue  # in `raw` only: asking for its text is an error
    return texts


def _changed(name: str, raw: Mapping[str, SecretValue], texts: Mapping[str, SecretText]) -> Changed:
    if name in texts:
        return texts[name]
    return raw[name].reveal() if name in raw else None


class _Calls:
    """The callbacks of one `Secrets`, and the thread that calls them."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._callbacks: dict[str, list[Callback]] = {}
        self._queue: queue.SimpleQueue[tuple[str, Callback, Changed]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="gusset-on-change", daemon=True).start()

    def add(self, name: str, callback: Callback) -> None:
        self._callbacks.setdefault(name, []).append(callback)

    def queue(self, name: str, value: Changed) -> None:
        for callback in self._callbacks.get(name, ()):
            self._queue.put((name, callback, value))

    def _run(self) -> None:
        while True:
            name, callback, value = self._queue.get()
            try:
                callback(value)
            except BaseException as error:  # SystemExit too: the thread must outlive any callback
                self._report(name, value, error)
            del callback, value

    def _report(self, name: str, value: Changed, error: BaseException) -> None:
        if value is not None:
            self._masker.learn([SecretValue(value if isinstance(value, bytes) else value.encode())])
        trace = self._masker.mask_text("".join(traceback.format_exception(error)))
        _log.error("the on_change callback of the secret %r failed:\n%s", name, trace.rstrip())
