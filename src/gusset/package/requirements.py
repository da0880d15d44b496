"""Which of a model's requirements provides a module, as far as names tell. Installs and imports nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_DISTRIBUTIONS = {
    "attr": ("attrs",),
    "bs4": ("beautifulsoup4",),
    "crypto": ("pycryptodome",),
    "cv2": ("opencv-python", "opencv-python-headless", "opencv-contrib-python"),
    "dateutil": ("python-dateutil",),
    "dotenv": ("python-dotenv",),
    "faiss": ("faiss-cpu", "faiss-gpu"),
    "fitz": ("pymupdf",),
    "google": ("google-cloud-storage", "google-auth", "protobuf"),
    "jwt": ("pyjwt",),
    "magic": ("python-magic",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openssl": ("pyopenssl",),
    "pil": ("pillow",),
    "pkg-resources": ("setuptools",),
    "psycopg2": ("psycopg2", "psycopg2-binary"),
    "skimage": ("scikit-image",),
    "sklearn": ("scikit-learn",),
    "tensorflow": ("tensorflow", "tensorflow-cpu"),
    "usearch": ("usearch",),
    "whisper": ("openai-whisper",),
    "yaml": ("pyyaml",),
}
"""Top-level modules, in lower case with dashes, whose distribution has another name."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_URL = re.compile(r"[#&]egg=([A-Za-z0-9._-]+)|/([A-Za-z0-9._-]+?)(?:\.git)?(?:@[^/]*)?(?:#.*)?$")


def distribution(requirement: str) -> str | None:
    """The normalized name in one line of requirements; None for an option, a comment or an empty line."""
    text = requirement.strip()
    if not text or text.startswith(("#", "-")):
        return None
    named = _NAME.match(text)
    if named and not re.match(r"[a-z+]+://", text):
        return _normalized(named[0])
    found = _URL.search(text)
    return _normalized(found[1] or found[2]) if found else None


def providers(module: str) -> tuple[str, ...]:
    """The distributions that usually provide a top-level module, the most common one first."""
    name = _normalized(module)
    return _DISTRIBUTIONS.get(name, (name,))


def declared_requirements(config: Mapping[str, Any], folder: Path) -> list[str]:
    """The lines of `requirements`, or of the file that `requirements_file` names, if it can be read."""
    file = config.get("requirements_file")
    if not file:
        return [line for line in config.get("requirements") or () if isinstance(line, str)]
    try:
        return (folder / str(file)).read_text(errors="replace").splitlines()
    except OSError:
        return []


def provider_of(module: str, requirements: Iterable[str]) -> str | None:
    """The distribution among `requirements` that provides `module`; None if none does by its name."""
    declared = {distribution(line) for line in requirements}
    return next((name for name in providers(module) if name in declared), None)


def missing_module_hint(module: str, requirements: Iterable[str], *, has_base_image: bool = False) -> str:
    """What to do about a module that is not installed."""
    if name := provider_of(module, requirements):
        return f"`requirements` names {name}: leave out --env current, or install it"
    if has_base_image:
        return (
            f"it may be part of base_image: add {providers(module)[0]} to `requirements`, "
            "or make an image with `gusset build`"
        )
    return f"`requirements` does not name it either: add {providers(module)[0]} there"


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower().strip("-")
