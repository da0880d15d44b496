"""Problems of a configuration file with their locations, and plain messages for pydantic's errors."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ValidationError

from gusset.errors import Problem
from gusset.package.yaml_tree import Location, Path, Tree, format_path, quoted_key


class ProblemCollector:
    """Collects the problems of one file, in any order."""

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
        location: Location | None = None,
    ) -> None:
        """Add a problem with the value at `path`, or with its key if `at_key`.

        `key` and `location` replace those of `path`.
        """
        location = location or (self.tree.keys.get(path) if at_key else None) or self.tree.location(path)
        line, column = (location.line, location.column) if location else (None, None)
        key = key or format_path(path) or None
        self.found.append(
            Problem(
                message,
                hint,
                file=self.file,
                line=line,
                column=column,
                key=key,
                code=code,
                warning=warning,
            )
        )

    def add_validation(self, error: ValidationError, prefix: Path = ()) -> None:
        """Add everything that pydantic found; `prefix` is the path of the part that it validated."""
        for fault in error.errors(include_url=False, include_input=True):
            if not self._is_missing_of_docker_server(fault):
                self._add_fault(fault, prefix)

    def _is_missing_of_docker_server(self, fault: Any) -> bool:
        """Whether a key of `docker_server` is missing: `gusset.package.rules` reports those together."""
        return bool(
            fault["type"] == "missing" and fault["loc"][:1] == ("docker_server",) and len(fault["loc"]) == 2
        )

    def _add_fault(self, fault: Any, prefix: Path) -> None:
        context = fault.get("ctx", {})
        path = self._path((*prefix, *fault["loc"], *context.get("at", ())))
        if fault["type"] == "missing":
            name = fault["loc"][-1]
            inside = f"{format_path(path)}.{name}" if path else str(name)
            self.add(path, f"{name} is missing", f"add `{name}:` here", code="missing", key=inside)
            return
        message, hint = describe(fault["type"], fault.get("input"), context)
        if fault["type"] == "invalid_key" or "[key]" in fault["loc"]:
            message, hint = "a key that is not a string", "quote it, or remove it"
        self.add(path, message, hint)

    def _path(self, loc: Iterable[Any]) -> Path:
        """Pydantic's location without the parts that are not in the file, such as the names of types."""
        path: Path = ()
        for part in loc:
            if (*path, part) in self.tree.keys or (*path, part) in self.tree.values:
                path = (*path, part)
        return path

    def sorted(self) -> list[Problem]:
        """All problems in the order of the file, without repetitions."""
        once = dict.fromkeys(self.found)
        return sorted(once, key=lambda problem: (problem.line or 0, problem.column or 0))


_TYPE_NAMES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "true or false"),
    ((int, float), "a number"),
    (str, "a string"),
    ((datetime.date, datetime.datetime), "a date"),
    ((list, tuple, set), "a list"),
    (dict, "a map"),
)


def type_name(value: object) -> str:
    """The type of `value` in words, as in "a list", which show nothing of the value."""
    if value is None:
        return "nothing"
    return next((words for types, words in _TYPE_NAMES if isinstance(value, types)), "something else")


def describe(kind: str, value: object, context: dict[str, Any]) -> tuple[str, str | None]:
    """The message and the hint for one of pydantic's error types."""
    if kind == "rule":
        return context["message"], context["hint"]
    for starts, expected, hint in _EXPECTED_TYPES:
        if kind.startswith(starts):
            return f"expected {expected}, found {type_name(value)}", _hint_for(value, hint)
    if describe_limit := _LIMIT_MESSAGES.get(kind):
        return describe_limit(context)
    return "not a valid value for this key", "see the key in docs/config.md"


def _hint_for(value: object, hint: str) -> str:
    return f"{hint}, or remove the key" if value is None else hint


_EXPECTED_TYPES = (
    ("string_unicode", "a text of valid characters", "write it as UTF-8"),
    ("string_type", "a string", 'put it in quotes: "..."'),
    ("int_", "a whole number", "write a number without a decimal point or quotes"),
    ("float_", "a number", "write a number"),
    ("finite", "a finite number", "write a number"),
    ("bool_", "true or false", "write true or false"),
    ("list_type", "a list", "write one `- item` per line below the key, or []"),
    ("dict_type", "a map", "write `key: value` lines below the key, or {}"),
    ("model_type", "a map", "write `key: value` lines below the key, or {}"),
    ("model_attributes_type", "a map", "write `key: value` lines below the key, or {}"),
    ("is_instance_of", "a map", "write `key: value` lines below the key, or {}"),
)

_Describe = Callable[[dict[str, Any]], tuple[str, str | None]]
_LIMIT_MESSAGES: dict[str, _Describe] = {
    "literal_error": lambda c: ("not one of the values of this key", f"write {c['expected']}"),
    "enum": lambda c: ("not one of the values of this key", f"write {c['expected']}"),
    "union_tag_not_found": lambda _: ("kind is missing", "add kind: http, websocket or grpc"),
    "union_tag_invalid": lambda c: (
        "not one of the values of this key",
        f"write {c['expected_tags']}",
    ),
    "greater_than_equal": lambda c: ("too small a number", f"write {c['ge']} or more"),
    "greater_than": lambda c: ("too small a number", f"write more than {c['gt']}"),
    "less_than_equal": lambda c: ("too large a number", f"write {c['le']} or less"),
    "multiple_of": lambda c: ("not a valid multiple", f"write a multiple of {c['multiple_of']}"),
    "string_too_short": lambda _: ("an empty text", "write a text"),
    "string_pattern_mismatch": lambda _: ("not a text of the form that this key requires", None),
    "too_short": lambda c: ("too few entries", f"write {c['min_length']} or more"),
}

__all__ = ["ProblemCollector", "describe", "type_name", "quoted_key", "format_path"]
