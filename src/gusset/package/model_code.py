"""What can be seen in a model's code without running it."""

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
"""A class with any of these answers requests."""

_MAKES_METHODS = frozenset({"setattr", "__getattr__", "__getattribute__", "exec", "type"})


@dataclass
class Code:
    """One Python file: whether it parses, and what it holds."""

    file: Path
    tree: ast.Module | None = None
    fault: str | None = None
    line: int | None = None
    column: int | None = None
    names: frozenset[str] = field(default_factory=frozenset)

    def find_class(self, name: str) -> ast.ClassDef | None:
        """The class as the file's top level defines it; None when it does not, or only by an import."""
        nodes = _top_level(self.tree.body) if self.tree else ()
        return next((node for node in nodes if isinstance(node, ast.ClassDef) and node.name == name), None)

    def may_have(self, name: str) -> bool:
        """Whether the name could come about otherwise: imported, assigned, by `*`."""
        return name in self.names or "*" in self.names


def read_code(file: Path) -> Code:
    """Parse a Python file; what keeps it from being parsed is in `fault`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the model's own text, such as an invalid escape
            tree = ast.parse(file.read_bytes())
    except SyntaxError as error:
        return Code(file, fault="it is not valid Python", line=error.lineno, column=error.offset)
    except (ValueError, RecursionError, MemoryError):
        return Code(file, fault="it cannot be parsed")
    except OSError as error:
        return Code(file, fault=f"it cannot be read: {(error.strerror or 'an error').lower()}")
    return Code(file, tree, names=frozenset(_bound_names(tree)))


def surely_without_entry(cls: ast.ClassDef, code: Code) -> bool:
    """Whether the class has no method that answers requests, and no way to come by one."""
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
    """Attributes set on the class, or on `self`, anywhere in the file."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and _name(node.value) in (name, "self")
    }


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run on import, also those within `if` and `try`."""
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
    """The last name of `a`, `a.b` or of a text key, `a["b"]`."""
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
class Use:
    """A place in the code, from 1, that names something."""

    name: str
    line: int
    column: int


_FILE = re.compile(r"(?<![\w.}/-])/secrets/([A-Za-z0-9_.-]+)")


def secrets_read(command: str) -> list[str]:
    """The names of the files in /secrets that a command names, each once."""
    return list(dict.fromkeys(_FILE.findall(command)))


def secrets_used(tree: ast.Module) -> list[Use]:
    """Look-ups by a text in what is called `secrets` or `_secrets`, also in `kwargs["secrets"]`."""
    uses = []
    for node in ast.walk(tree):
        holder, key = _look_up(node)
        named = holder is not None and _name(holder) in ("secrets", "_secrets")
        if named and isinstance(key, ast.Constant) and isinstance(key.value, str):
            uses.append(Use(key.value, key.lineno, key.col_offset + 1))
    return uses


def _look_up(node: ast.AST) -> tuple[ast.expr | None, ast.expr | None]:
    """Holder and key of `holder[key]` or `holder.get(key)`; of nothing else."""
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


def keyword_uses(tree: ast.Module, keyword: str) -> list[Use]:
    """Calls that pass `keyword=`."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    found = (word for call in calls for word in call.keywords if word.arg == keyword)
    return [Use(keyword, word.lineno, word.col_offset + 1) for word in found]
