"""What tests need of the machine: root, and the packages that `make system-deps` installs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

_PATH = os.pathsep.join(
    [os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]
)  # of no ordinary account on Debian


def skip_if(reason: str | None) -> None:
    """Skip the test if there is a reason; in CI, fail it."""
    if reason and os.environ.get("CI") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def missing_programs(*programs: str) -> str | None:
    """Which of these programs (or files, by their paths) are not installed, and what to do; None if all are."""
    missing = [name for name in programs if not _is_installed(name)]
    if not missing:
        return None
    return f"not installed: {', '.join(missing)}; `make system-deps` installs it on Debian"


def _is_installed(name: str) -> bool:
    return Path(name).exists() if "/" in name else shutil.which(name, path=_PATH) is not None
