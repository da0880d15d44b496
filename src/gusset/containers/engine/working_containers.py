"""The containers in which Podman's builds run their commands.

Podman keeps those of a build that is interrupted, with all that the commands have written.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from gusset.runtime.environment import child_environment

# A build's secrets are mounted from a folder whose name has the run id: see `ContainerFolder`.
_RUN_ID = re.compile(r"/gusset-([0-9]+-[0-9]+-[0-9a-f]+)-[^/]*/secrets/")
_SECONDS = 60.0


def remove_working_containers(folder: Path, matches: Callable[[str], bool]) -> None:
    """Remove the containers of builds with secrets that runs whose run id `matches` have made.

    `folder` is where Podman's storage describes its containers. If Podman does not respond, they stay.
    """
    found = [file.parents[1].name for file in folder.glob("*/userdata/buildah.json") if _is_of(file, matches)]
    podman = shutil.which("podman")
    if not found or podman is None:
        return
    try:
        subprocess.run(
            [podman, "rm", "--force", *found],
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return


def _is_of(file: Path, matches: Callable[[str], bool]) -> bool:
    try:
        volumes = json.loads(file.read_bytes())["CommonBuildOpts"]["Volumes"] or []
    except (OSError, ValueError, KeyError, TypeError):
        return False
    run_ids = (_RUN_ID.search(str(volume)) for volume in volumes)
    return any(found is not None and matches(found[1]) for found in run_ids)
