"""The modules that a model's code imports, found by reading it. Nothing of the model is imported."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gusset.package.model_code import changes_search_path, read_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """An absolute import: the module, and its position, counted from 1.

    `is_path_changed` says whether this file, or one that was read before it, changes `sys.path`.
    """

    module: str
    file: Path
    line: int
    column: int
    is_path_changed: bool

    @property
    def top_level(self) -> str:
        return self.module.partition(".")[0]


def imports_of(model_file: Path, root: Path) -> Iterator[Import]:
    """The absolute imports of the model's file and of the modules in `root` that it imports.

    Imports within `try` or below `if` are left out: such code copes with a module
    that is missing.
    """
    waiting, seen = [model_file], {model_file}
    is_path_changed = False
    while waiting:
        file = waiting.pop(0)
        tree = read_code(file).tree
        is_path_changed = is_path_changed or (tree is not None and changes_search_path(tree))
        for node in _imports(tree) if tree else ():
            for module, is_local in _modules(node, file, root):
                if not is_local:
                    yield Import(
                        module=module,
                        file=file,
                        line=node.lineno,
                        column=node.col_offset + 1,
                        is_path_changed=is_path_changed,
                    )
                for found in _files_of(root, module):
                    if found not in seen:
                        seen.add(found)
                        waiting.append(found)


def is_in(module: str, folders: Iterable[Path]) -> bool:
    """Whether one of `folders` has a file or folder for a top-level module."""
    return any(_files_of(folder, module) or (folder / module).is_dir() for folder in folders)


def is_installed(module: str) -> bool:
    """Whether a top-level module is built in or installed."""
    try:
        return module in sys.stdlib_module_names or importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _imports(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements at the top level and in functions and classes, but not within `try` or `if`."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.With | ast.For | ast.While
        ):
            waiting += node.body


def _modules(node: ast.Import | ast.ImportFrom, file: Path, root: Path) -> Iterator[tuple[str, bool]]:
    """The full names of the imported modules, and whether each is relative to the model's own package."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, False) for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        if not file.is_relative_to(root):
            return
        parts = file.relative_to(root).parts[: -node.level]
        base = ".".join((*parts, base) if base else parts)
    elif base:
        yield base, False
    for alias in node.names:  # `from model import helper` may name a module
        yield f"{base}.{alias.name}" if base else alias.name, True
    if node.level:
        yield base, True


def _files_of(folder: Path, module: str) -> list[Path]:
    """The files of a module below `folder`, if they are there."""
    path = folder.joinpath(*module.split("."))
    return [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
