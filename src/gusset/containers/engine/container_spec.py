"""What a container is created with, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """A container to be created. `command` None runs what the image itself runs.

    `secrets`, a folder of this machine's or a volume by its name, is what it
    gets as /secrets; `network` is as the engine's API has it.
    """

    image: str
    command: Sequence[str] | None
    environment: Mapping[str, str]
    user: str | None
    secrets: Path | str
    owner: str
    network: str | None = None
    cpus: float | None = None
    memory: int | None = None
    gpus: int | None = None
    user_namespace: str | None = None
    may_leave_core: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)
