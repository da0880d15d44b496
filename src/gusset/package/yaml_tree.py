"""YAML text to plain data that remembers where each part stands.

YAML 1.1 as PyYAML's safe loader has it (`yes` is true, `010` is 8, merge keys
work), with two differences: a key written twice is a fault, and no fault ever
quotes the text.
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
"""Keys and list positions from the top, as in `("weights", 0, "source")`."""

MAX_NODES = 200_000
"""What a file may expand to; more comes only from aliases of aliases."""

MAX_DEPTH = 500

# In C where there is such a loader, ten times as fast; the other takes a few things more, such as `{a:}`.
_LOADERS: tuple[Any, ...] = (*filter(None, [getattr(yaml, "CSafeLoader", None)]), yaml.SafeLoader)
_MAP, _SEQ, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "merge"))
_UNPRINTABLE = re.compile("[^\x09\x0a\x0d\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a text; both count from 1."""

    line: int
    column: int


@dataclass
class Tree:
    """The data of one YAML document, the places of its keys and values, and its faults."""

    data: Any = None
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    text: str = field(default="", repr=False)
    """The file as it is written, comments too."""

    def place(self, path: Path) -> Place | None:
        """Where the value at `path` begins, or its key when it is empty; else its parent's."""
        for end in range(len(path), 0, -1):
            if found := self.values.get(path[:end]) or self.keys.get(path[:end]):
                return found
        return None

    def texts(self) -> Iterator[tuple[Path, str]]:
        """Every text of the document, with its path; keys stand under their own path."""
        yield from _texts(self.data, ())

    def place_at(self, offset: int) -> Place:
        """Where the character at `offset` of the text stands."""
        return _place_at(self.text.encode(), len(self.text[:offset].encode()))


def read_tree(data: bytes, file: str) -> Tree:
    """The tree of a file's bytes; `file` is its name in problems. Never raises for what the bytes hold."""
    tree = Tree()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _fault(tree, file, "the file is not UTF-8 text", "save it as UTF-8", _place_at(data, error.start))
        return tree
    if wrong := _UNPRINTABLE.search(text):
        place = _place_at(text.encode(), len(text[: wrong.start()].encode()))
        _fault(tree, file, "a control character, which YAML does not allow", "remove it", place)
        return tree
    tree.text = text
    try:
        _read(text, file, tree)
    except RecursionError:
        tree.data = None
        _fault(tree, file, "the file is nested too deeply", "flatten it", None)
    return tree


def _is_too_deep(text: str) -> bool:
    """Whether nodes stand deeper than `MAX_DEPTH`: the C loader would recurse until the process dies.

    A level takes a bracket or a column, so most files need no look at their events.
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
        pass  # it is told when the text is read
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
                _syntax(tree, file, error)
        else:
            return
        finally:
            loader.dispose()


class _Builder:
    """Makes data of nodes. Aliases are copied out, so every path has its own data."""

    def __init__(self, loader: Any, file: str, tree: Tree) -> None:
        self._loader = loader
        self._file = file
        self._tree = tree
        self._left = MAX_NODES
        self._open: set[int] = set()

    def build(self, node: Node, path: Path) -> Any:
        self._left -= 1
        if self._left == 0:
            self._fault(node, path, "the file's aliases expand to too much", "write fewer aliases of aliases")
        if self._left <= 0:
            return None
        if id(node) in self._open:
            self._fault(node, path, "an alias that holds itself", "write the part out")
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
                self._duplicate(key_node, (*path, name))
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
            self._fault(node, path, "`<<` merges something other than a map", "merge maps: `<<: *name`")
            return []
        return sources

    def _merge(self, own: dict[Hashable, Any], source: MappingNode, path: Path) -> None:
        """Add what `source` has and `own` has not; the places of what is there stay."""
        keys, values = dict(self._tree.keys), dict(self._tree.values)
        added = self.build(source, path)
        if isinstance(added, dict):
            own.update({name: value for name, value in added.items() if name not in own})
        self._tree.keys.update(keys)
        self._tree.values.update(values)

    def _key(self, node: Node, path: Path) -> tuple[Hashable] | None:
        """The key in a tuple, since None is a key too; None when it is no key at all."""
        if isinstance(node, ScalarNode):
            key = self._scalar(node, path)
            if isinstance(key, Hashable):
                return (key,)
        self._fault(node, path, "a key that is a list or a map", "write a text as key")
        return None

    def _duplicate(self, node: Node, path: Path) -> None:
        first = self._tree.keys[path]
        message = f"the key {show_key(path)} is written twice, first in line {first.line}"
        self._fault(node, path, message, "keep one of them", code="duplicate_key")

    def _scalar(self, node: Node, path: Path) -> Any:
        try:
            value = self._loader.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError, OverflowError, TypeError, KeyError, AttributeError):
            self._fault(node, path, "a value that YAML cannot read as the type it looks like", "quote it")
            return None
        if isinstance(value, bytes) and path[:1] != ("environment_variables",) and not _is_utf8(value):
            self._fault(node, path, "binary data that is not UTF-8 text", "write a text")
            return None
        return value

    def _fault(self, node: Node, path: Path, message: str, hint: str, code: str = "yaml") -> None:
        key = show_path(path) or None
        _fault(self._tree, self._file, message, hint, _start(node), key=key, code=code)


def show_key(path: Path) -> str:
    """The last key of `path`, quoted, or "(not shown)" when it might be something else than a key."""
    key = path[-1] if path else ""
    return f"'{key}'" if is_showable(key) else "(not shown)"


def show_path(path: Path) -> str:
    """`weights[0].source`; a part that does not look like a key is left unsaid."""
    shown = ""
    for part in path:
        if isinstance(part, int) and not isinstance(part, bool):
            shown += f"[{part}]"
        else:
            shown += ("." if shown else "") + (str(part) if is_showable(part) else "(not shown)")
    return shown


def is_showable(key: object) -> bool:
    """Whether `key` looks like a key: now and then a value stands where a key belongs."""
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


def _start(node: Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


def _is_empty(node: Node) -> bool:
    """Nothing is written there: YAML puts the mark of such a value after the next line break."""
    return isinstance(node, ScalarNode) and node.value == "" and node.style is None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _place_at(data: bytes, offset: int) -> Place:
    before = data[:offset]
    line_start = before.rfind(b"\n") + 1
    return Place(before.count(b"\n") + 1, len(before[line_start:].decode("utf-8", "replace")) + 1)


_EXPLAINED = (
    ("single document", "the file holds more than one YAML document", "keep one; remove the second `---`"),
    ("undefined alias", "an alias without its anchor", "write the anchor (`&name`) before the alias"),
    ("duplicate anchor", "an anchor that is there already", "give it another name"),
    (
        "mapping values are not allowed",
        "a `:` where YAML allows none",
        "quote texts that contain `: `, and see that the line above is complete",
    ),
    (
        "cannot start any token",
        "a character that YAML does not allow here",
        "indent by spaces, not tabs; quote texts that begin with @, % or `",
    ),
    ("quoted scalar", "a quoted text that does not end", "close the quote"),
    ("flow", "a `[` or `{` that is not closed", "close it"),
    ("indentation", "the indentation does not fit the lines before", "indent one section's keys alike"),
)
"""Parts of YAML's own texts, which may quote the file, and what is said instead."""


def _syntax(tree: Tree, file: str, error: yaml.YAMLError) -> None:
    said = f"{getattr(error, 'context', '')} {getattr(error, 'problem', '')}"
    default = ("the file is not valid YAML here", "check the indentation, colons and quotes of this line")
    message, hint = next((told for part, *told in _EXPLAINED if part in said), default)
    mark = getattr(error, "problem_mark", None)
    place = Place(mark.line + 1, mark.column + 1) if mark else None
    tree.data = None
    _fault(tree, file, message, hint, place)


def _fault(
    tree: Tree,
    file: str,
    message: str,
    hint: str,
    place: Place | None,
    *,
    key: str | None = None,
    code: str = "yaml",
) -> None:
    line, column = (place.line, place.column) if place else (None, None)
    tree.problems.append(Problem(message, hint, file, line, column, key, code))
