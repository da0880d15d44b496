"""Finds the Python for an environment: that of the requested version, or the nearest one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gusset.environments.plan import OLDEST, PythonChoice, Version, text_of
from gusset.environments.uv import Result, Uv


@dataclass(frozen=True, slots=True)
class FoundPython:
    """An installed Python."""

    version: Version
    executable: str


def locate(choice: PythonChoice, uv: Uv) -> str:
    """What `uv venv --python` gets: an executable, or a version that uv then has to fetch."""
    if choice.version is None:
        return choice.executable
    wanted = text_of(choice.version)
    found = uv.query("python", "find", "--no-project", "--system", "--no-python-downloads", wanted)
    if found.status == 0 and found.output.strip():
        return found.output.strip()
    of_pyenv = [each for each in _of_pyenv(uv) if each.version == choice.version]
    return of_pyenv[0].executable if of_pyenv else wanted


def nearest(choice: PythonChoice, uv: Uv, *, own: Version) -> FoundPython:
    """The installed Python whose version is nearest to the requested one; the newer of two."""
    wanted = choice.version or own
    candidates = [*_of_uv(uv), *_of_pyenv(uv), FoundPython(own, choice.executable)]
    usable = [each for each in candidates if each.version >= OLDEST]
    return min(usable, key=lambda each: (abs(each.version[1] - wanted[1]), -each.version[1]))


def is_missing(result: Result) -> bool:
    """Whether `uv venv` failed because there is no such Python and none could be fetched."""
    text = result.text
    return "No interpreter found" in text or "python-build-standalone" in text or "download" in text.lower()


def _of_uv(uv: Uv) -> Iterator[FoundPython]:
    found = uv.query("python", "list", "--only-installed", "--no-python-downloads", "--output-format", "json")
    try:
        entries = json.loads(found.output)
    except ValueError:
        return
    for each in entries:
        parts = each["version_parts"]
        if each["implementation"] == "cpython" and each["variant"] == "default":
            yield FoundPython((parts["major"], parts["minor"]), each["path"])


_VERSION = re.compile(r"3\.(\d+)\.(\d+)")


def _of_pyenv(uv: Uv) -> Iterator[FoundPython]:
    """The Pythons of pyenv, the newest releases first: uv sees only the one that is switched on."""
    root = Path(uv.environ.get("PYENV_ROOT") or Path(uv.environ.get("HOME") or "/", ".pyenv"))
    releases = []
    for folder in (root / "versions").glob("3.*"):
        if (release := _VERSION.fullmatch(folder.name)) and (folder / "bin" / "python3").exists():
            releases.append((int(release[1]), int(release[2]), str(folder / "bin" / "python3")))
    for minor, _, executable in sorted(releases, reverse=True):
        yield FoundPython((3, minor), executable)
