"""The docker library, an optional dependency, imported only when an engine is used."""

from __future__ import annotations

from contextlib import closing
from typing import Any, NamedTuple

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


class Connected(NamedTuple):
    """A client of an engine, and what the engine is."""

    client: Any
    is_podman: bool


def connect(address: str) -> Connected:
    """Connect to the engine at that address. The library's own exceptions pass through if none responds.

    The API version is from the headers of a ping. The library itself would ask for `version`, for which
    Podman needs 0.3 s: it asks the system which packages its programs belong to.
    """
    import docker  # see `check_library`
    from docker.constants import DEFAULT_DOCKER_API_VERSION

    any_version = DEFAULT_DOCKER_API_VERSION  # a ping has none
    with closing(docker.APIClient(base_url=address, version=any_version)) as session:
        response = session.get(f"{session.base_url}/_ping", timeout=API_SECONDS)
        response.raise_for_status()
    version = response.headers.get("Api-Version", "auto")
    client = docker.DockerClient(base_url=address, version=version, timeout=API_SECONDS)
    return Connected(client, is_podman="Libpod-Api-Version" in response.headers)
