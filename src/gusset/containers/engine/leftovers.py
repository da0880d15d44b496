"""Removal of containers and volumes that gusset has labelled as its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gusset.containers.engine.container import Container, translate_engine_errors
from gusset.containers.engine.library import connect
from gusset.containers.engine.run_id import OWNER, run_has_ended, run_id


def remove_ours(api: Any) -> bool:
    """Remove what this process still has at the engine; whether there was anything.

    Raises:
        ModelFailed: the engine refuses it.
        HostError: the engine does not respond.
    """
    with translate_engine_errors("what gusset has left at the engine cannot be removed"):
        return _remove_all(api, lambda name: name == run_id())


def remove_orphans(api: Any) -> None:
    """Remove leftovers of gusset runs that have crashed."""
    with suppress(Exception):  # never a reason not to serve
        _remove_all(api, run_has_ended)


def remove_all_of_run(address: str, owner: str) -> bool:
    """Remove the containers and volumes of a run at the engine of that address; whether there were any.

    Raises whatever the library raises if the engine does not respond.
    """
    return _remove_all(connect(address).api, lambda name: name == owner)


def _remove_all(api: Any, matches: Callable[[str], bool]) -> bool:
    there = False
    containers = api.containers(all=True, filters={"label": [OWNER]})
    containers.sort(key=lambda found: -found["Created"])  # a sidecar goes after the one that has its network
    for found in containers:
        if matches(found["Labels"].get(OWNER, "")):
            there = True
            Container(api, found["Id"]).remove()
    for found in api.volumes(filters={"label": [OWNER]})["Volumes"] or ():
        if matches((found["Labels"] or {}).get(OWNER, "")):
            there = True
            remove_volume(api, found["Name"])
    return there


def remove_volume(api: Any, name: str) -> None:
    """Remove a volume, unless a container still uses it."""
    with suppress(Exception):  # a container has it, or the engine has gone
        api.remove_volume(name)
