"""Teaches libraries that choose by exact type that a secret's text is a `str`.

PyYAML, ruamel.yaml and toml look the type of a value up in a table, in which a
subclass of `str` is missing. An entry is added right after the model has
imported such a library.
"""

from __future__ import annotations

from collections.abc import Callable
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


ON_IMPORT: dict[str, Callable[[Any], None]] = {
    "yaml.representer": _yaml,
    "ruamel.yaml.representer": _yaml,
    "toml.encoder": _toml,
}
