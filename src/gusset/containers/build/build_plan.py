"""What an image is built from, as plain data, without values of secrets."""

from __future__ import annotations

import configparser
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gusset.environments.index_settings import pip_options
from gusset.environments.logins import pip_to_uv
from gusset.errors import ConfigInvalid
from gusset.secrets.value import SecretValue

SECRETS_ARGUMENT = "GUSSET_BUILD_SECRETS"
"""The build argument that changes with the secrets' values, for the engine's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextFile:
    """A file of the context, from its content."""

    path: str
    content: bytes = field(repr=False)
    executable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextCopy:
    """A file or folder that is copied into the context; what is there already stays.

    `leave_out` are paths in the folder. `is_model` copies count in the folder's digest.
    """

    path: str
    source: Path
    leave_out: frozenset[Path] = frozenset()
    is_model: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSecret:
    """A file that instructions mount by its `id` at `target`, and the engine keeps in no layer.

    Its content is the values of the secrets `names`, one after the other, after `logins`, which
    come from URLs. With `to_uv`, the value is a pip.conf, and the content a uv.toml that means the same.
    """

    id: str
    target: str
    names: tuple[str, ...] = ()
    to_uv: bool = False
    logins: bytes = field(default=b"", repr=False)

    def content(self, values: Mapping[str, SecretValue]) -> bytes:
        """The content, from the values of its secrets. Raises ConfigInvalid for an invalid pip.conf."""
        parts = [self.logins] if self.logins else []
        for name in self.names:
            value = values[name].reveal()
            parts.append(_to_uv(name, value) if self.to_uv else value)
        return b"\n".join(parts)


def _to_uv(name: str, value: bytes) -> bytes:
    try:
        content, _ = pip_to_uv(pip_options(value.decode()))
    except (UnicodeDecodeError, configparser.Error):
        raise ConfigInvalid(
            f"the secret {name} is not a valid pip.conf", hint="store its content unchanged"
        ) from None
    return content


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """What is built, for a folder of that `name`.

    `instructions` are the lines of the Containerfile. `needs_mounts`: some of them mount files of the context
    or secrets, which the oldest engines cannot do.
    """

    name: str
    folder: Path
    base: str
    instructions: tuple[str, ...]
    context: tuple[ContextFile | ContextCopy, ...]
    secrets: tuple[BuildSecret, ...] = ()
    needs_mounts: bool = False
    no_cache: bool = False

    def containerfile(self, digest: str, *, mount_secrets: bool = True) -> str:
        """The text of the Containerfile; `digest` is that of the folder's content.

        Without `mount_secrets`, the build command mounts them at their targets, for all commands.
        """
        lines = (line.replace(FOLDER_DIGEST, digest) for line in self.instructions)
        if not mount_secrets:
            lines = (_SECRET_MOUNT.sub("", line) if line.startswith("RUN ") else line for line in lines)
        return "\n".join(lines) + "\n"


_SECRET_MOUNT = re.compile(r"--mount=type=secret,\S+ (?=.*\[\"/bin/sh\", \"-c\")")

FOLDER_DIGEST = "@GUSSET_FOLDER_DIGEST@"
"""A placeholder in the instructions for the digest of the folder, until its files have been read."""
