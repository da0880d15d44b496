"""The machine's settings for package indexes, in uv's words: uv reads none of pip's.

A machine whose pip is set up for a mirror, a proxy or a certificate then works with
uv, too. Settings for uv itself come first.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PIP_VARIABLE = "PIP_"
_SECTIONS = ("global", "install")
_TRUE = ("1", "true", "yes", "on", "y", "t")


@dataclass(frozen=True, slots=True)
class _Setting:
    """The variable of uv for an option of pip. `separator` joins the entries of a list."""

    variable: str
    separator: str | None = None
    switch: str | None = None


_SETTINGS = {
    "index-url": _Setting("UV_DEFAULT_INDEX"),
    "extra-index-url": _Setting("UV_INDEX", " "),
    "find-links": _Setting("UV_FIND_LINKS", ","),
    "constraint": _Setting("UV_CONSTRAINT", " "),
    "trusted-host": _Setting("UV_INSECURE_HOST", " "),
    "cert": _Setting("SSL_CERT_FILE"),
    "client-cert": _Setting("SSL_CLIENT_CERT"),
    "proxy": _Setting("ALL_PROXY"),
    "timeout": _Setting("UV_HTTP_TIMEOUT"),
    "default-timeout": _Setting("UV_HTTP_TIMEOUT"),
    "retries": _Setting("UV_HTTP_RETRIES"),
    "no-index": _Setting("UV_NO_INDEX", switch="1"),  # not uv's: the installer passes it on
    "pre": _Setting("UV_PRERELEASE", switch="allow"),
}

Files = Mapping[Path, str]


def pip_config_files(environ: Mapping[str, str], prefix: Path) -> list[Path]:
    """The files that pip reads on Linux, the one with precedence last. `prefix` is that of the Python."""
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return []
    home = _expanded(environ.get("HOME") or "~")
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    shared = (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)
    files = [Path(folder, "pip", "pip.conf") for folder in reversed(shared)]
    files += [Path("/etc/pip.conf"), home / ".pip" / "pip.conf", config / "pip" / "pip.conf"]
    return [*files, prefix / "pip.conf", *([_expanded(named)] if named else [])]


def _expanded(path: str) -> Path:
    """The path with the home folder for `~`; as it is for an account that does not exist, as in pip."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def uv_settings(
    environ: Mapping[str, str], files: Iterable[Path], read: Callable[[Path], str]
) -> dict[str, str]:
    """The variables for uv that say what pip's variables and files say, and are not set already.

    Files that do not exist or cannot be read are left out, as pip does.
    """
    options: dict[str, str] = {}
    for file in files:
        try:
            options |= pip_options(read(file))
        except (OSError, ValueError, configparser.Error):
            continue
    for name, value in environ.items():
        if name.startswith(PIP_VARIABLE) and value:
            options[name.removeprefix(PIP_VARIABLE).lower().replace("_", "-")] = value
    return {name: value for name, value in translated(options) if not _is_set(name, environ)}


def pip_options(text: str) -> dict[str, str]:
    """The options in a pip.conf that concern an installation. Raises configparser.Error."""
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    found: dict[str, str] = {}
    for section in _SECTIONS:
        if parser.has_section(section):
            found |= {name.replace("_", "-"): value for name, value in parser.items(section) if value}
    return found


def translated(options: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Variables of uv for options of pip."""
    for name, value in options.items():
        setting = _SETTINGS.get(name)
        if setting is None:
            continue
        if setting.switch is not None:
            if value.strip().lower() in _TRUE:
                yield setting.variable, setting.switch
        elif setting.separator is not None:
            yield setting.variable, setting.separator.join(value.split())
        else:
            yield setting.variable, value.strip()


_SAME = {
    "UV_DEFAULT_INDEX": ("UV_INDEX_URL",),
    "UV_INDEX": ("UV_EXTRA_INDEX_URL",),
    "ALL_PROXY": ("HTTPS_PROXY", "https_proxy", "all_proxy"),
}


def _is_set(name: str, environ: Mapping[str, str]) -> bool:
    return any(environ.get(each) for each in (name, *_SAME.get(name, ())))


_IDENTIFYING = re.compile(
    r"UV_(DEFAULT_INDEX|INDEX|INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|PRERELEASE|"
    r"RESOLUTION|EXCLUDE_NEWER|INDEX_STRATEGY|NO_BINARY|NO_BUILD|TORCH_BACKEND)"
)


def identifying(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings of uv that can change which packages are installed."""
    return {name: value for name, value in environ.items() if _IDENTIFYING.fullmatch(name)}


def constraint_files(environ: Mapping[str, str]) -> Sequence[Path]:
    """The files that limit the versions of all packages on this machine."""
    named = f"{environ.get('UV_CONSTRAINT', '')} {environ.get('UV_OVERRIDE', '')}"
    return [Path(name) for name in named.split()]
