"""The docker library, an optional dependency, imported only when an engine is used."""

from __future__ import annotations

from typing import Any

from gusset.containers.engine.container import API_SECONDS
from gusset.errors import UsageError


def check_library() -> None:
    """Raise UsageError if the library is not installed."""
    try:
        import docker  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError(
            "custom images need the library docker", hint="pip install 'gusset[containers]'"
        ) from None


def connect(address: str) -> Any:
    """A client of the engine at that address. The library's own exceptions pass through if none responds."""
    import docker  # see `check_library`

    client = docker.DockerClient(base_url=address, version="auto", timeout=API_SECONDS)
    client.ping()
    return client
