"""Reads lines of requirements in pip's format, with the files that they include. Installs nothing.

Files are read by a function that the caller passes, so everything here is pure.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.markers import Marker
from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as Pep508
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from gusset.environments.plan import FileLocation, InstallOptions
from gusset.errors import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One package that is asked for.

    `text` is the line for the installer: its paths are absolute, and it may contain
    `${NAME}` in a URL. `name` is normalized; None for a URL or path that does not show it.
    `url` is the address of a direct requirement, `file:///...` for the local `path`.
    """

    text: str
    location: FileLocation
    name: str | None = None
    extras: frozenset[str] = frozenset()
    specifier: SpecifierSet = field(default_factory=SpecifierSet)
    marker: Marker | None = None
    url: str | None = None
    path: Path | None = None
    editable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """All that some lines and the files that they include ask for; `problems` are those of the lines."""

    requirements: tuple[Requirement, ...] = ()
    constraints: tuple[Requirement, ...] = ()
    options: InstallOptions = field(default_factory=InstallOptions)
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A logical line and where it begins."""

    text: str
    location: FileLocation


ReadFile = Callable[[Path], str]
"""Reads a text file. Raises OSError."""


def read_lines(
    lines: Iterable[Line],
    folder: Path,
    read: ReadFile,
    variables: Mapping[str, str],
    *,
    included_from: Path | None = None,
    shown: Callable[[Path], str] = str,
) -> Requirements:
    """Read the lines of a config.yaml or a requirements file, and all files that they include.

    `folder` is what relative paths of packages begin at, as they do for pip; the paths
    of included files begin at the folder of `included_from`, the file with the lines.
    `shown` is how messages name a file. `variables` replace `${NAME}`, except in URLs,
    which the installer completes.
    """
    reader = _Reader(folder, read, variables, shown=shown)
    start = included_from or folder / "config.yaml"
    for line in lines:
        for part in logical_lines(line.text, line.location.file, key=line.location):
            reader.read_line(part, start, ())
    return reader.found()


def logical_lines(text: str, file: str, *, key: FileLocation | None = None) -> Iterator[Line]:
    """The lines of a file without comments and empty lines; those that end in a backslash are joined.

    With `key`, the text is a value of config.yaml, and each line has that location.
    """
    parts: list[str] = []
    first = 0
    for number, physical in enumerate(text.splitlines(), 1):
        first = first if parts else number
        is_comment = physical.lstrip().startswith("#")
        if physical.endswith("\\") and not is_comment:
            parts.append(physical[:-1])
            continue
        parts.append("" if is_comment else physical)
        yield from _without_comment("".join(parts), key or FileLocation(file=file, line=first))
        parts = []
    if parts:
        yield from _without_comment("".join(parts), key or FileLocation(file=file, line=first))


_COMMENT = re.compile(r"(^|\s+)#.*$")


def _without_comment(text: str, location: FileLocation) -> Iterator[Line]:
    if stripped := _COMMENT.sub("", text).strip():
        yield Line(text=stripped, location=location)


_INCLUDES = ("-r", "--requirement", "-c", "--constraint")
_EDITABLE = ("-e", "--editable")
_VALUES = {
    "-i": "index_url",
    "--index-url": "index_url",
    "--pypi-url": "index_url",
    "--extra-index-url": "extra_index_urls",
    "-f": "find_links",
    "--find-links": "find_links",
    "--trusted-host": "trusted_hosts",
    "--no-binary": "no_binary",
    "--only-binary": "only_binary",
}
_SWITCHES = {"--no-index": "no_index", "--pre": "prereleases", "--require-hashes": "require_hashes"}
_WITHOUT_EFFECT = (
    "--prefer-binary",
    "--use-feature",
    "--use-pep517",
    "--no-use-pep517",
    "--no-build-isolation",
)
_ALLOWED = "remove it; docs/environments.md lists the options"
_OPTION = re.compile(r"(?P<name>--[a-z0-9-]+|-[a-z])(?:\s*=\s*|\s*)(?P<value>.*)", re.DOTALL)
_NEXT_OPTION = re.compile(r"\s+(?=--?[a-z])")
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
_PER_REQUIREMENT = re.compile(r"\s(--[a-z].*)$", re.DOTALL)
_HASH = re.compile(r"--hash(?:=|\s+)(sha(?:256|384|512)|md5|sha1|sha224):[0-9A-Fa-f]+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://?")
_ARCHIVE = (".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar")
_MAX_DEPTH = 50


class _Reader:
    """Collects what the lines ask for, in their order."""

    def __init__(
        self,
        folder: Path,
        read: ReadFile,
        variables: Mapping[str, str],
        *,
        shown: Callable[[Path], str],
    ) -> None:
        self._folder = folder
        self._shown = shown
        self._read = read
        self._variables = variables
        self._requirements: list[Requirement] = []
        self._constraints: list[Requirement] = []
        self._problems: list[Problem] = []
        self._options = InstallOptions()

    def found(self) -> Requirements:
        return Requirements(
            requirements=tuple(self._requirements),
            constraints=tuple(self._constraints),
            options=self._options,
            problems=tuple(self._problems),
        )

    def read_line(
        self, line: Line, file: Path, including: Sequence[Path], *, is_constraint: bool = False
    ) -> None:
        """Read one logical line of `file`, which the files `including` have included."""
        self._check_variables(line)
        text = line.text if "://" in line.text else self._expand(line.text)
        if not text.startswith("-"):
            self._add(text, line.location, is_constraint=is_constraint)
            return
        for option in _NEXT_OPTION.split(text):
            self._read_option(option, line, file, including, is_constraint=is_constraint)

    def _read_option(
        self, text: str, line: Line, file: Path, including: Sequence[Path], *, is_constraint: bool
    ) -> None:
        found = _OPTION.fullmatch(text)
        name, value = (found["name"], _unquoted(found["value"])) if found else (text, "")
        if name in _INCLUDES:
            self._include(value, line.location, file, including, is_constraint or name in _INCLUDES[2:])
        elif name in _EDITABLE:
            self._add(value, line.location, editable=True, is_constraint=is_constraint)
        elif name in _VALUES and value:
            self._set(_VALUES[name], value, file)
        elif name in _SWITCHES and not value:
            self._options = _with_option(self._options, _SWITCHES[name], True)
        elif name not in _WITHOUT_EFFECT:
            missing = name in (*_VALUES, *_INCLUDES, *_EDITABLE)
            self._report(
                line.location,
                f"{name} has no value" if missing else f"the option {name} cannot be used here",
                f"write `{name} VALUE`" if missing else _ALLOWED,
            )

    def _expand(self, text: str) -> str:
        return _VARIABLE.sub(lambda found: self._variables.get(found[1]) or found[0], text)

    def _check_variables(self, line: Line) -> None:
        for name in dict.fromkeys(_VARIABLE.findall(line.text)):
            if not self._variables.get(name):
                message = f"the variable {name} is not set: ${{{name}}} stays as it is written"
                hint = f"set {name} where gusset runs"
                self._problems.append(line.location.problem(message, hint, code="requirement", warning=True))

    def _report(self, location: FileLocation, message: str, hint: str) -> None:
        self._problems.append(location.problem(message, hint, code="requirement"))

    def _set(self, option: str, value: str, file: Path) -> None:
        if option == "index_url":
            self._options = replace(self._options, index_url=value, no_index=False)
            return
        values = [value]
        if option == "find_links" and not _SCHEME.match(value):
            values = [str((file.parent / value).absolute())]
        elif option in ("no_binary", "only_binary"):
            values = [each.strip() for each in value.split(",") if each.strip()]
        old = getattr(self._options, option)
        self._options = _with_option(self._options, option, tuple(dict.fromkeys((*old, *values))))

    def _include(
        self, name: str, location: FileLocation, file: Path, including: Sequence[Path], is_constraint: bool
    ) -> None:
        if not name:
            self._report(location, "no file is named", "write `-r FILE`")
            return
        if _SCHEME.match(name) and not name.startswith("file:"):
            self._report(
                location, "requirements at a URL are not read", "include a file of the folder instead"
            )
            return
        path = Path(unquote(urlsplit(name).path)) if name.startswith("file:") else Path(name)
        path = (file.parent / path).absolute()
        chain = (*including, file)
        if path in chain or len(chain) > _MAX_DEPTH:
            self._report(location, f"{name} includes itself", "remove one of the lines")
            return
        try:
            text = self._read(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            self._report(location, f"{name} cannot be read: {reason.lower()}", "correct the path")
            return
        for line in logical_lines(text, self._shown(path)):
            self.read_line(line, path, chain, is_constraint=is_constraint)

    def _add(
        self, text: str, location: FileLocation, *, is_constraint: bool = False, editable: bool = False
    ) -> None:
        text, options = _split_options(text)
        if options and not re.fullmatch(rf"(?:{_HASH.pattern}\s*)+", options):
            name = options.split()[0].split("=")[0]
            is_for_all = name in (*_VALUES, *_SWITCHES, *_WITHOUT_EFFECT)
            self._report(
                location,
                f"{name} cannot be used after a requirement",
                "write it on a separate line" if is_for_all else _ALLOWED,
            )
            return
        try:
            requirement = parse_requirement(text, location, self._folder, editable=editable)
        except ValueError as error:
            self._report(location, f"this is not a requirement: {error}", HINT)
            return
        if options:
            requirement = replace(requirement, text=f"{requirement.text} {options}")
        (self._constraints if is_constraint else self._requirements).append(requirement)


def _with_option(options: InstallOptions, name: str, value: object) -> InstallOptions:
    changes: dict[str, Any] = {name: value}
    return replace(options, **changes)


HINT = "write a package as in `name==1.2`, a URL, a path or one of pip's options"
"""What to write in place of a line that is not a requirement."""


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _split_options(text: str) -> tuple[str, str]:
    """A requirement and the options behind it, such as `--hash`."""
    found = _PER_REQUIREMENT.search(text)
    return (text[: found.start()].strip(), found[1].strip()) if found else (text, "")


def parse_requirement(
    text: str, location: FileLocation, folder: Path, *, editable: bool = False
) -> Requirement:
    """Read one requirement: PEP 508, a URL, or a path that begins at `folder`. Raises ValueError."""
    text = _unquoted(text)
    if not text:
        raise ValueError("it is empty")
    if not editable and not _is_direct(text):
        return _pep508(text, location, folder)
    if editable and (named := re.match(r"[A-Za-z0-9._-]+(?:\[[^]]*\])?\s*@\s*(?=\S)", text)):
        parsed = parse_requirement(text[named.end() :], location, folder)
        target, name = parsed.text, canonicalize_name(re.split(r"[\s[@]", text)[0])
        return replace(parsed, text=f"-e {target}", name=name, editable=True)
    return _direct(text, location, folder, editable=editable)


def _is_direct(text: str) -> bool:
    """Whether the text is a URL or a path without a name before it."""
    head = text.split(";", 1)[0].split("@", 1)[0] if " @" in text else text.split(" ;", 1)[0]
    if _SCHEME.match(text) and "://" in text:
        return True
    bare = re.sub(r"\[[^]]*\]$", "", head.strip())
    return bare.startswith((".", "/", "file:")) or (
        "@" not in text and ("/" in bare or bare.lower().endswith(_ARCHIVE))
    )


def _pep508(text: str, location: FileLocation, folder: Path) -> Requirement:
    try:
        parsed = Pep508(text)
    except InvalidRequirement as error:
        raise ValueError(str(error).splitlines()[0].rstrip(":.").lower()) from None
    path = None
    url = parsed.url
    if url and (url.startswith("file:") or not _SCHEME.match(url)):
        path = _local_path(url, folder)
        url = path.as_uri()
        extras = f"[{','.join(sorted(parsed.extras))}]" if parsed.extras else ""
        marker = f" ; {parsed.marker}" if parsed.marker else ""
        text = f"{parsed.name}{extras} @ {url}{marker}"
    return Requirement(
        text=text,
        location=location,
        name=canonicalize_name(parsed.name),
        extras=frozenset(canonicalize_name(extra) for extra in parsed.extras),
        specifier=parsed.specifier,
        marker=parsed.marker,
        url=url,
        path=path,
    )


def _local_path(url: str, folder: Path) -> Path:
    text = unquote(re.sub(r"^file:(//(localhost)?)?", "", url.split("#", 1)[0]))
    return Path(os.path.abspath(folder / text))  # noqa: PTH100  # without `..`, with symbolic links


_EGG = re.compile(r"[#&]egg=([A-Za-z0-9._-]+)(?:\[([^]]*)\])?")
_REPOSITORY = re.compile(r"/([A-Za-z0-9._-]+?)(?:\.git)?(?:@[^/]*)?(?:#.*)?$")


def _direct(text: str, location: FileLocation, folder: Path, *, editable: bool) -> Requirement:
    """Read a URL or a path, with extras and a marker behind it."""
    address, _, marker_text = text.partition(" ;") if " ;" in text else text.partition("; ")
    marker = _marker(marker_text)
    address = address.strip()
    if not _SCHEME.match(address) or address.startswith("file:"):
        found = re.fullmatch(r"(.*?)(?:\[([^]]*)\])?", address, re.DOTALL)
        assert found  # noqa: S101  # it matches any text
        path, extras = _local_path(found[1], folder), found[2]
        shown = f"[{extras}]" if extras else ""
        written = str(path) + shown if editable else path.as_uri() + shown
        url, name = path.as_uri(), _wheel_name(path.name)
    else:
        path, written, url = None, address, address
        egg = _EGG.search(address)
        name, extras = (
            (canonicalize_name(egg[1]), egg[2]) if egg else (_wheel_name(_last_part(address)), None)
        )
    return Requirement(
        text=("-e " if editable and path else "") + written + (f" ; {marker}" if marker else ""),
        location=location,
        name=name,
        extras=frozenset(
            canonicalize_name(each.strip()) for each in (extras or "").split(",") if each.strip()
        ),
        marker=marker,
        url=url,
        path=path,
        editable=editable,
    )


def _marker(text: str) -> Marker | None:
    if not text.strip():
        return None
    try:
        return Marker(text.strip())
    except ValueError as error:
        raise ValueError("the part after `;` is not a condition") from error


def _last_part(url: str) -> str:
    return unquote(urlsplit(url.removeprefix("git+")).path.rsplit("/", 1)[-1])


def _wheel_name(file: str) -> str | None:
    return canonicalize_name(file.split("-")[0]) if file.endswith(".whl") and "-" in file else None


def probable_name(requirement: Requirement) -> str | None:
    """The name, or for a URL of a repository its last part, for messages only."""
    if requirement.name or requirement.url is None:
        return requirement.name
    found = _REPOSITORY.search(requirement.url)
    return canonicalize_name(found[1]) if found else None


_USER = re.compile(r"(?<=://)[^/@\s]*@")


def without_login(text: str) -> str:
    """The text without user names and passwords in its URLs."""
    return _USER.sub("", text)
