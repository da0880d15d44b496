"""The docker library, an optional dependency, imported only when an engine is used."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple, TypeVar

from gusset.containers.engine.container import API_SECONDS
from gusset.errors import UsageError

_ATTEMPTS = 5  # at most, `_RETRY_INTERVAL` seconds apart
_RETRY_INTERVAL = 0.2

T = TypeVar("T")


def check_library() -> None:
    """Raise UsageError if the library is not installed."""
    try:
        import docker  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError(
            "custom images need the library docker", hint="pip install 'gusset[containers]'"
        ) from None


def retry_server_errors(request: Callable[[], T]) -> T:
    """What `request` returns; it is repeated after a server error.

    Podman has one where an image, container or volume that it looks at is removed at that moment. The
    library's own exceptions pass through, also that of the last attempt.
    """
    import docker.errors

    left = _ATTEMPTS
    while True:
        left -= 1
        try:
            return request()
        except docker.errors.APIError as error:
            if not error.is_server_error() or left == 0:
                raise
        time.sleep(_RETRY_INTERVAL)


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
