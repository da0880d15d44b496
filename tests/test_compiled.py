"""The modules that mypyc may compile: `tool.hatch.build.targets.wheel.hooks.mypyc` in pyproject.toml."""

from __future__ import annotations

import ast
import sysconfig
import tomllib
from pathlib import Path

import gusset

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


def test_nothing_is_compiled_unless_a_build_asks_for_it() -> None:
    assert HOOK["mypyc"]["enable-by-default"] is False


def test_gusset_knows_whether_it_is_compiled() -> None:
    """The checkout is, if `make compiled` has put a library for this Python beside the source."""
    library = Path(gusset.__file__).with_name(f"native__mypyc{sysconfig.get_config_var('EXT_SUFFIX')}")
    assert gusset.is_compiled() == library.exists()
