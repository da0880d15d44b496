"""Calls a function right after the model has imported a certain library; nothing is imported for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader  # whose module imports much

Hooks = Mapping[str, Callable[[Any], None]]


def call_on_import(hooks: Hooks) -> None:
    """Call each hook with its module when that is imported, or now if it was."""
    for name, hook in hooks.items():
        if name in sys.modules:
            hook(sys.modules[name])
    sys.meta_path.insert(0, _Finder(hooks))


class _Finder:
    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._hooks:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self._hooks[name])  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """Loads as `loader` does, then calls the hook. Not a subclass, which would need that import."""

    def __init__(self, loader: Loader, hook: Callable[[Any], None]) -> None:
        self._loader = loader
        self._hook = hook

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._hook(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # such as `get_source`, which tracebacks use
