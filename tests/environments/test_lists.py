"""The lists of what a folder's own environment contains besides the model's requirements."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from gusset.environments.resources import TRUSS_FILE, WORKER_FILE, list_text

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def lines(name: str) -> list[str]:
    return [line for line in list_text(name).splitlines() if line and not line.startswith("#")]


def test_the_extra_truss_is_the_list() -> None:
    """The current environment with `gusset[truss]` has what one of a folder's own has."""
    assert PROJECT["optional-dependencies"]["truss"] == lines(TRUSS_FILE)


def test_gusset_itself_has_what_its_worker_needs() -> None:
    """A model that runs on gusset's own Python finds everything of the worker's list."""
    own = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert {Requirement(line).name for line in lines(WORKER_FILE)} <= own


def test_the_workers_list_is_short_and_without_pydantic() -> None:
    """Models pin pydantic 1, and old releases of others: each entry is one more that could conflict."""
    names = {Requirement(line).name for line in lines(WORKER_FILE)}
    assert len(names) <= 8
    assert not names & {"pydantic", "starlette", "fastapi", "numpy"}
