"""Teaches libraries that choose by exact type that a secret's text is a `str`.

PyYAML, ruamel.yaml and toml look the type of a value up in a table, in which a
subclass of `str` is missing. An entry is added right after the model has
imported such a library; nothing is imported for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from gusset.secrets.value import SecretText


def _yaml(module: Any) -> None:
    for name in ("SafeRepresenter", "Representer", "RoundTripRepresenter"):
        representer = getattr(module, name, None)
        if representer is not None:
            representer.add_representer(SecretText, lambda dumper, text: dumper.represent_str(str(text)))


def _toml(module: Any) -> None:
    encode = module.TomlEncoder.__init__

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        encode(self, *arguments, **options)
        self.dump_funcs[SecretText] = self.dump_funcs[str]

    module.TomlEncoder.__init__ = init


_REGISTER: dict[str, Callable[[Any], None]] = {
    "yaml.representer": _yaml,
    "ruamel.yaml.representer": _yaml,
    "toml.encoder": _toml,
}


def register_on_import() -> None:
    """Register `SecretText` with each of the libraries when it is imported."""
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _REGISTER:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, _REGISTER[name])
                return spec
        return None


class _Loader(Loader):
    def __init__(self, loader: Loader, register: Callable[[Any], None]) -> None:
        self._loader = loader
        self._register = register

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._register(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # such as `get_source`, which tracebacks use
