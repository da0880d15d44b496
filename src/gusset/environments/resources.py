"""The lists of what a folder's own environment contains besides the model's requirements."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gusset.environments.requirement_lines import Requirement

WORKER_FILE = "worker.txt"
TRUSS_FILE = "truss.txt"
_MODULES = {"pyyaml": "yaml", "python-json-logger": "pythonjsonlogger"}


@cache
def list_text(name: str) -> str:
    """The text of one of the lists."""
    return Path(__file__).with_name(name).read_text("utf-8")


def listed(name: str) -> tuple[Requirement, ...]:
    """The requirements of one of the lists."""
    # Imported here: most starts look only for the names of modules.
    from gusset.environments.plan import FileLocation
    from gusset.environments.requirement_lines import parse_requirement

    return tuple(parse_requirement(line, FileLocation(file=name), Path("/")) for line in _lines(name))


def truss_modules() -> dict[str, str]:
    """The top-level modules of Truss's list -> the line that provides it."""
    found = {}
    for line in _lines(TRUSS_FILE):
        name = re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;@]", line)[0]).lower()
        found[_MODULES.get(name, name.replace("-", "_"))] = line
    return found


def _lines(name: str) -> Iterator[str]:
    for line in list_text(name).splitlines():
        if text := re.sub(r"(^|\s+)#.*", "", line).strip():
            yield text
