"""The key of this account that makes digests of build secrets, which images may then show."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from gusset.errors import HostError
from gusset.trusted_folders import folder_problem

_FILE = "build.key"
_SIZE = 32  # bytes


def load_key(folder: Path) -> bytes:
    """The key in this folder, made if there is none. With another key, the commands of a build run again.

    Raises:
        HostError: it can be neither read nor written, or another account could have written it.
    """
    file = folder / _FILE
    if (problem := folder_problem(file, own=[folder])) is not None:
        raise HostError(
            f"the key of builds, {file}, may be known to other accounts: {problem.path} {problem.reason}",
            hint=f"make {problem.path} yours alone and remove the key, or set GUSSET_CACHE to another folder",
        )
    try:
        with suppress(FileNotFoundError):
            if len(key := file.read_bytes()) == _SIZE:
                return key
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=folder)  # nobody else may read it
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(secrets.token_bytes(_SIZE))
        Path(name).replace(file)
        return file.read_bytes()
    except OSError as error:
        raise HostError(
            f"the key of builds, {file}, cannot be used: {error.strerror}",
            hint="GUSSET_CACHE names the folder",
        ) from None
