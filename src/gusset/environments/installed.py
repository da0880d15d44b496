"""Whether the packages that are installed satisfy requirements. Imports none of them.

Versions are read from the names of their folders, so that a check of many
requirements stays fast; metadata is read only for extras, and for direct URLs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from packaging.markers import Marker, default_environment
from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as Pep508
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from gusset.environments.local_code import newest_change
from gusset.environments.requirement_lines import Requirement, Requirements, without_login


@dataclass(frozen=True, slots=True)
class Unsatisfied:
    """A requirement that is not satisfied, and why."""

    requirement: Requirement
    reason: str


@dataclass(frozen=True)
class Distribution:
    """An installed package: its normalized name, and the folder or file of its metadata."""

    name: str
    written_version: str
    metadata: Path

    @cached_property
    def version(self) -> str:
        return self.written_version or next(iter(self._fields("Version")), "")

    @property
    def requires(self) -> Iterator[Pep508]:
        """What it depends on, with and without extras."""
        for text in self._fields("Requires-Dist"):
            try:
                yield Pep508(text)
            except InvalidRequirement:
                continue  # of an old package; pip leaves it out as well

    @property
    def tags(self) -> list[str]:
        """The platforms of the wheel that it was installed from, as in "py3-none-any"."""
        return self._fields("Tag", "WHEEL")

    @cached_property
    def direct_url(self) -> Mapping[str, Any]:
        """The content of direct_url.json: where it was installed from, if not from an index."""
        try:
            data = json.loads((self.metadata / "direct_url.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    def _fields(self, name: str, *files: str) -> list[str]:
        for file in files or ("METADATA", "PKG-INFO"):
            try:
                text = (self.metadata / file).read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            head = re.split(r"\r?\n\r?\n", text, maxsplit=1)[0]
            return re.findall(rf"^{name}:[ \t]*(.*?)\s*$", head, re.MULTILINE | re.IGNORECASE)
        return []


class InstalledPackages:
    """The packages in the folders of an import path; the first folder that has one wins."""

    def __init__(self, path: Sequence[str]) -> None:
        self._path = path

    def find(self, name: str) -> Distribution | None:
        return self._all.get(name)

    def __iter__(self) -> Iterator[Distribution]:
        return iter(self._all.values())

    @cached_property
    def _all(self) -> dict[str, Distribution]:
        found: dict[str, Distribution] = {}
        for folder in self._path:
            for file in _names_in(folder or "."):
                if (parts := _metadata_name(file)) is not None:
                    name, version = parts
                    found.setdefault(name, Distribution(name, version, Path(folder or ".", file)))
        return found


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  # many names
    except OSError:  # a zip file, or a folder that does not exist
        return []


def _metadata_name(file: str) -> tuple[str, str] | None:
    """The name and version in the name of a folder of metadata; None for other files."""
    stem, dot, suffix = file.rpartition(".")
    if not dot or suffix not in ("dist-info", "egg-info") or file.startswith("~"):
        return None
    name, _, version = stem.partition("-")
    return canonicalize_name(name), re.sub(r"-py\d[\d.]*$", "", version)


def unsatisfied(
    wanted: Requirements, installed: InstalledPackages, markers: Mapping[str, str] | None = None
) -> list[Unsatisfied]:
    """The requirements and constraints that are not satisfied, each with a reason.

    `markers` are the values for conditions such as `python_version < "3.12"`; by
    default those of this Python.
    """
    checker = _Checker(installed, {**(markers or default_environment())})
    found = [Unsatisfied(each, reason) for each in wanted.requirements for reason in checker.reasons(each)]
    for each in wanted.constraints:
        if each.name and installed.find(each.name):
            found += [Unsatisfied(each, reason) for reason in checker.reasons(each)]
    return found


class _Checker:
    def __init__(self, installed: InstalledPackages, markers: Mapping[str, Any]) -> None:
        self._installed = installed
        self._markers = markers
        self._checked_extras: set[tuple[str, str]] = set()

    def reasons(self, requirement: Requirement) -> Iterator[str]:
        """Why it is not satisfied; nothing if it is."""
        if not self._applies(requirement.marker):
            return
        distribution = self._find(requirement)
        if distribution is None:
            yield "it is not installed"
        elif not _contains(requirement, distribution.version):
            yield f"version {distribution.version} is installed"
        elif requirement.url is not None and (reason := _differs(requirement, distribution)):
            yield reason
        else:
            yield from self._extras(distribution, requirement.extras)

    def _find(self, requirement: Requirement) -> Distribution | None:
        if requirement.name:
            return self._installed.find(requirement.name)
        return next((each for each in self._installed if not _differs(requirement, each, code=False)), None)

    def _applies(self, marker: Marker | None, extra: str = "") -> bool:
        return marker is None or marker.evaluate({**self._markers, "extra": extra})

    def _extras(self, distribution: Distribution, extras: Iterable[str]) -> Iterator[str]:
        """Why packages that these extras need are not satisfied."""
        for extra in sorted(extras):
            if (distribution.name, extra) in self._checked_extras:
                continue
            self._checked_extras.add((distribution.name, extra))
            for each in distribution.requires:
                if each.marker is None or self._applies(each.marker):
                    continue  # not of the extra
                if self._applies(each.marker, extra):
                    yield from self._extra_reason(each, extra)

    def _extra_reason(self, needed: Pep508, extra: str) -> Iterator[str]:
        name = canonicalize_name(needed.name)
        found = self._installed.find(name)
        if found is None:
            yield f"its extra {extra} needs {needed.name}, which is not installed"
        elif not needed.specifier.contains(found.version, prereleases=True):
            yield (
                f"its extra {extra} needs {needed.name}{needed.specifier}, "
                f"but version {found.version} is installed"
            )
        else:
            yield from self._extras(found, map(canonicalize_name, needed.extras))


def _contains(requirement: Requirement, version: str) -> bool:
    try:
        return requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return not requirement.specifier


_AT_REVISION = re.compile(r"(?<=[^/:])@([^@/][^@]*)$")


def _differs(requirement: Requirement, distribution: Distribution, *, code: bool = True) -> str | None:
    """Why a package is not the one at the requirement's URL; None if it is.

    With `code`, files of a local folder that changed after the installation count, too.
    """
    direct = distribution.direct_url
    if not direct:
        return "it is installed, but not from this address"
    wanted, _, fragment = (requirement.url or "").partition("#")
    is_vcs = wanted.startswith(("git+", "hg+", "svn+", "bzr+"))
    revision = None
    if is_vcs:
        wanted = wanted.partition("+")[2]
        if found := _AT_REVISION.search(wanted.partition("://")[2].partition("/")[2]):
            revision = found[1]
            wanted = wanted[: -len(revision) - 1]
    if _address(str(direct.get("url", ""))) != _address(wanted):
        return "it is installed, but not from this address"
    subfolder = re.search(r"(?:^|&)subdirectory=([^&]*)", fragment)
    if (subfolder[1] if subfolder else "") != str(direct.get("subdirectory") or ""):
        return "it is installed, but from another folder of this address"
    if is_vcs and revision is not None and not _is_revision(revision, direct.get("vcs_info")):
        return "another revision of it is installed"
    return _changed_code(requirement, distribution) if code and requirement.path else None


def _address(url: str) -> str:
    return without_login(url).removesuffix("/").removesuffix(".git")


def _is_revision(wanted: str, vcs_info: object) -> bool:
    info = vcs_info if isinstance(vcs_info, dict) else {}
    commit = str(info.get("commit_id", ""))
    return info.get("requested_revision") == wanted or (len(wanted) >= 7 and commit.startswith(wanted))


def _changed_code(requirement: Requirement, distribution: Distribution) -> str | None:
    """Why the code of a local folder or archive has to be installed anew."""
    info = distribution.direct_url.get("dir_info")
    editable = isinstance(info, dict) and bool(info.get("editable"))
    if requirement.editable and not editable:
        return "it is installed, but not as editable"
    assert requirement.path  # noqa: S101  # see the caller
    changed = newest_change(requirement.path, editable=editable)
    if changed is None:
        return "its folder does not exist"
    return (
        "its code has changed since it was installed"
        if (changed > distribution.metadata.stat().st_mtime)
        else None
    )
