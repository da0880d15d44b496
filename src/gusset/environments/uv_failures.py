"""What a failure of uv means: which error, for which line of config.yaml, and what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gusset.environments.plan import FileLocation
from gusset.errors import ConfigInvalid, Denied, GussetError, HostError, ModelFailed, Unreachable


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cause:
    """A kind of failure: how uv words it, the error for it, its message and hint."""

    pattern: re.Pattern[str]
    error: type[GussetError]
    message: str
    hint: str
    in_output_of_builds: bool


def _cause(
    error: type[GussetError], message: str, hint: str, pattern: str, *, in_output_of_builds: bool = False
) -> _Cause:
    return _Cause(
        pattern=re.compile(pattern, re.IGNORECASE),
        error=error,
        message=message,
        hint=hint,
        in_output_of_builds=in_output_of_builds,
    )


_CAUSES = (  # the first that fits counts
    _cause(
        HostError,
        "the disk is full",
        "free some space, for example with `gusset env prune` or `uv cache prune`",
        r"No space left on device|os error (28|27|122)\b|Disk quota exceeded|File too large",
        in_output_of_builds=True,
    ),
    _cause(
        HostError,
        "git is not installed",
        "install git: a requirement comes from a repository",
        r"Git executable not found",
    ),
    _cause(
        Denied,
        "a package index or server refused the login",
        "give a login as a secret: build.secret_to_path_mapping with a path that ends in .netrc",
        r"lack of valid authentication|401 Unauthorized|403 Forbidden|Authentication failed|"
        r"could not read (Username|Password)",
    ),
    _cause(
        Unreachable,
        "a package index or server does not respond",
        "check the network, and the settings of the index (UV_DEFAULT_INDEX, pip.conf)",
        r"(?<!status )client error \(|dns error|error sending request|HTTP status server error|"
        r"Request failed after|network was disabled|Network connectivity is disabled|unable to access|"
        r"could not resolve host|Connection (refused|timed out|reset)|Operation timed out",
    ),
    _cause(
        ModelFailed,
        "a package is broken",
        "name another version; if the file was damaged on the way: `uv cache clean NAME`",
        r"invalid package format|Failed to extract|Bad CRC|Failed to read from zip|"
        r"structure of `[^`]*` .* was invalid",
    ),
    _cause(
        ConfigInvalid,
        "the requirements cannot be met",
        "change the requirement",
        r"No solution found|Hash mismatch|not found at|Git operation failed|HTTP status client error|"
        r"must have their versions pinned",
    ),
    _cause(
        ModelFailed,
        "a package does not build",
        "install what its build needs (a compiler, headers), or name a version that has a wheel",
        r"Failed to (download and )?build|build backend returned|Failed to prepare",
    ),
    _cause(
        ConfigInvalid,
        "a requirement cannot be used",
        "change the requirement",
        r"Failed to parse|is invalid|not supported",
    ),
)
_UNKNOWN = _cause(HostError, "uv failed", "run it again; its message is above", r"")
_OUTPUT_OF_BUILDS = re.compile(r"\n\s*\[(?:stderr|stdout)\]")


def failure(message: str, locations: Mapping[str, FileLocation], *, what: str) -> GussetError:
    """The error for uv's message.

    `what` was being made. `locations` are the lines that name packages: the one that
    the message is about is named.
    """
    whole = " ".join(message.split())  # uv breaks its lines
    own = " ".join(_OUTPUT_OF_BUILDS.split(message, maxsplit=1)[0].split())
    cause = next(
        (each for each in _CAUSES if each.pattern.search(whole if each.in_output_of_builds else own)),
        _UNKNOWN,
    )
    location = origin_of(message, locations)
    if cause.error is ConfigInvalid and location is not None:
        problem = location.problem(message, cause.hint, code="unsatisfiable")
        return ConfigInvalid(f"{what}: {cause.message}", problems=[problem])
    prefix = f"{location.problem('', code='').location()}: " if location else ""
    return cause.error(f"{prefix}{what}: {cause.message}\n{message}", hint=cause.hint)


def is_not_found(message: str) -> bool:
    """Whether uv says that it found a package in no index."""
    return "was not found in the package registry" in " ".join(message.split())


def is_refused_login(message: str) -> bool:
    """Whether an index refused the login, or demanded one."""
    return failure(message, {}, what="").__class__ is Denied


_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def origin_of(message: str, locations: Mapping[str, FileLocation]) -> FileLocation | None:
    """The line of the first package that the message names."""
    for word in _WORD.findall(message):
        name = re.sub(r"[-_.]+", "-", word.rstrip("._-")).lower()
        if name in locations:
            return locations[name]
    return None
