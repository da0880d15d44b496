"""The words of the code: those that were replaced stay away, and a class shares its name with no other."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import gusset
from tests.source_trees import tree_of

ROOT = Path(gusset.__file__).parent

# A word that is no longer used in names -> the field's word for it.
REPLACED = {
    "agreement": "consistency",
    "alone": "exclusive lock, single",
    "answer": "response",
    "answers": "responses",
    "aside": "forked",
    "asker": "handler",
    "bell": "wake",
    "beside": "what is meant: sidecar, fallback, pending",
    "bury": "reap",
    "desk": "responder",
    "doorkeeper": "authenticator",
    "doorway": "netns helper",
    "entrance": "auth",
    "handout": "delivered values",
    "keeper": "supervisor",
    "lane": "loop writer",
    "looker": "poller",
    "onward": "redirect",
    "packing": "codec",
    "rope": "wake",
    "said": "logged, reported, returned",
    "surroundings": "middleware",
    "telling": "translate",
    "told": "logged, reported, returned",
    "trouble": "error",
    "visit": "page request",
    "visits": "page types",
    "warden": "shim",
}
# In messages these are ordinary words: what they stand for has a better one there, too.
NOT_IN_MESSAGES = ("answer", "answered", "answers", "doorkeeper", "said", "told", "trouble", "warden")
KEPT = {"oldest_beside"}  # an attribute of migrations that are released

# Classes of the same name in two modules, where the module says which one is meant. Types of the API and of config.yaml
# (`schemas.py`, `schema.py`) are left out: they have the names of what they describe.
SHARED = {
    "Command": "a command of click; the command that `gusset exec` runs",
    "Connection": "of a server's client; of the database",
    "Download": "before `load`; a file that a page sends",
    "Finding": "of a scan; of the value doctor",
    "Hit": "in an image; in output",
    "Image": "in the engine; in an archive",
    "KeyInfo": "of a caller; of the keyring",
    "Lease": "of a replica; of an environment",
    "Limits": "of requests; of decompression",
    "Manager": "the application; where a pod finds it",
    "Metrics": "of a manager; of a model",
    "Replica": "of the supervisor; in a rotation",
    "Request": "that the proxy forwards; what a folder requests of its environment",
    "Result": "of a statement; of uv",
    "Route": "of the API; of a model",
    "Router": "of the API; of a model",
    "ServedModel": "by `gusset serve`; by Ray",
    "Store": "of a database; of weights",
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for module in sorted(ROOT.rglob("*.py")):
        yield str(module.relative_to(ROOT)), tree_of(module)


def identifiers(name: str, tree: ast.Module) -> set[str]:
    """The names of a module's path, and all that it defines, takes or uses."""
    found = set(re.split(r"[/.]", name))
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                found.add(node.name)
            case ast.arg():
                found.add(node.arg)
            case ast.Name():
                found.add(node.id)
            case ast.Attribute():
                found.add(node.attr)
            case ast.keyword() if node.arg:
                found.add(node.arg)
    return found


def texts(tree: ast.Module) -> Iterator[ast.Constant]:
    """The strings of a module that are no docstrings."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node


def words_of(identifier: str) -> set[str]:
    return set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", identifier).lower().split("_"))


def test_words_that_were_replaced_are_in_no_name() -> None:
    """Of a module, class, function, argument, variable or attribute."""
    found = {
        f"{module}: {identifier} (write {REPLACED[word]})"
        for module, tree in modules()
        for identifier in identifiers(module, tree) - KEPT
        for word in words_of(identifier) & REPLACED.keys()
    }
    assert sorted(found) == []


def test_words_that_were_replaced_are_in_no_message() -> None:
    found = {
        f"{module}:{text.lineno}: {word}"
        for module, tree in modules()
        for text in texts(tree)
        for word in re.findall(r"[a-z]+", str(text.value).lower())
        if word in NOT_IN_MESSAGES
    }
    assert sorted(found) == []


def test_a_class_shares_its_name_only_where_a_reason_is_given() -> None:
    """Two public classes have one name only if `SHARED` says what each of them is."""
    defined = defaultdict(set)
    for module, tree in modules():
        if module.rpartition("/")[2] in ("schema.py", "schemas.py", "trt_llm.py"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                defined[node.name].add(module)
    assert sorted(name for name, found in defined.items() if len(found) > 1) == sorted(SHARED)
