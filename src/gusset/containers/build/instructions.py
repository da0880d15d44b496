"""Instructions of a Containerfile."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gusset import __version__
from gusset.containers.build.build_plan import FOLDER_DIGEST, SECRETS_ARGUMENT


@dataclass(frozen=True, slots=True)
class BindMount:
    """A file or folder of the context that a command sees, and no layer contains."""

    source: str
    target: str

    def option(self) -> str:
        return f"--mount=type=bind,source={self.source},target={self.target},rw"


@dataclass(frozen=True, slots=True)
class BuildSecretMount:
    """A secret as a file that a command sees, and no layer contains. Without it, the build fails."""

    id: str
    target: str

    def option(self) -> str:
        return f"--mount=type=secret,id={self.id},target={self.target},required=true"


def run(command: str, mounts: Iterable[BindMount | BuildSecretMount] = ()) -> str:
    """A command for the shell. JSON keeps its line breaks and quotes."""
    words = ["RUN", *(mount.option() for mount in mounts)]
    return " ".join([*words, json.dumps(["/bin/sh", "-c", command], ensure_ascii=False)])


def system_packages(names: Sequence[str]) -> str:
    """Install packages of Debian or Ubuntu."""
    return run(
        "export DEBIAN_FRONTEND=noninteractive; apt-get update && "
        f"apt-get install -y --no-install-recommends {shlex.join(names)} && rm -rf /var/lib/apt/lists/*"
    )


def copy(source: str, target: str) -> str:
    """Copy from the context into the image."""
    return "COPY " + json.dumps([source, target], ensure_ascii=False)


def entrypoint(command: Sequence[str]) -> str:
    """The command that the image runs, without a shell."""
    return "ENTRYPOINT " + json.dumps(list(command), ensure_ascii=False)


def env(variables: Mapping[str, str]) -> list[str]:
    """Variables of the image's processes."""
    return [f"ENV {name}={_quoted(value)}" for name, value in sorted(variables.items())]


def labels(title: str, base: str) -> list[str]:
    """What the image says of itself."""
    values = {
        "dev.gusset.folder.digest": FOLDER_DIGEST,
        "dev.gusset.version": __version__,
        "org.opencontainers.image.base.name": base,
        "org.opencontainers.image.title": title,
    }
    return ["LABEL " + " ".join(f"{name}={_quoted(value)}" for name, value in values.items())]


def secrets_argument() -> str:
    """Declare the argument that changes with the secrets: commands after it run again when it changes."""
    return f"ARG {SECRETS_ARGUMENT}"


def _quoted(text: str) -> str:
    """As one word of a Containerfile, in which no variable is replaced."""
    escaped = re.sub(r'(["\\$])', r"\\\1", text)
    return '"' + re.sub(r"[\x00-\x1f\x7f]", " ", escaped) + '"'
