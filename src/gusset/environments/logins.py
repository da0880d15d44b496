"""Logins for package indexes from secrets, given to uv as files that are only in memory."""

from __future__ import annotations

import configparser
import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

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
def login_files(files: Sequence[LoginFile], values: Mapping[str, bytes]) -> Iterator[UvLogin]:
    """Files in memory for the secrets, which are gone afterwards. `values` are those of the secrets.

    Raises:
        ConfigInvalid: a value cannot be read, or two of them exclude each other.
    """
    found = [each for each in files if each.secret in values]
    netrc = b"\n".join(values[each.secret] for each in found if each.kind == ".netrc")
    configs = [each for each in found if each.kind != ".netrc"]
    if len(configs) > 1:
        raise _refusal(configs[1], "only one pip.conf or uv.toml can be used", "remove one of them")
    descriptors: list[int] = []
    environ: dict[str, str] = {}
    options: tuple[str, ...] = ()
    try:
        if netrc:
            descriptors.append(memory_file("netrc", netrc + b"\n"))
            environ["NETRC"] = path_of(descriptors[-1])
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
    return ConfigInvalid(message, problems=[file.origin.problem(message, hint, code="index_login")])
