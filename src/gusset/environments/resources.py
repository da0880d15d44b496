"""The lists of what an environment of a folder's own contains besides the model's requirements."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from packaging.utils import canonicalize_name

from gusset.environments.plan import Origin
from gusset.environments.requirement_lines import Requirement, logical_lines, parse_requirement

WORKER_FILE = "worker.txt"
TRUSS_FILE = "truss.txt"
_MODULES = {"pyyaml": "yaml", "python-json-logger": "pythonjsonlogger"}


@cache
def list_text(name: str) -> str:
    """The text of one of the lists."""
    return files("gusset.environments").joinpath(name).read_text("utf-8")


def listed(name: str) -> tuple[Requirement, ...]:
    """The requirements of one of the lists."""
    lines = logical_lines(list_text(name), name)
    return tuple(_requirement(line.text, line.origin) for line in lines)


def _requirement(text: str, origin: Origin) -> Requirement:
    from pathlib import Path

    return parse_requirement(text, origin, Path("/"))


def truss_modules() -> dict[str, str]:
    """The top-level modules of Truss's list -> the line that provides it."""
    found = {}
    for line in logical_lines(list_text(TRUSS_FILE), TRUSS_FILE):
        name = canonicalize_name(line.text.split("=")[0].split(">")[0].split("<")[0].split(";")[0].strip())
        found[_MODULES.get(name, name.replace("-", "_"))] = line.text
    return found
