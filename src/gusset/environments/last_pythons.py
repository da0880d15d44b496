"""Which Python each model folder used last: a guess for its next start, made before its config is read."""

# Not in `store.py`: every start of a model looks here, and most use no environment.

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from gusset.errors import HostError
from gusset.portable import write_private_file
from gusset.trusted_folders import check_cache_folder

_SUFFIX = ".last"


class LastPythons:
    """Small files beside the environments, one for each model folder that used one."""

    def __init__(self, cache: Path) -> None:
        self._folder = environments_folder(cache)

    def guess(self, folder: Path) -> Path | None:
        """The Python of the environment that a model folder used last; None if others could have set it."""
        try:
            check_cache_folder(self._folder, own=[self._folder.parent])
            python = Path(self._file(folder).read_text())
        except (OSError, ValueError, HostError):
            return None
        return python if python.is_relative_to(self._folder) and os.access(python, os.X_OK) else None

    def remember(self, folder: Path, python: Path | None) -> None:
        """Keep which Python a model folder uses; None if it is not that of an environment."""
        file = self._file(folder)
        with suppress(OSError):
            if python is None:
                file.unlink(missing_ok=True)
            elif not file.exists() or file.read_text() != str(python):
                write_private_file(file, str(python).encode())

    def forget_missing(self) -> None:
        """Remove the files that name an environment that no longer exists."""
        for file in self._folder.glob(f"*{_SUFFIX}"):
            with suppress(OSError, ValueError):
                if not os.access(file.read_text(), os.X_OK):
                    file.unlink()

    def _file(self, folder: Path) -> Path:
        name = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()
        return self._folder / (name[:32] + _SUFFIX)


def environments_folder(cache: Path) -> Path:
    """The folder of the cache that has the environments."""
    return cache / "environments"
