"""What a container is created with, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """A container to be created.

    `command` None runs the image's own command. `secrets`, a folder of this
    machine or the name of a volume, is mounted as /secrets. `folders`, and files, of this
    machine are mounted read-only at their paths in the container. `network` is a
    network mode of the engine's API; None leaves it to the engine. `run_id`
    goes into a label. `memory` is in bytes; `gpus` -1 means all.
    """

    image: str
    command: Sequence[str] | None
    environment: Mapping[str, str]
    user: str | None
    secrets: Path | str
    run_id: str
    network: str | None = None
    cpus: float | None = None
    memory: int | None = None
    gpus: int | None = None
    user_namespace: str | None = None
    may_leave_core: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, Path] = field(default_factory=dict)
