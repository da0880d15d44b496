"""Commands that need Linux. On another system they end with the command that runs them in a container."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gusset.cli.app import App
from gusset.errors import HostError
from gusset.secrets.sources.environment import ENVIRONMENT_PREFIX


def require_linux(command: str, hint: Callable[[], str]) -> None:
    """Raises HostError on another system, with `hint`, such as that of `run_in_container`."""
    if sys.platform != "linux":
        raise HostError(f"{command} needs Linux, which can protect secrets in memory", hint=hint())


def run_in_container(command: str, before: str | None = None) -> str:
    """The hint to run `command`; `before` is what has to be done once before."""
    hint = f"run it in a container of the image that packaging/Containerfile builds:\n  {command}"
    return hint if before is None else f"{hint}\n{before}"


def docker_run(options: Sequence[str], *arguments: str, terminal: bool = True) -> str:
    """A command line that runs `gusset ARGUMENTS` in a container, with the vault of the volume `gusset`."""
    interactive = "-it" if terminal else "-i"
    return shlex.join(
        ["docker", "run", "--rm", interactive, *options, "-v", "gusset:/data", "gusset", *arguments]
    )


def mount(path: Path, target: str) -> list[str]:
    """The options that show a file or folder in a container, read-only."""
    return ["-v", f"{path.resolve()}:{target}:ro"]


def publish(host: str, port: int, port_inside: int) -> list[str]:
    """The options that publish a port at this address of the host. For port 0 the engine picks a free one."""
    address = "127.0.0.1" if host == "localhost" else f"[{host}]" if ":" in host else host
    return ["-p", f"{address}:{port or ''}:{port_inside}"]


@dataclass(frozen=True, slots=True)
class ContainerSource:
    """Where a command in a container reads secrets.

    `options` are those of `docker run`, `before` is what has to be done once before.
    """

    options: list[str]
    arguments: list[str]
    before: str | None = None


def source_in_container(app: App, secrets_dir: Path | None, manager: str | None = None) -> ContainerSource:
    """The source that `open_source` would choose, as a container reaches it; names only, never a value."""
    names = [name for name in sorted(os.environ) if name.startswith(ENVIRONMENT_PREFIX)]
    variables = [
        word for name in names for word in ("-e", name)
    ]  # docker takes each value from its environment
    if secrets_dir is not None:
        return ContainerSource([*variables, *mount(secrets_dir, "/secrets")], ["--secrets-dir", "/secrets"])
    if url := manager or app.settings.manager:
        return _manager_in_container(app, url, variables)
    set_secret = docker_run([], "secret", "set", "NAME")
    before = f"first, add each secret to the container's own vault:\n  {set_secret}"
    return ContainerSource(variables, [], before)


def _manager_in_container(app: App, url: str, variables: list[str]) -> ContainerSource:
    from gusset.client.manager_client import checked_urls

    url = ",".join(checked_urls(url, insecure_http=True))  # refuses a URL with a password
    options = [*variables, "-e", f"GUSSET_MANAGER={url}"]
    if ca_certificates := app.settings.manager_ca:
        options += [
            *mount(ca_certificates, "/run/gusset-ca.pem"),
            "-e",
            "GUSSET_MANAGER_CA=/run/gusset-ca.pem",
        ]
    if token_file := app.settings.token_file:
        options += [*mount(token_file, "/run/gusset-token"), "-e", "GUSSET_TOKEN_FILE=/run/gusset-token"]
        return ContainerSource(options, [])
    if file := app.settings.identity_token_file:
        # Its folder, since the platform replaces the file.
        options += [*mount(file.parent, "/run/gusset-identity")]
        options += ["-e", f"GUSSET_IDENTITY_TOKEN_FILE=/run/gusset-identity/{file.name}"]
        return ContainerSource(options, [])
    insecure = ["--insecure-http"] if app.settings.insecure_http else []
    log_in = docker_run([], "login", url, *insecure)
    return ContainerSource(options, [], f"first, log in from the container:\n  {log_in}")
