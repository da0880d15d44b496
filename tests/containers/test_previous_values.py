"""The values before the current ones, as files for containers and commands."""

from __future__ import annotations

import os
from contextlib import closing

from gusset.containers.secrets.memory_folder import PREVIOUS, ContainerFolder
from gusset.secrets.value import SecretValue


def test_values_before_are_files_of_a_folder_while_an_overlap_lasts() -> None:
    """Byte-exact, with the mode of the others; the folder is gone when the last overlap is over."""
    with closing(ContainerFolder.create("1-1-1", None)) as folder:
        new, old = SecretValue(b"new\0value\n"), SecretValue(b"old\0value\n")
        folder.replace({"token": new, "other": new}, {"token": old, "other": old})
        kept = folder.path / PREVIOUS
        assert (kept / "token").read_bytes() == old.reveal()
        assert (folder.path / "token").read_bytes() == new.reveal()
        assert os.stat(kept / "token").st_mode & 0o777 == 0o400 and os.stat(kept).st_mode & 0o777 == 0o755
        folder.replace({"token": new, "other": new}, {"other": old})
        assert [file.name for file in kept.iterdir()] == ["other"]
        folder.replace({"token": new})
        assert [file.name for file in folder.path.iterdir()] == ["token"]
