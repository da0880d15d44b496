"""What a build has left at the engine: its image, intermediate layers and cache, and their removal."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gusset.containers.engine.engine import Engine

_STEP = re.compile(r"--> (?:(Using cache) )?([0-9a-f]{10,64})")  # as Podman prints it
_PASSES = 10  # a record of the cache is removed only after those that depend on it


class BuildCache:
    """Follows one build, from before its start. `on_image` gets the ids of Podman's intermediate images."""

    def __init__(self, engine: Engine, *, on_image: Callable[[str], object]) -> None:
        self._engine = engine
        self._on_image = on_image
        self._before = self._records()
        self._made: list[str] = []
        self._cached: str = ""

    def read_line(self, line: str) -> None:
        """Note the intermediate images that a line of the build's output names."""
        if not self._engine.is_podman or not (found := _STEP.fullmatch(line.strip())):
            return
        if found[1]:
            self._cached = found[2]
        elif not (self._cached and self._cached.startswith(found[2])):
            self._made.append(found[2])
            self._on_image(found[2])

    def remove(self, image: str | None) -> None:
        """Remove the image with the layers that no other image has, and the cache of this build.

        What is in use by others stays, and so does everything if the engine does not respond.
        """
        for each in [*([image] if image else []), *reversed(self._made)]:
            with suppress(Exception):  # it was removed with the previous one, or others use it
                self._engine.api.remove_image(each, force=True)
        for _ in range(_PASSES):
            new = self._records() - self._before
            for record in new:
                with suppress(Exception):
                    self._engine.api.prune_builds(filters={"id": [record]}, all=True)
            if not new or self._records() - self._before == new:
                return

    def _records(self) -> set[str]:
        """The records of Docker's build cache."""
        if self._engine.is_podman:
            return set()
        try:
            found: list[dict[str, Any]] = self._engine.api.df().get("BuildCache") or []
        except Exception:  # an engine without this part of the API has no such cache
            return set()
        return {each["ID"] for each in found}
