"""Logins for package indexes from secrets, given to uv as files that are only in memory."""

from __future__ import annotations

import configparser
import json
import netrc
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from gusset.environments.index_settings import pip_options
from gusset.environments.plan import LoginFile
from gusset.environments.uv import memory_file, path_of
from gusset.errors import ConfigInvalid


@dataclass(frozen=True, slots=True, kw_only=True)
class UvLogin:
    """How uv gets the logins: descriptors to inherit, and variables and options that name them."""

    descriptors: tuple[int, ...] = ()
    environ: Mapping[str, str]
    options: tuple[str, ...] = ()
    has_indexes: bool = False


@contextmanager
def login_files(
    files: Sequence[LoginFile],
    values: Mapping[str, bytes],
    *,
    requirements: Sequence[str] = (),
    git_settings: int = 0,
) -> Iterator[UvLogin]:
    """Files in memory for the secrets, which are gone afterwards. `values` are those of the secrets.

    git, which fetches `requirements` from repositories, gets the logins of .netrc as well.
    `git_settings` is how many settings it already gets from variables.

    Raises:
        ConfigInvalid: a value cannot be read, or two of them cannot be used together.
    """
    found = [each for each in files if each.secret in values]
    netrcs = [each for each in found if each.kind == ".netrc"]
    configs = [each for each in found if each.kind != ".netrc"]
    if len(configs) > 1:
        raise _refusal(configs[1], "only one pip.conf or uv.toml can be used", "remove one of them")
    descriptors: list[int] = []
    environ: dict[str, str] = {}
    options: tuple[str, ...] = ()
    try:
        if netrcs:
            content = b"".join(values[each.secret] + b"\n" for each in netrcs)
            descriptors.append(memory_file("netrc", content))
            environ["NETRC"] = path_of(descriptors[-1])
            descriptors.append(
                memory_file("git-credentials", _for_git(netrcs[0], descriptors[-1], requirements))
            )
            environ |= _git_settings(git_settings, path_of(descriptors[-1]))
        for each in configs:
            text, variables = _uv_config(each, values[each.secret])
            descriptors.append(memory_file("uv.toml", text))
            options = ("--config-file", path_of(descriptors[-1]))
            environ |= variables
        yield UvLogin(
            descriptors=tuple(descriptors), environ=environ, options=options, has_indexes=bool(configs)
        )
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


_REPOSITORY = re.compile(r"git\+(https?)://(?:[^/@]*@)?([^/\s]+)")


def _for_git(file: LoginFile, descriptor: int, requirements: Iterable[str]) -> bytes:
    """The logins of a .netrc as git's helper `store` reads them: for https, and for these repositories."""
    try:
        hosts = netrc.netrc(path_of(descriptor)).hosts
    except (netrc.NetrcParseError, UnicodeDecodeError):
        message = f"the secret {file.secret} is not a valid {file.kind}"
        raise _refusal(file, message, "store the file's exact content") from None
    places = [("https", host) for host in hosts if host != "default"]
    places += [found for text in requirements for found in _REPOSITORY.findall(text)]
    lines = []
    for scheme, place in places:
        login, _, password = hosts.get(
            urlsplit(f"//{place}").hostname or "", hosts.get("default", ("", "", ""))
        )
        if login or password:
            lines.append(f"{scheme}://{quote(login, safe='')}:{quote(password, safe='')}@{place}\n")
    return "".join(lines).encode()


def _git_settings(count: int, path: str) -> dict[str, str]:
    """Variables that add a helper for logins to git's settings."""
    return {
        "GIT_CONFIG_COUNT": str(count + 1),
        f"GIT_CONFIG_KEY_{count}": "credential.helper",
        f"GIT_CONFIG_VALUE_{count}": f"store --file={path}",
    }


def _uv_config(file: LoginFile, value: bytes) -> tuple[bytes, dict[str, str]]:
    """The content of a uv.toml, and variables that go with it."""
    try:
        text = value.decode()
        if file.kind == "uv.toml":
            tomllib.loads(text)
            return value, {}
        return pip_to_uv(pip_options(text))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, configparser.Error):
        message = f"the secret {file.secret} is not a valid {file.kind}"
        raise _refusal(file, message, "store the file's exact content") from None


def pip_to_uv(options: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """The content of a uv.toml that says what these options of pip say, and variables for the rest."""
    lines, indexes = [], []
    if url := options.get("index-url", "").strip():
        indexes += ["[[index]]", f"url = {_quoted(url)}", "default = true"]
    for url in options.get("extra-index-url", "").split():
        indexes += ["[[index]]", f"url = {_quoted(url)}"]
    if links := options.get("find-links", "").split():
        lines.append(f"find-links = {_quoted(links)}")
    if hosts := options.get("trusted-host", "").split():
        lines.append(f"allow-insecure-host = {_quoted(hosts)}")
    if options.get("no-index", "").strip().lower() in ("1", "true", "yes", "on"):
        lines.append("no-index = true")
    variables = {"SSL_CERT_FILE": options["cert"].strip()} if options.get("cert") else {}
    return "\n".join((*lines, *indexes, "")).encode(), variables


def _quoted(value: str | Sequence[str]) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _refusal(file: LoginFile, message: str, hint: str) -> ConfigInvalid:
    return ConfigInvalid(message, problems=[file.location.problem(message, hint, code="index_login")])
