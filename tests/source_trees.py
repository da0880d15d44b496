"""The syntax trees of gusset's modules, for tests that read its source."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path


@cache
def tree_of(module: Path) -> ast.Module:
    """A module's syntax tree. Parsing all modules takes seconds: each is parsed once."""
    return ast.parse(module.read_text())
