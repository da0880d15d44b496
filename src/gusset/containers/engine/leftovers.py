"""Removal of the containers and volumes that gusset has labelled as its own.

`api` is the library's low-level client of an engine, as `Engine.api` is.
"""

# Imports in functions: the library docker is an optional extra.

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from gusset.containers.engine.container import Container, translate_engine_errors
from gusset.containers.engine.library import connect, retry_server_errors
from gusset.containers.engine.run_id import RUN_ID_LABEL, run_has_ended, run_id


def remove_own(api: Any) -> bool:
    """Remove what this process still has at the engine; whether there was anything.

    Raises:
        ModelFailed: the engine refuses it.
        HostError: the engine does not respond.
    """
    with translate_engine_errors("what gusset has left at the engine cannot be removed"):
        return _remove_all(api, lambda name: name == run_id())


def remove_orphans(api: Any) -> None:
    """Remove the leftovers of gusset runs that were killed."""
    with suppress(Exception):  # never a reason not to serve
        _remove_all(api, run_has_ended)


def remove_run(address: str, name: str) -> bool:
    """Remove what the run of that `run_id` has at the engine of that address; whether there was anything.

    The library's own exceptions pass through if the engine does not respond.
    """
    return _remove_all(connect(address).client.api, lambda found: found == name)


def remove_images(address: str, images: Sequence[str]) -> list[str]:
    """Remove these intermediate images, each made from the previous one; returns those still there.

    The library's own exceptions pass through if the engine does not respond.
    """
    from docker.errors import APIError, ImageNotFound

    api = connect(address).client.api
    left = []
    for image in reversed(images):
        try:
            api.remove_image(image, force=True)
        except ImageNotFound:
            continue
        except APIError:  # another image was made from it
            left.append(image)
    return left


def remove_volume(api: Any, name: str) -> None:
    """Remove a volume, unless a container still uses it."""
    with suppress(Exception):  # a container uses it, or the engine does not respond
        api.remove_volume(name)


def _remove_all(api: Any, matches: Callable[[str], bool]) -> bool:
    """Remove the containers and volumes whose run id matches; whether there were any."""
    found_any = False
    ours = {"label": [RUN_ID_LABEL]}
    containers = retry_server_errors(lambda: api.containers(all=True, filters=ours))
    containers.sort(key=lambda found: -found["Created"])  # a sidecar after the container in its network
    for found in containers:
        if matches(found["Labels"].get(RUN_ID_LABEL, "")):
            found_any = True
            Container(api, found["Id"]).remove()
    for found in retry_server_errors(lambda: api.volumes(filters=ours))["Volumes"] or ():
        if matches((found["Labels"] or {}).get(RUN_ID_LABEL, "")):
            found_any = True
            remove_volume(api, found["Name"])
    return found_any
