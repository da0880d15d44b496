"""Makes wheels of packages that are installed, for a machine on which no index responds."""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

from packaging.utils import canonicalize_name

from gusset.environments.installed import Distribution, InstalledPackages

_OF_INSTALLATION = ("INSTALLER", "REQUESTED", "direct_url.json", "RECORD")


def repack(installed: InstalledPackages, names: Iterable[str], folder: Path) -> None:
    """Write wheels of these packages, and of all that they depend on, into a folder.

    Those that are not installed, or not from a wheel, are left out.
    """
    waiting, seen = list(names), set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        found = installed.find(name)
        if name in seen or found is None:
            continue
        seen.add(name)
        _write_wheel(found, folder)
        for each in found.requires:
            if each.marker is None or each.marker.evaluate({"extra": ""}):
                waiting.append(each.name)


def _write_wheel(distribution: Distribution, folder: Path) -> None:
    """Write the wheel that the package was installed from, as far as its files are still there."""
    tags = distribution.tags
    site = distribution.metadata.parent
    try:
        with (distribution.metadata / "RECORD").open(newline="") as record:
            files = [row[0] for row in csv.reader(record) if row]
    except OSError:
        return
    if not tags:
        return
    python, abi, platform = zip(*(tag.split("-", 2) for tag in tags), strict=True)
    tag = "-".join(".".join(dict.fromkeys(part)) for part in (python, abi, platform))
    name = re.sub(r"[-.]+", "_", distribution.name)
    with zipfile.ZipFile(folder / f"{name}-{distribution.version}-{tag}.whl", "w") as wheel:
        for file in files:
            if _belongs(file, distribution) and (site / file).is_file():
                wheel.write(site / file, file)
        wheel.writestr(f"{distribution.metadata.name}/RECORD", "")


def _belongs(file: str, distribution: Distribution) -> bool:
    """Whether a file of the record was in the wheel: neither a script nor made by the installation."""
    path = Path(file)
    of_installation = path.parent.name == distribution.metadata.name and path.name in _OF_INSTALLATION
    return not (of_installation or path.is_absolute() or ".." in path.parts or file.endswith(".pyc"))
