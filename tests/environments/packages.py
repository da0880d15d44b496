"""Tiny packages for tests: wheels, source archives, and installed ones; nothing is downloaded."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path


def metadata(name: str, version: str, requires: Iterable[str] = ()) -> str:
    lines = [f"Requires-Dist: {each}\n" for each in requires]
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{''.join(lines)}\nA description.\n"


def wheel(
    folder: Path, name: str, version: str = "1.0", *, requires: Iterable[str] = (), code: str = ""
) -> Path:
    """Write a wheel with one module of the package's name."""
    folder.mkdir(parents=True, exist_ok=True)
    module = name.replace("-", "_")
    file = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        info = f"{module}-{version}.dist-info"
        archive.writestr(f"{module}.py", code or f"version = {version!r}\n")
        archive.writestr(f"{info}/METADATA", metadata(name, version, requires))
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return file


BACKEND = """
import zipfile
{body}
def build_wheel(folder, config=None, metadata=None):
    file = "{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(folder + "/" + file, "w") as archive:
        info = "{name}-{version}.dist-info/"
        archive.writestr("{name}.py", "version = '{version}'")
        archive.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        archive.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr(info + "RECORD", "")
    return file
build_editable = build_wheel
"""
PROJECT = """[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "{name}"
version = "{version}"
"""


def project(folder: Path, name: str, version: str = "1.0", *, body: str = "") -> Path:
    """Write a source folder that builds itself without any other package; `body` runs before it does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(PROJECT.format(name=name, version=version))
    (folder / "backend.py").write_text(BACKEND.format(name=name, version=version, body=body))
    return folder


def source_archive(folder: Path, name: str, version: str = "1.0", *, body: str = "") -> Path:
    """Write a source archive of such a project."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-{version}.tar.gz"
    files = {
        "PKG-INFO": metadata(name, version),
        "pyproject.toml": PROJECT.format(name=name, version=version),
        "backend.py": BACKEND.format(name=name, version=version, body=body),
    }
    with tarfile.open(file, "w:gz") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(f"{name}-{version}/{path}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return file


def install(
    site: Path,
    name: str,
    version: str = "1.0",
    *,
    requires: Iterable[str] = (),
    direct_url: dict[str, object] | None = None,
) -> Path:
    """Put a package's metadata into a folder, as if it were installed there."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text(metadata(name, version, requires))
    if direct_url is not None:
        (folder / "direct_url.json").write_text(json.dumps(direct_url))
    return folder
