"""Static analysis of a model's code, which is parsed but never run."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ENTRY_METHODS = frozenset(
    {"predict", "websocket", "chat_completions", "completions", "embeddings", "messages", "responses"}
)
"""A class with any of these methods can handle requests."""

_MAKES_METHODS = frozenset({"setattr", "__getattr__", "__getattribute__", "exec", "type"})


@dataclass(kw_only=True)
class ModelCode:
    """One parsed Python file, or the reason why it cannot be parsed, in `fault`."""

    file: Path
    tree: ast.Module | None = None
    fault: str | None = None
    line: int | None = None
    column: int | None = None
    names: frozenset[str] = field(default_factory=frozenset)

    def find_class(self, name: str) -> ast.ClassDef | None:
        """The class that the file defines at its top level; None if it defines none or imports it."""
        nodes = _top_level(self.tree.body) if self.tree else ()
        return next((node for node in nodes if isinstance(node, ast.ClassDef) and node.name == name), None)

    def may_have(self, name: str) -> bool:
        """Whether the file may bind the name in another way: by an import, an assignment or `import *`."""
        return name in self.names or "*" in self.names


def read_code(file: Path) -> ModelCode:
    """Parse a Python file. Never raises: see `fault`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the model's code, such as an invalid escape
            tree = ast.parse(file.read_bytes())
    except SyntaxError as error:
        return ModelCode(file=file, fault="it is not valid Python", line=error.lineno, column=error.offset)
    except (ValueError, RecursionError, MemoryError):
        return ModelCode(file=file, fault="it cannot be parsed")
    except OSError as error:
        return ModelCode(file=file, fault=f"it cannot be read: {(error.strerror or 'an error').lower()}")
    return ModelCode(file=file, tree=tree, names=frozenset(_bound_names(tree)))


def lacks_entry_method(cls: ast.ClassDef, code: ModelCode) -> bool:
    """Whether the class surely has no method for requests: none defined, inherited or set later."""
    if cls.bases or cls.keywords or cls.decorator_list or code.tree is None:
        return False
    if any(
        isinstance(node, ast.Name | ast.Attribute) and _name(node) in _MAKES_METHODS
        for node in ast.walk(code.tree)
    ):
        return False
    bound = set(_bound_names(cls)) | _assigned_on(cls.name, code.tree)
    return not bound & (ENTRY_METHODS | {"__getattr__", "__getattribute__", "*"})


def _assigned_on(name: str, tree: ast.Module) -> set[str]:
    """Attributes that are set on the class or on `self` anywhere in the file."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and _name(node.value) in (name, "self")
    }


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run on import, including those within `if` and `try`."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody", "handlers"):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                for inner in getattr(node, part, []):
                    yield from _top_level(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])


def _bound_names(tree: ast.Module | ast.ClassDef) -> Iterator[str]:
    for node in _top_level(tree.body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
        else:
            yield from (
                inner.id
                for inner in ast.walk(node)
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)
            )


def _name(node: ast.AST) -> str | None:
    """The last name of `a`, `a.b` or `a["b"]`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if (
        isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
    ):
        return node.slice.value
    return None


@dataclass(frozen=True, slots=True)
class Reference:
    """A name in the code, with its line and column counted from 1."""

    name: str
    line: int
    column: int


_FILE = re.compile(r"(?<![\w.}/-])/secrets/([A-Za-z0-9_.-]+)")


def secret_files_in_command(command: str) -> list[str]:
    """The names of the files in /secrets that a command reads, without repetitions."""
    return list(dict.fromkeys(_FILE.findall(command)))


def secrets_used(tree: ast.Module) -> list[Reference]:
    """Look-ups by a literal key in `secrets`, `_secrets` or `kwargs["secrets"]`."""
    uses = []
    for node in ast.walk(tree):
        mapping, key = _look_up(node)
        is_secrets = mapping is not None and _name(mapping) in ("secrets", "_secrets")
        if is_secrets and isinstance(key, ast.Constant) and isinstance(key.value, str):
            uses.append(Reference(key.value, key.lineno, key.col_offset + 1))
    return uses


def _look_up(node: ast.AST) -> tuple[ast.expr | None, ast.expr | None]:
    """Mapping and key of `mapping[key]` or `mapping.get(key)`; None for other nodes."""
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        return node.value, node.slice
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "get"
        and node.args
    ):
        return node.func.value, node.args[0]
    return None, None


def changes_search_path(tree: ast.Module) -> bool:
    """Whether the code may change where modules are found, by `sys.path` or `site.addsitedir`."""
    return any(
        isinstance(node, ast.Attribute)
        and (_name(node.value), node.attr) in (("sys", "path"), ("site", "addsitedir"))
        for node in ast.walk(tree)
    )


def keyword_uses(tree: ast.Module, keyword: str, function: str, module: str) -> list[Reference]:
    """Arguments `keyword=` in calls of one function, which the file imports from `module` or by its name."""
    names, modules = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == module and not node.level:
            names |= {alias.asname or alias.name for alias in node.names if alias.name == function}
        elif isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name for alias in node.names if alias.name == module}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _calls(node.func, function, names, modules):
            found += [word for word in node.keywords if word.arg == keyword]
    return [Reference(keyword, word.lineno, word.col_offset + 1) for word in found]


def _calls(called: ast.expr, function: str, names: set[str], modules: set[str]) -> bool:
    if isinstance(called, ast.Name):
        return called.id in names
    is_attribute = isinstance(called, ast.Attribute) and called.attr == function
    return is_attribute and ast.unparse(called.value) in modules  # type: ignore[attr-defined]
