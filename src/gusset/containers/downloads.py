"""Downloads what a custom image needs, before its container starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from gusset.containers.engine.engine import Engine
from gusset.containers.image_deployment import ImageDeployment
from gusset.errors import HostError
from gusset.runtime.declared_secrets import Values
from gusset.weights.cache import WeightsCache
from gusset.weights.download import FetchRequest
from gusset.weights.fetching import FetchOptions, fetch_all, fetch_environment

_TRANSFER = "truss-transfer-cli"


def fetch_folders(
    engine: Engine, deployment: ImageDeployment, values: Values, options: FetchOptions, *, cache: Path
) -> Mapping[str, Path]:
    """Download the deployment's weights: the folder, or file, for each path in the container. Blocks.

    `values` has the logins, which the masker of `options` knows. What is downloaded
    stays until this process ends.

    Raises:
        HostError: the engine cannot mount folders of this machine.
        GussetError: a download failed.
    """
    if not deployment.downloads:
        return {}
    if not engine.can_mount_our_files:
        raise HostError(
            f"{deployment.downloads[0].location}: the engine cannot mount folders of this machine",
            hint="serve on the machine of the engine, or have the container download it",
        )
    request = FetchRequest(
        downloads=deployment.downloads,
        values={name: values[name].value.reveal() for name in deployment.download_secrets if name in values},
        cache=cache,
        data_dir=deployment.folder,
        readable=sys.stderr.isatty(),
        plain_folders=True,
    )
    WeightsCache.open(cache).hold()
    folders = fetch_all(request, options, fetch_environment({}))
    if any(_TRANSFER in word for word in deployment.command or ()):
        folders[f"/usr/local/bin/{_TRANSFER}"] = _write_transfer(cache)
    return folders


def _write_transfer(cache: Path) -> Path:
    """The program that start commands wait for in Truss's images; here there is nothing left to do."""
    program = cache / _TRANSFER
    new = program.with_suffix(f".{os.getpid()}")
    new.write_text("#!/bin/sh\nexit 0\n")
    new.chmod(0o755)
    new.replace(program)
    return program
