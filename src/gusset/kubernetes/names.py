"""Names that Kubernetes accepts, and references of images."""

from __future__ import annotations

import re
import unicodedata

from gusset.errors import UsageError

MAX_NAME = 63  # characters: a name is also the value of a label

_NAMESPACE = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_SERVICE = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")
_UNUSABLE = re.compile(r"[^a-z0-9]+")

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REGISTRY = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?/"
_IMAGE = re.compile(
    rf"(?:{_REGISTRY})?{_PART}(?:/{_PART})*(?::[\w][\w.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?", re.ASCII
)
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}\Z")


def check_name(name: str) -> None:
    """Check the name of the objects, a service among them. Raises UsageError with a suggestion."""
    _check("name", name, _SERVICE, "begins with a letter, and ends with a letter or digit")


def check_namespace(name: str) -> None:
    """Check the name of a namespace. Raises UsageError with a suggestion."""
    _check("namespace", name, _NAMESPACE, "and begins and ends with a letter or digit")


def _check(kind: str, name: str, pattern: re.Pattern[str], ends: str) -> None:
    """`kind` is also the option. `ends` says which characters the pattern allows at the ends."""
    if len(name) > MAX_NAME or not pattern.fullmatch(name):
        raise UsageError(
            f"Kubernetes does not accept the {kind} {name!r}: it has 1 to {MAX_NAME} lowercase letters, "
            f"digits and hyphens, {ends}",
            hint=f"name it: --{kind} {suggested_name(name)}",
        )


def suggested_name(name: str) -> str:
    """The nearest name that `check_name` accepts."""
    plain = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
    found = _UNUSABLE.sub("-", plain).strip("-")
    if not found[:1].isalpha():
        found = f"model-{found}" if found else "model"
    return found[:MAX_NAME].rstrip("-")


def check_image(image: str) -> None:
    """Check the reference of an image. Raises UsageError."""
    if not _IMAGE.fullmatch(image):
        raise UsageError(
            f"{image!r} is not the name of an image",
            hint="as in registry.example/team/my-model:1.2 or registry.example/team/my-model@sha256:...",
        )


def has_digest(image: str) -> bool:
    """Whether a reference always means the same image."""
    return _DIGEST.search(image) is not None
