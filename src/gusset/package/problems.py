"""What pydantic finds, said in gusset's words and with its place in the file."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ValidationError

from gusset.errors import Problem
from gusset.package.yaml_tree import Path, Place, Tree, show_key, show_path


class Reporter:
    """Makes problems of one file and collects them, in any order; `sorted` gives them as the file runs."""

    def __init__(self, tree: Tree, file: str) -> None:
        self.tree = tree
        self.file = file
        self.found: list[Problem] = list(tree.problems)

    def add(
        self,
        path: Path,
        message: str,
        hint: str | None = None,
        *,
        code: str = "invalid",
        warning: bool = False,
        at_key: bool = False,
        key: str | None = None,
        place: Place | None = None,
    ) -> None:
        """Report something about what stands at `path`; `at_key`: about the key, not its value."""
        place = place or (self.tree.keys.get(path) if at_key else None) or self.tree.place(path)
        line, column = (place.line, place.column) if place else (None, None)
        key = key or show_path(path) or None
        self.found.append(Problem(message, hint, self.file, line, column, key, code, warning))

    def add_validation(self, error: ValidationError, prefix: Path = ()) -> None:
        """Report all that pydantic found; `prefix` is where the part that it saw begins."""
        for fault in error.errors(include_url=False, include_input=True):
            if not self._is_missing_of_docker_server(fault):
                self._add_fault(fault, prefix)

    def _is_missing_of_docker_server(self, fault: Any) -> bool:
        """Those are reported together, by `gusset.package.rules`."""
        return bool(
            fault["type"] == "missing" and fault["loc"][:1] == ("docker_server",) and len(fault["loc"]) == 2
        )

    def _add_fault(self, fault: Any, prefix: Path) -> None:
        context = fault.get("ctx", {})
        path = self._path((*prefix, *fault["loc"], *context.get("at", ())))
        if fault["type"] == "missing":
            name = fault["loc"][-1]
            inside = f"{show_path(path)}.{name}" if path else str(name)
            self.add(path, f"{name} is missing", f"add `{name}:` here", code="missing", key=inside)
            return
        message, hint = explain(fault["type"], fault.get("input"), context)
        if fault["type"] == "invalid_key" or "[key]" in fault["loc"]:
            message, hint = "a key that is not a text", "quote it, or remove it"
        self.add(path, message, hint)

    def _path(self, loc: Iterable[Any]) -> Path:
        """The part of pydantic's location that is in the file: without its own marks."""
        path: Path = ()
        for part in loc:
            if (*path, part) in self.tree.keys or (*path, part) in self.tree.values:
                path = (*path, part)
        return path

    def sorted(self) -> list[Problem]:
        """All problems in the order of the file, each once."""
        once = dict.fromkeys(self.found)
        return sorted(once, key=lambda problem: (problem.line or 0, problem.column or 0))


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "true or false"),
    ((int, float), "a number"),
    (str, "a text"),
    ((datetime.date, datetime.datetime), "a date"),
    ((list, tuple, set), "a list"),
    (dict, "a map"),
)


def kind_of(value: object) -> str:
    """What `value` is, in words that show nothing of it."""
    if value is None:
        return "nothing"
    return next((words for types, words in _KINDS if isinstance(value, types)), "something else")


def explain(kind: str, value: object, context: dict[str, Any]) -> tuple[str, str | None]:
    """Message and hint for one of pydantic's kinds of error."""
    if kind == "rule":
        return context["message"], context["hint"]
    for starts, wanted, hint in _WANTED:
        if kind.startswith(starts):
            return f"{kind_of(value)} where {wanted} belongs", _how(value, hint)
    if explained := _LIMITS.get(kind):
        return explained(context)
    return "not what belongs here", "see docs/config.md for what this key takes"


def _how(value: object, hint: str) -> str:
    return f"{hint}, or remove the key" if value is None else hint


_WANTED = (
    ("string_unicode", "a text of whole characters", "write it as UTF-8"),
    ("string_type", "a text", 'put it in quotes: "..."'),
    ("int_", "a whole number", "write a number without a point or quotes"),
    ("float_", "a number", "write a number"),
    ("finite", "a finite number", "write a number"),
    ("bool_", "true or false", "write true or false"),
    ("list_type", "a list", "write one `- item` a line below the key, or []"),
    ("dict_type", "a map", "write `key: value` lines below the key, or {}"),
    ("model_type", "a map", "write `key: value` lines below the key, or {}"),
    ("model_attributes_type", "a map", "write `key: value` lines below the key, or {}"),
    ("is_instance_of", "a map", "write `key: value` lines below the key, or {}"),
)

_Explain = Callable[[dict[str, Any]], tuple[str, str | None]]
_LIMITS: dict[str, _Explain] = {
    "literal_error": lambda c: ("not one of the words that this key takes", f"write {c['expected']}"),
    "enum": lambda c: ("not one of the words that this key takes", f"write {c['expected']}"),
    "union_tag_not_found": lambda _: ("kind is missing", "add kind: http, websocket or grpc"),
    "union_tag_invalid": lambda c: (
        "not one of the words that this key takes",
        f"write {c['expected_tags']}",
    ),
    "greater_than_equal": lambda c: ("too small a number", f"write {c['ge']} or more"),
    "greater_than": lambda c: ("too small a number", f"write more than {c['gt']}"),
    "less_than_equal": lambda c: ("too large a number", f"write {c['le']} or less"),
    "multiple_of": lambda c: ("not such a multiple", f"write a multiple of {c['multiple_of']}"),
    "string_too_short": lambda _: ("an empty text", "write one"),
    "string_pattern_mismatch": lambda _: ("not a text of the form that belongs here", None),
    "too_short": lambda c: ("too few entries", f"write {c['min_length']} or more"),
}

__all__ = ["Reporter", "explain", "kind_of", "show_key", "show_path"]
