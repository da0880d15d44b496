"""Objects as YAML that every reader reads alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

# Readers differ on what is a text: `y`, `1e3`, `0o7` and `1:30` are other things to some. All else is quoted.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_LINES = re.compile(r"(?:[!-~](?:[ -~]*[!-~])?\n)+")  # several lines, without spaces at their ends
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "nan", "inf"})


class _Dumper(yaml.SafeDumper):
    """Writes keys in their order, and every text so that it can only be read as a text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style: str | None = '"'
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        style = None
    elif _LINES.fullmatch(text):
        style = "|"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def to_yaml(objects: Iterable[Mapping[str, Any]]) -> str:
    """The objects as documents of one text, in ASCII."""
    text: str = yaml.dump_all(
        objects, Dumper=_Dumper, sort_keys=False, explicit_start=True, width=1_000_000, allow_unicode=False
    )
    return text
