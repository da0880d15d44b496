"""Installs packages into one environment by `uv pip`, from chosen indexes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from packaging.utils import canonicalize_name

from gusset.environments.plan import InstallOptions
from gusset.environments.uv import Result, Uv, memory_file, path_of
from gusset.environments.uv_failures import failure, is_not_found, is_refused_login


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexes:
    """Where packages are found: by lines of a requirements file, options of uv, files and variables for it.

    Without any of these, where the settings of the machine say.
    """

    lines: tuple[str, ...] = field(default=(), repr=False)
    options: tuple[str, ...] = ()
    descriptors: tuple[int, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)


MACHINE = Indexes()


@dataclass(frozen=True, slots=True)
class PackageInstaller:
    """Installs packages for the interpreter `python`."""

    uv: Uv
    python: str

    def present(self) -> dict[str, str]:
        """The packages of the environment and their versions."""
        result = self.uv.query("pip", "list", "--quiet", "--format", "json", "--python", self.python)
        if result.status != 0:
            raise failure(result.message, {}, what="the environment")
        return {canonicalize_name(each["name"]): each["version"] for each in json.loads(result.output)}

    def install(
        self,
        requirements: Sequence[str],
        constraints: Sequence[str] = (),
        indexes: Indexes = MACHINE,
        *,
        projects: Sequence[str] = (),
    ) -> Result:
        """Install requirements, within constraints; whether that failed is in the result.

        `projects` are the requirements for folders with code: for those in a file, uv uses an older
        build until their metadata changes, so they are arguments as well.
        """
        with _memory_files((*indexes.lines, *requirements), constraints) as files:
            arguments = ["--requirements", path_of(files[0]), *indexes.options]
            if constraints:
                arguments += ["--constraints", path_of(files[1])]
            if self.uv.environ.get("UV_NO_INDEX") and "--no-index" not in arguments:
                arguments.append("--no-index")  # uv itself has no such variable
            command = ("pip", "install", "--python", self.python, *arguments, *projects)
            inherited = (*files, *indexes.descriptors)
            result = self.uv.run(*command, descriptors=inherited, environ=indexes.environ)
            if is_not_found(result.message):
                # Only with this strategy does uv report that an index has refused the login.
                variables = {**indexes.environ, "UV_INDEX_STRATEGY": "first-index"}
                again = self.uv.run(*command, "--dry-run", descriptors=inherited, environ=variables)
                return again if is_refused_login(again.message) else result
            return result


@contextmanager
def _memory_files(*contents: Sequence[str]) -> Iterator[list[int]]:
    """Files in memory with these lines: a line may contain a login that config.yaml has."""
    descriptors: list[int] = []
    try:
        for lines in contents:
            descriptors.append(memory_file("lines", "".join(f"{line}\n" for line in lines).encode()))
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def option_lines(options: InstallOptions) -> Iterator[str]:
    """The options that may contain logins, as lines of a requirements file."""
    if options.index_url:
        yield f"--index-url {options.index_url}"
    for url in options.extra_index_urls:
        yield f"--extra-index-url {url}"
    for place in options.find_links:
        yield f"--find-links {place}"


def option_arguments(options: InstallOptions) -> Iterator[str]:
    """The other options, as arguments of uv."""
    if options.no_index:
        yield "--no-index"
    if options.prereleases:
        yield from ("--prerelease", "allow")
    if options.require_hashes:
        yield "--require-hashes"
    for flag, values in (
        ("--allow-insecure-host", options.trusted_hosts),
        ("--no-binary", options.no_binary),
        ("--only-binary", options.only_binary),
    ):
        for value in values:
            yield from (flag, value)
