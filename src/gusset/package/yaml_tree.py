"""Parses YAML to plain data, and records the location of each key and value.

This is YAML 1.1 as PyYAML's safe loader reads it (`yes` is true, `010` is 8,
merge keys work), with two differences: a repeated key is an error, and no
message quotes the text.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gusset.errors import Problem
from gusset.secrets.credentials import looks_like_credential

Path = tuple[Any, ...]
"""Keys and list indexes from the top, as in `("weights", 0, "source")`."""

MAX_NODES = 200_000
"""How many parts a file may have with all aliases expanded; only aliases of aliases reach it."""

MAX_DEPTH = 500

# The loader in C, if there is one, is ten times as fast. The other accepts a little more, such as `{a:}`.
_LOADERS: tuple[Any, ...] = (*filter(None, [getattr(yaml, "CSafeLoader", None)]), yaml.SafeLoader)
_MAP, _SEQ, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "merge"))
_UNPRINTABLE = re.compile("[^\x09\x0a\x0d\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Location:
    """A line and a column of a text, both counted from 1."""

    line: int
    column: int


@dataclass(kw_only=True)
class Tree:
    """The data of one YAML document, the locations of its keys and values, and its problems."""

    data: Any = None
    keys: dict[Path, Location] = field(default_factory=dict)
    values: dict[Path, Location] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    text: str = field(default="", repr=False)
    """The text of the file, with its comments."""

    def location(self, path: Path) -> Location | None:
        """The location of the value at `path`, else of its key, else of the nearest parent."""
        for end in range(len(path), 0, -1):
            if found := self.values.get(path[:end]) or self.keys.get(path[:end]):
                return found
        return None

    def texts(self) -> Iterator[tuple[Path, str]]:
        """Every text of the document with its path. The path of a key is that of its value."""
        yield from _texts(self.data, ())

    def location_at(self, offset: int) -> Location:
        """The location of the character at `offset` of the text."""
        return _location_at(self.text.encode(), len(self.text[:offset].encode()))


def read_tree(data: bytes, file: str) -> Tree:
    """Parse the bytes of a file; `file` is its name in problems. Never raises, whatever the bytes are."""
    tree = Tree()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _add_problem(
            tree, file, "the file is not UTF-8 text", "save it as UTF-8", _location_at(data, error.start)
        )
        return tree
    if wrong := _UNPRINTABLE.search(text):
        location = _location_at(text.encode(), len(text[: wrong.start()].encode()))
        _add_problem(tree, file, "a control character, which YAML does not allow", "remove it", location)
        return tree
    tree.text = text
    try:
        _read(text, file, tree)
    except RecursionError:
        tree.data = None
        _add_problem(tree, file, "the file is nested too deeply", "flatten it", None)
    return tree


def _is_too_deep(text: str) -> bool:
    """Whether nodes are nested deeper than `MAX_DEPTH`: the C loader would recurse until the process crashes.

    Each level needs a bracket or a column, so for most files no events are parsed.
    """
    brackets = text.count("[") + text.count("{")
    if brackets + max(map(len, text.splitlines()), default=0) <= MAX_DEPTH:
        return False
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_LOADERS[0]):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                return True
    except yaml.YAMLError:
        pass  # reported when the text is parsed
    return False


def _read(text: str, file: str, tree: Tree) -> None:
    if _is_too_deep(text):
        raise RecursionError
    for loader_class in _LOADERS:
        loader = loader_class(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                tree.data = _Builder(loader, file, tree).build(node, ())
        except yaml.YAMLError as error:
            if loader_class is _LOADERS[-1]:
                _add_syntax_error(tree, file, error)
        else:
            return
        finally:
            loader.dispose()


class _Builder:
    """Converts nodes to data. Aliases are copied, so every path has its own data."""

    def __init__(self, loader: Any, file: str, tree: Tree) -> None:
        self._loader = loader
        self._file = file
        self._tree = tree
        self._left = MAX_NODES
        self._open: set[int] = set()

    def build(self, node: Node, path: Path) -> Any:
        self._left -= 1
        if self._left == 0:
            self._add_problem(
                node, path, "the file's aliases expand to too much data", "use fewer aliases of aliases"
            )
        if self._left <= 0:
            return None
        if id(node) in self._open:
            self._add_problem(
                node, path, "an alias within its own anchor", "write that part without an alias"
            )
            return None
        if isinstance(node, MappingNode) and node.tag == _MAP:
            return self._inside(node, lambda: self._mapping(node, path))
        if isinstance(node, SequenceNode) and node.tag == _SEQ:
            return self._inside(node, lambda: self._sequence(node, path))
        return self._scalar(node, path)

    def _inside(self, node: Node, make: Any) -> Any:
        self._open.add(id(node))
        try:
            return make()
        finally:
            self._open.discard(id(node))

    def _sequence(self, node: SequenceNode, path: Path) -> list[Any]:
        for position, item in enumerate(node.value):
            self._tree.values[(*path, position)] = _start(item)
        return [self.build(item, (*path, position)) for position, item in enumerate(node.value)]

    def _mapping(self, node: MappingNode, path: Path) -> dict[Hashable, Any]:
        own: dict[Hashable, Any] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                merged.append(value_node)
                continue
            key = self._key(key_node, path)
            if key is None:
                continue
            (name,) = key
            if name in own:
                self._add_duplicate(key_node, (*path, name))
            self._tree.keys[(*path, name)] = _start(key_node)
            if not _is_empty(value_node):
                self._tree.values[(*path, name)] = _start(value_node)
            own[name] = self.build(value_node, (*path, name))
        for value_node in merged:
            for source in self._merge_sources(value_node, path):
                self._merge(own, source, path)
        return own

    def _merge_sources(self, node: Node, path: Path) -> list[MappingNode]:
        nodes = node.value if isinstance(node, SequenceNode) else [node]
        sources = [source for source in nodes if isinstance(source, MappingNode)]
        if len(sources) < len(nodes):
            self._add_problem(node, path, "`<<` merges something other than a map", "merge maps: `<<: *name`")
            return []
        return sources

    def _merge(self, own: dict[Hashable, Any], source: MappingNode, path: Path) -> None:
        """Add the keys of `source` that `own` does not have, and keep the locations of the others."""
        keys, values = dict(self._tree.keys), dict(self._tree.values)
        added = self.build(source, path)
        if isinstance(added, dict):
            own.update({name: value for name, value in added.items() if name not in own})
        self._tree.keys.update(keys)
        self._tree.values.update(values)

    def _key(self, node: Node, path: Path) -> tuple[Hashable] | None:
        """The key in a tuple, since None can be a key; None when the node cannot be a key."""
        if isinstance(node, ScalarNode):
            key = self._scalar(node, path)
            if isinstance(key, Hashable):
                return (key,)
        self._add_problem(node, path, "a key that is a list or a map", "write a text as the key")
        return None

    def _add_duplicate(self, node: Node, path: Path) -> None:
        first = self._tree.keys[path]
        message = f"the key {quoted_key(path)} is repeated; it is first on line {first.line}"
        self._add_problem(node, path, message, "keep one of them", code="duplicate_key")

    def _scalar(self, node: Node, path: Path) -> Any:
        try:
            value = self._loader.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError, OverflowError, TypeError, KeyError, AttributeError):
            self._add_problem(node, path, "a value that is invalid for the type it looks like", "quote it")
            return None
        if isinstance(value, bytes) and path[:1] != ("environment_variables",) and not _is_utf8(value):
            self._add_problem(node, path, "binary data that is not UTF-8 text", "write a text")
            return None
        return value

    def _add_problem(self, node: Node, path: Path, message: str, hint: str, code: str = "yaml") -> None:
        key = format_path(path) or None
        _add_problem(self._tree, self._file, message, hint, _start(node), key=key, code=code)


def quoted_key(path: Path) -> str:
    """The last key of `path` in quotes, or "(not shown)" when it does not look like a key."""
    key = path[-1] if path else ""
    return f"'{key}'" if looks_like_key(key) else "(not shown)"


def format_path(path: Path) -> str:
    """`path` as text, as in `weights[0].source`; a part that does not look like a key is not shown."""
    text = ""
    for part in path:
        if isinstance(part, int) and not isinstance(part, bool):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (str(part) if looks_like_key(part) else "(not shown)")
    return text


def looks_like_key(key: object) -> bool:
    """Whether `key` may be repeated in a message: a value is sometimes written in place of a key."""
    return isinstance(key, str) and bool(_KEY.fullmatch(key)) and looks_like_credential(key) is None


_KEY = re.compile(r"[A-Za-z0-9_./-]{1,100}")


def _texts(data: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(data, str):
        yield path, data
    elif isinstance(data, dict):
        for key, value in data.items():
            if isinstance(key, str):
                yield (*path, key), key
            yield from _texts(value, (*path, key))
    elif isinstance(data, list | tuple | set):
        for position, value in enumerate(data):
            yield from _texts(value, (*path, position))


def _start(node: Node) -> Location:
    return Location(node.start_mark.line + 1, node.start_mark.column + 1)


def _is_empty(node: Node) -> bool:
    """Whether no value is written: YAML locates such a value after the next line break."""
    return isinstance(node, ScalarNode) and node.value == "" and node.style is None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _location_at(data: bytes, offset: int) -> Location:
    before = data[:offset]
    line_start = before.rfind(b"\n") + 1
    return Location(before.count(b"\n") + 1, len(before[line_start:].decode("utf-8", "replace")) + 1)


_SYNTAX_MESSAGES = (
    ("single document", "the file holds more than one YAML document", "keep one; remove the second `---`"),
    ("undefined alias", "an alias without its anchor", "write the anchor (`&name`) before the alias"),
    ("duplicate anchor", "an anchor that exists already", "give it another name"),
    (
        "mapping values are not allowed",
        "a `:` where YAML allows none",
        "quote texts that contain `: `, and check that the line above is complete",
    ),
    (
        "cannot start any token",
        "a character that YAML does not allow here",
        "indent with spaces, not tabs; quote texts that start with @, % or `",
    ),
    ("quoted scalar", "a quoted text without its closing quote", "close the quote"),
    ("flow", "a `[` or `{` that is not closed", "close it"),
    (
        "indentation",
        "the indentation does not match the lines before",
        "indent the keys of a section equally",
    ),
)
"""Parts of PyYAML's messages, which may quote the file, with the message and hint to use instead."""


def _add_syntax_error(tree: Tree, file: str, error: yaml.YAMLError) -> None:
    original = f"{getattr(error, 'context', '')} {getattr(error, 'problem', '')}"
    default = ("the file is not valid YAML here", "check the indentation, colons and quotes of this line")
    message, hint = next((texts for part, *texts in _SYNTAX_MESSAGES if part in original), default)
    mark = getattr(error, "problem_mark", None)
    location = Location(mark.line + 1, mark.column + 1) if mark else None
    tree.data = None
    _add_problem(tree, file, message, hint, location)


def _add_problem(
    tree: Tree,
    file: str,
    message: str,
    hint: str,
    location: Location | None,
    *,
    key: str | None = None,
    code: str = "yaml",
) -> None:
    line, column = (location.line, location.column) if location else (None, None)
    tree.problems.append(Problem(message, hint, file=file, line=line, column=column, key=key, code=code))
