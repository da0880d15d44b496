"""Limits that keep the code readable: the size of classes and functions, and how many arguments go by position."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import gusset
from tests.source_trees import tree_of

ROOT = Path(gusset.__file__).parent
MOST_LINES = 250
MOST_LINES_OF_FUNCTION = 60
LONG_FUNCTIONS = 0.012  # the share that may have over 30 lines
MOST_PUBLIC_METHODS = 15
MOST_POSITIONAL = 4

# Class or function -> why it may be larger.
LARGER = {
    "containers/proxy/client_connection.py:ClientConnection": "six methods are asyncio's, five OpenConnections'",
    "runtime/http_connection.py:HttpConnection": "asyncio's and the parser's callbacks are public methods, all on one state",
    "runtime/request_parser.py:RequestParser": "httptools' callbacks, and what they share with a head that is not parsed",
    "vault/storage/postgres.py:Postgres": "a dialect: one method for each thing in which databases differ",
    "vault/storage/sqlite.py:Sqlite": "a dialect: one method for each thing in which databases differ",
    "vault/wiring.py:Vault": "an attribute for each service of the vault, and what they share",
}


LONGER = {
    "vault/storage/migrations/versions/0001_first.py:upgrade": "one statement for each table of the first release"
}


def nodes() -> Iterator[tuple[Path, ast.AST]]:
    for module in sorted(ROOT.rglob("*.py")):
        name = module.relative_to(ROOT)
        if "demo_model" not in name.parts:
            for node in ast.walk(tree_of(module)):
                yield name, node


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for module, node in nodes():
        if isinstance(node, ast.ClassDef):
            yield f"{module}:{node.name}", node


def test_no_class_is_large_without_a_reason() -> None:
    """At most 250 lines and 15 public methods, or a reason in `LARGER`."""
    large = set()
    for name, node in classes():
        methods = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
        public = [method for method in methods if not method.name.startswith("_")]
        if _lines(node) > MOST_LINES or len(public) > MOST_PUBLIC_METHODS:
            large.add(name)
    assert large == set(LARGER)


def test_no_function_is_long_without_a_reason() -> None:
    """At most 60 lines, or a reason in `LONGER`. The docstring does not count."""
    long = {
        f"{module}:{node.name}"
        for module, node in nodes()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _lines(node) > MOST_LINES_OF_FUNCTION
    }
    assert long == set(LONGER)


def test_most_functions_are_short() -> None:
    """Half have at most 6 lines, nine in ten at most 17. No length is right for all; long ones must stay rare."""
    lengths = sorted(
        _lines(node) for _, node in nodes() if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert lengths[len(lengths) // 2] <= 6 and lengths[len(lengths) * 9 // 10] <= 17
    assert sum(length > 30 for length in lengths) <= LONG_FUNCTIONS * len(lengths)


def test_constructors_take_few_arguments_by_position() -> None:
    """More than four arguments are keyword-only, in `__init__` and in dataclasses alike."""
    many = []
    for name, node in classes():
        constructors = [
            each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"
        ]
        if any(len(each.args.posonlyargs + each.args.args) - 1 > MOST_POSITIONAL for each in constructors):
            many.append(name)
        if _is_positional_dataclass(node) and len(_fields(node)) > MOST_POSITIONAL:
            many.append(name)
    assert many == []


def _lines(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Its lines, without the docstring."""
    docstring = node.body[0] if ast.get_docstring(node) is not None else None
    own = (docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - own


def _is_positional_dataclass(node: ast.ClassDef) -> bool:
    """Whether it is a dataclass or named tuple whose fields are taken by position."""
    for decorator in node.decorator_list:
        call = decorator if isinstance(decorator, ast.Call) else None
        target = call.func if call else decorator
        if isinstance(target, ast.Name) and target.id == "dataclass":
            return not any(keyword.arg == "kw_only" for keyword in (call.keywords if call else []))
    return any(isinstance(base, ast.Name) and base.id == "NamedTuple" for base in node.bases)


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    """Fields before `_: KW_ONLY`, but for class variables and those that `__init__` does not take."""
    fields = []
    for each in node.body:
        if not isinstance(each, ast.AnnAssign):
            continue
        annotation = ast.unparse(each.annotation)
        if annotation == "KW_ONLY":
            break
        if not annotation.startswith("ClassVar") and "init=False" not in ast.unparse(each):
            fields.append(each)
    return fields
