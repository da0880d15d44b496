"""`Secrets`: what a model's code gets as `kwargs["secrets"]`.

Look-ups read a dict of one generation of values, which is replaced as a whole. So they
need no lock. That dict begins empty: the first look-up of each name puts its value there, which
costs later ones nothing and lets a rotation know that the new value is used.
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

Values = Mapping[str, SecretValue | bytes]
OnFirstUse = Callable[[str], object]
NewValue = SecretText | bytes | None
_NONE: Values = {}
Callback = Callable[[NewValue], object]

_log = logging.getLogger("gusset.secrets")


class _Generation:
    """The values from one swap to the next. Only the sets of what was used ever change."""

    __slots__ = ("on_first_use", "previous", "raw", "texts", "used", "used_texts")

    def __init__(
        self,
        raw: Mapping[str, SecretValue],
        previous: Mapping[str, SecretValue],
        on_first_use: OnFirstUse | None,
    ) -> None:
        self.raw = raw
        self.texts = _texts_of(raw)
        self.previous = previous
        self.on_first_use = on_first_use
        self.used: set[str] = set()
        self.used_texts: dict[str, SecretText] = {}

    def use(self, name: str) -> None:
        """Note that a value was looked up."""
        if name not in self.used:
            self.used.add(name)
            if self.on_first_use is not None:
                self.on_first_use(name)


class Secrets(Mapping[str, SecretText]):
    """The declared secrets of a model, by the spelling in its config.yaml.

    Length, iteration, `in`, `keys`, `items` and `dict(...)` cover the declared
    names that have a value. A name without one raises a `KeyError` whose message
    says what to do. Values follow rotation: look them up where they are used, or
    register a callback with `on_change`.

    The names include secrets whose value is not UTF-8. `bytes` returns such a
    value; all that would return its text (`s[name]`, `get`, `items`, `values`,
    `dict(s)`) raises `SecretNotText`.
    """

    __slots__ = ("_callbacks", "_config_file", "_declared", "_generation", "_masker", "_used", "_write_lock")

    def __init__(
        self,
        declared: Iterable[str],
        values: Values,
        *,
        previous: Values = _NONE,
        config_file: str = "config.yaml",
        masker: Masker | None = None,
        on_first_use: OnFirstUse | None = None,
    ) -> None:
        """Keep the `declared` names of `values` and of `previous`, the values before them.

        `on_first_use` is called with a name when its value is first looked up, on the thread that does so.
        `masker` masks the tracebacks of failing callbacks. `config_file` is the
        file that error messages name.
        """
        self._declared = tuple(dict.fromkeys(declared))
        self._config_file = config_file
        self._masker = masker
        self._write_lock = threading.Lock()
        self._callbacks: _Callbacks | None = None
        self._generation = self._new_generation(values, previous, on_first_use)
        self._used = self._generation.used_texts

    def _new_generation(
        self, values: Values, previous: Values, on_first_use: OnFirstUse | None
    ) -> _Generation:
        return _Generation(self._only_declared(values), self._only_declared(previous), on_first_use)

    @property
    def declared(self) -> tuple[str, ...]:
        """All declared names in the config's order, with and without a value."""
        return self._declared

    @property
    def _base_secrets(self) -> dict[str, None]:
        """The `secrets:` map of the config. Some published models read its keys."""
        return dict.fromkeys(self._declared)

    def __getitem__(self, name: str) -> SecretText:
        """The latest value that this process has received.

        Raises:
            SecretNotDeclared: `name` is not under `secrets:` in the config.
            SecretNotSet: it is declared, but has no value.
            SecretNotText: the value is not UTF-8; use `bytes`.
        """
        try:
            return self._used[name]
        except KeyError:
            return self._first_look_up(name)

    def _first_look_up(self, name: str) -> SecretText:
        generation = self._generation
        try:
            text = generation.used_texts[name] = generation.texts[name]
        except KeyError:
            raise self._lookup_error(name) from None
        generation.use(name)
        return text

    def bytes(self, name: str) -> bytes:
        """The exact bytes of a secret, UTF-8 or not. Raises as `s[name]` does for a missing one."""
        generation = self._generation
        try:
            value = generation.raw[name].reveal()
        except KeyError:
            raise self._lookup_error(name) from None
        generation.use(name)
        return value

    def previous(self, name: str) -> NewValue:
        """The previous value, while it stays valid; None when there is none.

        Text, or `bytes` if it is not UTF-8. For code that verifies what others have signed or sent, and
        for servers that accept two keys during a rotation.

        Raises:
            SecretNotDeclared: `name` is not under `secrets:` in the config.
        """
        if name not in self._declared:
            raise self._lookup_error(name)
        kept = self._generation.previous
        return _new_value(name, kept, _texts_of({name: kept[name]})) if name in kept else None

    def __contains__(self, name: object) -> bool:
        return name in self._generation.raw

    def __iter__(self) -> Iterator[str]:
        return iter(self._generation.raw)

    def __len__(self) -> int:
        return len(self._generation.raw)

    def items(self) -> ItemsView[str, SecretText]:
        """Pairs of name and value as they are now; later rotations do not change them."""
        return ItemsView(self._snapshot())

    def values(self) -> ValuesView[SecretText]:
        """The values as they are now; later rotations do not change them."""
        return ValuesView(self._snapshot())

    def on_change(self, name: str, callback: Callback) -> None:
        """Call `callback(value)` after each change of `name` that this process receives.

        `value` is the new text, `bytes` if it is not UTF-8, or None if the
        secret has no value any more. Callbacks run on a separate thread, one
        at a time and in the order of the changes; look-ups already return the new
        value then. An exception of a callback is logged and has no other effect.

        Raises:
            SecretNotDeclared: the name is not declared, so it never changes.
        """
        if name not in self._declared:
            raise self._lookup_error(name)
        if not callable(callback):
            raise TypeError("on_change needs a callable that takes the new value")
        with self._write_lock:
            if self._callbacks is None:
                self._callbacks = _Callbacks.start(self._masker or Masker(self._generation.raw.values()))
            self._callbacks.add(name, callback)

    def replace(
        self,
        values: Mapping[str, SecretValue],
        *,
        previous: Values = _NONE,
        on_first_use: OnFirstUse | None = None,
    ) -> None:
        """Replace all values, then queue the callbacks of those that changed.

        For the code that keeps a replica up to date. A declared name that is not
        in `values` has no value afterwards. No look-up that begins after this returns an older value.
        """
        new = self._new_generation(values, previous, on_first_use)
        with self._write_lock:
            old, self._generation = self._generation, new
            self._used = new.used_texts  # second: a look-up that misses here reads the generation
            if self._callbacks is None:
                return
            for name in self._declared:
                if old.raw.get(name) != new.raw.get(name):
                    self._callbacks.queue(name, _new_value(name, new.raw, new.texts))

    def __repr__(self) -> str:
        raw = self._generation.raw
        names = (name if name in raw else f"{name} (not set)" for name in self._declared)
        return f"Secrets({', '.join(names)})"

    def __copy__(self) -> Secrets:
        return self  # a copy of an object that holds it must follow rotations, too

    def __deepcopy__(self, memo: object) -> Secrets:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("Secrets cannot be pickled; pass the values that are needed, as in secrets['name']")

    def _only_declared(self, values: Values) -> dict[str, SecretValue]:
        present = ((name, values[name]) for name in self._declared if name in values)
        return {name: v if isinstance(v, SecretValue) else SecretValue(v) for name, v in present}

    def _snapshot(self) -> Secrets:
        """The values as they are now. A look-up there counts as one here."""
        generation = self._generation
        return Secrets(
            self._declared, generation.raw, config_file=self._config_file, on_first_use=generation.use
        )

    def _lookup_error(self, name: object) -> SecretLookupError | SecretNotText:
        if name in self._generation.raw:
            return SecretNotText(
                f"the secret {name!r} is not UTF-8 text; secrets.bytes({name!r}) gives its exact bytes"
            )
        if name in self._declared:
            return SecretNotSet(
                f"the secret {name!r} is declared in {self._config_file}, but has no value; "
                f"add it with: gusset secret set {name}"
            )
        return self._not_declared(name)

    def _not_declared(self, name: object) -> SecretNotDeclared:
        try:
            checked = check_name(name)
        except InvalidName as error:
            return SecretNotDeclared(f"no such secret: {error.message}")
        for known in self._declared:
            if fold_name(known) == fold_name(checked):
                return SecretNotDeclared(
                    f"the secret {checked!r} is not declared; {self._config_file} spells it {known!r}"
                )
        return SecretNotDeclared(
            f"the secret {checked!r} is not declared; "
            f'add "{checked}: null" under "secrets:" in {self._config_file}'
        )


def _texts_of(raw: Mapping[str, SecretValue]) -> dict[str, SecretText]:
    texts = {}
    for name, value in raw.items():
        try:
            texts[name] = SecretText(value.reveal(), "utf-8")
        except UnicodeDecodeError:
            continue  # only in `raw`: a look-up of its text is an error
    return texts


def _new_value(name: str, raw: Mapping[str, SecretValue], texts: Mapping[str, SecretText]) -> NewValue:
    if name in texts:
        return texts[name]
    return raw[name].reveal() if name in raw else None


class _Callbacks:
    """The callbacks of one `Secrets`, and the thread that runs them."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._by_name: dict[str, list[Callback]] = {}
        self._queue: queue.SimpleQueue[tuple[str, Callback, NewValue]] = queue.SimpleQueue()

    @classmethod
    def start(cls, masker: Masker) -> _Callbacks:
        """Start the thread."""
        callbacks = cls(masker)
        threading.Thread(target=callbacks._run, name="gusset-on-change", daemon=True).start()
        return callbacks

    def add(self, name: str, callback: Callback) -> None:
        self._by_name.setdefault(name, []).append(callback)

    def queue(self, name: str, value: NewValue) -> None:
        for callback in self._by_name.get(name, ()):
            self._queue.put((name, callback, value))

    def _run(self) -> None:
        while True:
            name, callback, value = self._queue.get()
            try:
                callback(value)
            except BaseException as error:  # SystemExit too: the thread must outlive any callback
                self._report(name, value, error)
            del callback, value

    def _report(self, name: str, value: NewValue, error: BaseException) -> None:
        if value is not None:
            self._masker.learn([SecretValue(value if isinstance(value, bytes) else value.encode())])
        trace = self._masker.mask_text("".join(traceback.format_exception(error)))
        _log.error("the on_change callback of the secret %r failed:\n%s", name, trace.rstrip())
