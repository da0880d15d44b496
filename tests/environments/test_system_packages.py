"""Which of the system packages that a folder names are missing."""

from __future__ import annotations

from gusset.environments.plan import FileLocation
from gusset.environments.system_packages import missing_packages

LISTING = "ii \tffmpeg\tffmpeg-any (= 6)\nii \tlibgl1\tlibgl, libgl1-mesa-glx:amd64 (= 1)\nrc \tremoved\t\n"


def missing(*names: str, listing: str | None = LISTING) -> list[tuple[str, str | None]]:
    wanted = [(name, FileLocation(file="config.yaml", line=number)) for number, name in enumerate(names, 1)]
    return [(each.message, each.hint) for each in missing_packages(wanted, lambda: listing)]


def test_what_is_installed_or_provided_is_not_missing() -> None:
    """Versions and architectures in a name do not matter, nor which package provides it."""
    assert missing() == missing("ffmpeg", "ffmpeg=7:6.1", "libgl1:amd64", "libgl1-mesa-glx", " ") == []


def test_missing_packages_are_named_with_one_command() -> None:
    """A package that was removed, with its settings left, counts as missing."""
    assert missing("ffmpeg", "removed", "other=1", "other=1") == [
        ("system packages that this machine lacks: removed other=1", "sudo apt-get install removed other=1")
    ]


def test_a_machine_without_dpkg_says_that_it_cannot_check() -> None:
    """On other distributions."""
    [(message, hint)] = missing("ffmpeg", listing=None)
    assert "cannot be checked" in message
    assert hint is None
