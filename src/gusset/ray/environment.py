"""The Python environment and the resources that Ray gives to each replica, from config.yaml."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gusset.environments.plan import InstallOptions, text_of
from gusset.environments.requested import Files, Request, request_of
from gusset.environments.requirement_lines import without_login
from gusset.errors import ConfigInvalid, Problem
from gusset.package.config import Package
from gusset.package.model_imports import is_installed
from gusset.package.quantity import parse_cpu, parse_memory
from gusset.runtime.environment import child_environment

_PREINSTALLED = "install its packages on the nodes, as in an image of the cluster, and write --env current"


def requirements_for(package: Package) -> list[str]:
    """The lines of requirements that Ray installs for each replica; none if the folder asks for nothing.

    Raises:
        ConfigInvalid: they need credentials, files of this machine, or another Python than Ray's.
    """
    request = request_of(package, Files(read=_read, export=_export, variables=child_environment()))
    problems = [*request.requirements.problems, *python_problems(package), *_problems(request)]
    if any(not problem.warning for problem in problems):
        raise ConfigInvalid(f"Ray cannot install what {package.folder} needs", problems=problems)
    lines = [each.text for each in request.requirements.requirements]
    lines += [each.text for each in request.imports if not is_installed(str(each.name).replace("-", "_"))]
    return [*_option_lines(request.requirements.options), *lines] if lines else []


def python_problems(package: Package) -> Iterator[Problem]:
    """An error if the folder asks for another Python than this one, which is also that of the cluster."""
    wanted = request_of(package, Files(read=_read, export=_export, variables=child_environment())).python
    if wanted is not None and wanted.version != sys.version_info[:2]:
        yield wanted.location.problem(
            f"the model asks for Python {text_of(wanted.version)}, and the cluster runs on "
            f"{text_of(sys.version_info[:2])}: Ray has one version for all of its processes",
            "run the cluster on that version, or leave python_version out",
            code="python_version",
        )


def _problems(request: Request) -> Iterator[Problem]:
    for login in request.login_files:
        yield login.location.problem(
            f"the installation logs in with the secret {login.secret}, and Ray would store that",
            _PREINSTALLED,
            code="install_credentials",
        )
    for each in request.requirements.requirements:
        if without_login(each.text) != each.text or "${" in each.text:
            yield each.location.problem(
                "this requirement has credentials, and Ray would store them",
                _PREINSTALLED,
                code="install_credentials",
            )
        if each.path is not None:
            yield each.location.problem(
                "this requirement is a file of this machine, which the nodes do not have",
                "put its code into `packages/`, or build a wheel that an index has",
                code="requirement",
            )
    options = request.requirements.options
    urls = (options.index_url or "", *options.extra_index_urls, *options.find_links)
    if any(without_login(url) != url or "${" in url for url in urls):
        yield Problem(
            "an index of the requirements has credentials, and Ray would store them",
            _PREINSTALLED,
            code="install_credentials",
        )


def _option_lines(options: InstallOptions) -> Iterator[str]:
    if options.index_url:
        yield f"--index-url {options.index_url}"
    yield from (f"--extra-index-url {url}" for url in options.extra_index_urls)
    yield from (f"--find-links {url}" for url in options.find_links)
    if options.prereleases:
        yield "--pre"


def _read(path: Path) -> str:
    return path.read_text("utf-8-sig", "replace")


def _export(folder: Path) -> str:
    raise ValueError("Ray needs it in pip's format: uv export --no-dev > requirements.txt")


def resources_of(package: Package) -> dict[str, Any]:
    """The options of Ray's actors for what config.yaml reserves: only what is written there."""
    written = package.problem_collector().tree.data or {}
    section = written.get("resources")
    names: Mapping[str, Any] = section if isinstance(section, Mapping) else {}
    resources = package.config.resources
    options: dict[str, Any] = {}
    if "cpu" in names:
        options["num_cpus"] = parse_cpu(resources.cpu)
    if "memory" in names:
        options["memory"] = parse_memory(resources.memory)
    accelerator = resources.accelerator
    if accelerator is not None and accelerator.accelerator is not None and accelerator.count:
        options["num_gpus"] = accelerator.count
    return options
