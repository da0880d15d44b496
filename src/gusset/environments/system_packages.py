"""Finds the system packages that a folder names and this machine lacks."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence

from gusset.environments.plan import FileLocation
from gusset.errors import Problem

_QUERY = ("dpkg-query", "--show", "--showformat", "${db:Status-Abbrev}\t${Package}\t${Provides}\n")


def installed_packages() -> str | None:
    """A line for each package that Debian's package manager knows; None where there is none."""
    if shutil.which(_QUERY[0]) is None:
        return None
    done = subprocess.run(_QUERY, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout


def missing_packages(
    wanted: Sequence[tuple[str, FileLocation]], query: Callable[[], str | None] = installed_packages
) -> list[Problem]:
    """A warning with the command that installs what is missing; nothing if all is there."""
    if not wanted:
        return []
    listing = query()
    first = wanted[0][1]
    if listing is None:
        message = "whether system_packages are installed cannot be checked: there is no dpkg-query here"
        return [first.problem(message, code="system_packages", warning=True)]
    there = _names(listing)
    missing = [(name, location) for name, location in wanted if _plain(name) and _plain(name) not in there]
    if not missing:
        return []
    names = " ".join(dict.fromkeys(name for name, _ in missing))
    message = f"system packages that this machine lacks: {names}"
    hint = f"sudo apt-get install {names}"
    return [missing[0][1].problem(message, hint, code="system_packages", warning=True)]


def _names(listing: str) -> set[str]:
    """The installed packages, and what they provide."""
    found = set()
    for line in listing.splitlines():
        status, name, provides = (*line.split("\t"), "", "")[:3]
        if status.startswith("ii"):
            found.add(name)
            found |= {re.split(r"[\s(:]", each.strip())[0] for each in provides.split(",")}
    return found


def _plain(name: str) -> str:
    """The name without version and architecture."""
    return re.split(r"[=:/]", name.strip())[0]
