"""The modules that mypyc may compile: `tool.hatch.build.targets.wheel.hooks.mypyc` in pyproject.toml."""

from __future__ import annotations

import ast
import sysconfig
import tomllib
from pathlib import Path

import gusset
from tests.source_trees import tree_of

ROOT = Path(__file__).parents[1]
HOOK = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
    "hooks"
]
LISTED: list[str] = HOOK["mypyc"]["include"]


def test_each_module_is_listed_once_and_exists() -> None:
    """In the order of their paths, so that the list can be compared with folders."""
    assert sorted(set(LISTED)) == LISTED
    assert [path for path in LISTED if not (ROOT / path[1:]).is_file()] == []


def test_compiled_modules_do_not_look_for_files_beside_themselves() -> None:
    """mypyc takes the folder of the shared library for the one that Python imports from: `__file__` is wrong."""
    for path in LISTED:
        names = {
            node.id
            for node in ast.walk(ast.parse((ROOT / path[1:]).read_text()))
            if isinstance(node, ast.Name)
        }
        assert "__file__" not in names, path


def imports_of(tree: ast.Module) -> dict[str, str]:
    """From where in the package a module imports each name, as a path in `LISTED`."""
    return {
        alias.asname or alias.name: f"/src/{node.module.replace('.', '/')}.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def is_protocol(path: str, name: str) -> bool:
    """Whether a module defines a class of that name, as a protocol."""
    return any(
        isinstance(node, ast.ClassDef) and node.name == name and "Protocol" in map(ast.unparse, node.bases)
        for node in tree_of(ROOT / path[1:]).body
    )


def test_no_interpreted_class_inherits_from_a_compiled_one() -> None:
    """No instance could be made of it, unless the compiled one is a protocol."""
    found = []
    for module in sorted((ROOT / "src").rglob("*.py")):
        if f"/{module.relative_to(ROOT)}" in LISTED:
            continue
        tree = tree_of(module)
        imported = imports_of(tree)
        bases = [
            (node.name, ast.unparse(base).partition("[")[0])
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for base in node.bases
        ]
        found += [
            f"{module.name}: {name}({base})"
            for name, base in bases
            if (path := imported.get(base)) in LISTED and not is_protocol(path, base)
        ]
    assert found == []


def test_nothing_is_compiled_unless_a_build_asks_for_it() -> None:
    assert HOOK["mypyc"]["enable-by-default"] is False


def test_gusset_knows_whether_it_is_compiled() -> None:
    """The checkout is, if `make compiled` has put a library for this Python beside the source."""
    library = Path(gusset.__file__).with_name(f"native__mypyc{sysconfig.get_config_var('EXT_SUFFIX')}")
    assert gusset.is_compiled() == library.exists()
