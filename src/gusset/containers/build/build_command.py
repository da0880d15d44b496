"""The engine's own build command: which program, with which options, and whether it can mount secrets."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gusset.containers.build.build_plan import SECRETS_ARGUMENT, BuildPlan, BuildSecret
from gusset.containers.build.context import CONTAINERFILE
from gusset.containers.engine.engine import Engine
from gusset.errors import HostError
from gusset.runtime.environment import child_environment

_CHECK_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildTool:
    """The program that builds. `prefix`: its first words.

    `working_containers` is where a Podman that needs no service describes the containers of builds.
    """

    prefix: tuple[str, ...]
    environ: dict[str, str]
    is_podman: bool
    working_containers: Path | None
    can_mount: bool

    @classmethod
    def find(cls, engine: Engine) -> BuildTool:
        """The command of the engine.

        Raises:
            HostError: it is not installed.
        """
        name = "podman" if engine.is_podman else "docker"
        program = shutil.which(name)
        if program is None:
            raise HostError(
                f"to build the image the command {name} is needed",
                hint="install it, or build the image yourself: --context-only writes what it is built from",
            )
        environ = child_environment()
        if engine.is_podman:
            containers = _local_containers(program, engine)
            prefix = [program] if containers else [program, "--url", engine.address]
            can_mount = "--secret" in _output([program, "build", "--help"], environ)
        else:
            prefix, containers = [program, "--host", engine.address], None
            with_buildkit = environ | {"DOCKER_BUILDKIT": "1"}
            can_mount = "--secret" in _output([*prefix, "build", "--help"], with_buildkit)
            environ = with_buildkit if can_mount else environ
        return cls(
            prefix=tuple(prefix),
            environ=environ,
            is_podman=engine.is_podman,
            working_containers=containers,
            can_mount=can_mount,
        )

    @property
    def mounts_secrets(self) -> bool:
        """Whether instructions mount secrets. Podman copies these to a disk, so it gets volumes instead."""
        return not self.is_podman

    def check(self, plan: BuildPlan) -> None:
        """Raise HostError if it would leave something out or write values to a disk."""
        if plan.needs_mounts and not self.can_mount:
            what = "build secrets" if plan.secrets else "mounts in a build"
            raise HostError(
                f"{Path(self.prefix[0]).name} is too old for {what}, or has no BuildKit",
                hint="install a newer one; for Docker, its plugin buildx (docker-buildx)",
            )
        if plan.secrets and self.is_podman and self.working_containers is None:
            raise HostError(
                "the secrets of a build are in this machine's memory, which Podman's service does not reach",
                hint="build on the machine and under the account where Podman's images are",
            )

    def start(
        self, plan: BuildPlan, context: Path, *, result: Path, secrets_key: str, folder: Path | None
    ) -> subprocess.Popen[str]:
        """Start the build. It writes the image's id to the file `result`.

        `folder`, which is in memory, has the contents of the plan's secrets, by their ids.
        """
        command = [*self.prefix, "build", "--iidfile", str(result), "--file", str(context / CONTAINERFILE)]
        if self.is_podman:
            # Of the two formats of Podman's, only this one has a health check.
            command += ["--timestamp", "0", "--format", "docker"]
        elif self.can_mount:
            command += ["--progress", "plain", "--build-arg", "SOURCE_DATE_EPOCH=0"]
        for secret in plan.secrets:
            command += self._secret(secret, f"{folder}/{secret.id}")
        if plan.secrets:
            command += ["--build-arg", f"{SECRETS_ARGUMENT}={secrets_key}"]
        command += [*(["--no-cache"] if plan.no_cache else []), str(context)]
        return subprocess.Popen(
            command,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that it can be ended with its own children: see `end_group`
        )

    def _secret(self, secret: BuildSecret, file: str) -> list[str]:
        """The options that give the build a secret."""
        if self.mounts_secrets:
            return ["--secret", f"id={secret.id},src={file}"]
        label = ",z" if Path("/sys/fs/selinux/enforce").exists() else ""
        return ["--volume", f"{file}:{secret.target}:ro{label}"]


def _local_containers(program: str, engine: Engine) -> Path | None:
    """The folder for containers in Podman's storage, if that is the storage of the engine."""
    if engine.is_remote:
        return None
    found = _output([program, "info", "--format", "json"], child_environment())
    try:
        store = json.loads(found)["store"]
        root, driver = store["graphRoot"], store["graphDriverName"]
    except (ValueError, KeyError, TypeError):
        return None
    return Path(root, f"{driver}-containers") if root == engine.api.info().get("DockerRootDir") else None


def _output(command: Sequence[str], environ: dict[str, str]) -> str:
    try:
        done = subprocess.run(command, env=environ, capture_output=True, timeout=_CHECK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")
