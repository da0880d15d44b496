"""The images of an engine: finding them, pulling them, and reading their files."""

# Imports in functions: the library docker is an optional extra.

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gusset.containers.engine.container import (
    Container,
    Notify,
    creating,
    no_response_errors,
    reason,
    translate_engine_errors,
)
from gusset.containers.engine.library import retry_server_errors
from gusset.containers.engine.registry import Credentials
from gusset.containers.engine.run_id import RUN_ID_LABEL, run_id
from gusset.errors import Denied, HostError, NotFound

_PULL_HINT = (
    "is the name right? A private registry needs a login: base_image.docker_auth, or the engine's own"
)
_EXPORT_SECONDS = 1_800.0  # without a byte: some engines write the whole archive to their disk first
_EXPORT_CHUNK = 1 << 18  # bytes
_PROGRESS_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Image:
    """An image that the engine has. `user` is USER or USER:GROUP, in names or numbers, or empty."""

    id: str
    user: str
    architecture: str


class Images:
    """The images of one engine. `architecture` is the engine's own. For `notify` see `Engine.open`."""

    def __init__(self, client: Any, architecture: str, notify: Notify) -> None:
        self._client = client
        self._architecture = architecture
        self._notify = notify

    def get(
        self, name: str, on_progress: Callable[[str], object], credentials: Credentials | None = None
    ) -> Image:
        """The image of that name, pulled if the engine does not have it.

        `on_progress` is called with texts about the pull. `credentials` are for the image's
        registry; without them the engine uses its own login.

        Raises:
            ModelFailed: the engine refuses to inspect it.
            HostError: it cannot be found or pulled, or is for another architecture.
        """
        found = self._find(name)
        if found is None:
            self._pull(name, on_progress, credentials)
            found = self._find(name)
        if found is None:
            raise HostError(f"the image {name} was removed as soon as it was pulled", hint="try again")
        config = found.attrs.get("Config") or {}
        image = Image(found.id, config.get("User") or "", found.attrs.get("Architecture") or "")
        if image.architecture and self._architecture and image.architecture != self._architecture:
            raise HostError(
                f"the image {name} is for {image.architecture}, and this machine is {self._architecture}",
                hint="use an image that is built for this architecture",
            )
        return image

    def _pull(self, name: str, on_progress: Callable[[str], object], credentials: Credentials | None) -> None:
        import docker.errors

        hint = _PULL_HINT
        if credentials is not None:
            hint = f"is the name right? Is the login in the secret {credentials.secret} right?"
        layers: dict[str, tuple[int, int]] = {}
        last_report = 0.0
        on_progress(f"pulling {name}")
        try:
            repository, tag = _with_tag(name)
            login = credentials.auth_config() if credentials else None
            lines = self._client.api.pull(repository, tag=tag, stream=True, decode=True, auth_config=login)
            for line in lines:
                if line.get("error"):
                    raise HostError(f"the image {name} cannot be pulled: {line['error']}", hint=hint)
                detail = line.get("progressDetail") or {}
                if line.get("id") and detail.get("total"):
                    layers[line["id"]] = (detail.get("current", 0), detail["total"])
                if layers and time.monotonic() - last_report > _PROGRESS_SECONDS:
                    last_report = time.monotonic()
                    done, total = (sum(each) / 1e6 for each in zip(*layers.values(), strict=True))
                    on_progress(f"pulling {name}: {done:.0f} of {total:.0f} MB")
        except docker.errors.APIError as error:
            raise HostError(
                f"the engine lacks the image {name}, and it cannot be pulled: {reason(error)}",
                hint=hint,
            ) from None
        except no_response_errors() as error:
            raise HostError(
                f"the engine has stopped responding while it pulled the image {name}: {reason(error)}",
                hint="try again",
            ) from None

    def id_of(self, name: str) -> str | None:
        """The id of the image of that name; None if the engine has none.

        Raises:
            ModelFailed, HostError: the engine refuses, or does not respond.
        """
        found = self._find(name)
        return None if found is None else str(found.id)

    def _find(self, name: str) -> Any | None:
        """The library's image of that name; None if the engine has none.

        Raises:
            ModelFailed, HostError: the engine refuses, or does not respond.
        """
        import docker.errors

        with translate_engine_errors(f"the image {name} cannot be inspected"):
            try:
                return retry_server_errors(lambda: self._client.images.get(name))
            except docker.errors.ImageNotFound:
                return None

    def tag(self, image: str, name: str) -> None:
        """Give an image a name, which another image then loses.

        Raises:
            ModelFailed, HostError: the engine refuses, or does not respond.
        """
        repository, tag = _with_tag(name)
        with translate_engine_errors(f"the image cannot be named {name}"):
            self._client.api.tag(image, repository, tag, force=True)

    def push(
        self, name: str, on_progress: Callable[[str], object], credentials: Credentials | None = None
    ) -> None:
        """Push the image of that name to the registry in it.

        `credentials` are for that registry; without them the engine uses its own login.

        Raises:
            Denied: the registry refuses the login.
            HostError: it refuses the image, or does not respond.
        """
        repository, tag = _with_tag(name)
        login = credentials.auth_config() if credentials else None
        with translate_engine_errors(f"the image {name} cannot be pushed"):
            for line in self._client.api.push(
                repository, tag=tag, stream=True, decode=True, auth_config=login
            ):
                if message := line.get("error"):
                    raise _push_error(name, str(message))
                if line.get("status") and not line.get("progress"):
                    on_progress(f"pushing {name}: {line['status']}")

    def export(self, name: str) -> Iterator[bytes]:
        """The image as an archive, in chunks, as the engine sends it. Nothing is pulled.

        Raises:
            NotFound: the engine does not have it.
            ModelFailed: the engine refuses it.
            HostError: the engine does not respond, also while the chunks are read.
        """
        if self._find(name) is None:
            raise NotFound(f"the engine has no image {name}", hint="pull or build it first")
        return self._chunks(name)

    def _chunks(self, name: str) -> Iterator[bytes]:
        api = self._client.api
        usual, api.timeout = api.timeout, _EXPORT_SECONDS
        try:
            with translate_engine_errors(f"the image {name} cannot be exported"):
                yield from api.get_image(name, chunk_size=_EXPORT_CHUNK)
        finally:
            api.timeout = usual

    def files(self, image: Image, *paths: str) -> list[bytes]:
        """The contents of small files of an image; empty for a file that it does not have.

        The container that is created for this is never started.

        Raises:
            ModelFailed: the engine refuses to create the container.
            HostError: the engine does not respond.
        """
        api = self._client.api
        with creating(self._notify, "the files of the image cannot be read"):
            made = api.create_container(image.id, entrypoint=["/"], labels={RUN_ID_LABEL: run_id()})
        container = Container(api, made["Id"])
        try:
            return [container.file(path) for path in paths]
        finally:
            container.remove()


_REFUSED = ("denied", "unauthorized", "authentication required", "forbidden", "no basic auth")


def _push_error(name: str, message: str) -> Denied | HostError:
    if any(word in message.lower() for word in _REFUSED):
        return Denied(
            f"the registry refuses the image {name}: {message}",
            hint="log in with `docker login` or `podman login`, or see who may write to that repository",
        )
    return HostError(
        f"the image {name} cannot be pushed: {message}", hint="the image is built: push it again later"
    )


def _with_tag(name: str) -> tuple[str, str | None]:
    """The repository and the tag to pull; a digest is part of the repository, without a tag."""
    if "@" in name:
        return name, None
    repository, colon, tag = name.rpartition(":")
    if colon and "/" not in tag:
        return repository, tag
    return name, "latest"
