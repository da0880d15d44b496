"""What a model folder asks of its environment: Python, requirements, packages of the system, logins."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.utils import canonicalize_name

from gusset.environments.plan import LOGIN_FILES, FileLocation, LoginFile, Version
from gusset.environments.requirement_lines import (
    Line,
    ReadFile,
    Requirement,
    Requirements,
    logical_lines,
    parse_requirement,
    read_lines,
)
from gusset.environments.resources import truss_modules
from gusset.errors import Problem
from gusset.package.model_imports import imports_of, is_in

if TYPE_CHECKING:
    from gusset.package.config import Package


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedPython:
    """`python_version` as it is written in config.yaml."""

    version: Version
    location: FileLocation


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a folder asks for.

    `imports` are packages of Truss's list that its code imports and that `requirements`
    does not name. `inputs` are texts that the requirements were made from.
    """

    requirements: Requirements
    python: WantedPython | None = None
    imports: tuple[Requirement, ...] = ()
    inputs: tuple[str, ...] = ()
    system_packages: tuple[tuple[str, FileLocation], ...] = ()
    login_files: tuple[LoginFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """How files are read: `read` a text file, `export` the lines of requirements of a uv.lock.

    Both raise OSError; `export` raises ValueError for a lock that uv cannot read.
    """

    read: ReadFile
    export: Callable[[Path], str]
    variables: Mapping[str, str]


def request_of(package: Package, files: Files) -> Request:
    """What the folder asks for. Its `requirements.problems` are errors and warnings of the lines."""
    config = _ConfigReader(package)
    reader = _RequirementsReader(config, files)
    requirements, inputs = reader.read()
    problems = (*requirements.problems, *config.other_build_secrets())
    return Request(
        requirements=replace(requirements, problems=problems),
        inputs=inputs,
        python=config.python(),
        imports=tuple(_imports(package, requirements.requirements, config.shown)),
        system_packages=tuple(
            (name.strip(), config.location(("system_packages", index)))
            for index, name in enumerate(package.config.system_packages)
        ),
        login_files=tuple(config.login_files()),
    )


class _ConfigReader:
    """Reads the keys of config.yaml with their locations."""

    def __init__(self, package: Package) -> None:
        self.package = package
        collector = package.problem_collector()
        self._tree = collector.tree
        self._collector = collector

    def location(self, path: tuple[Any, ...]) -> FileLocation:
        self._collector.found.clear()
        self._collector.add(path, "")
        where = self._collector.found.pop()
        return FileLocation(
            file=self.package.display_file, line=where.line, column=where.column, key=where.key
        )

    def shown(self, file: Path) -> str:
        """The path of a file for messages: as the caller wrote that of the folder."""
        folder = Path(os.path.normpath(self.package.folder))
        file = Path(os.path.normpath(file))
        inside = file.is_relative_to(folder)
        return str(Path(self.package.display_file).parent / file.relative_to(folder)) if inside else str(file)

    def python(self) -> WantedPython | None:
        """The Python that is written down; the schema's default asks for nothing."""
        if "python_version" not in (self._tree.data or {}):
            return None
        text = self.package.config.python_version
        return WantedPython(
            version=(3, int(text.removeprefix("py3"))), location=self.location(("python_version",))
        )

    def other_build_secrets(self) -> Iterable[Problem]:
        """Warnings for secrets of builds that are not logins for package indexes."""
        logins = {each.secret for each in self.login_files()}
        for name in self.package.config.build.secret_to_path_mapping:
            if name not in logins:
                yield self.location(("build", "secret_to_path_mapping", name)).problem(
                    "only images get this secret: an installation uses .netrc, pip.conf and uv.toml",
                    "declare it under `secrets:` if the model's code reads it",
                    code="without_effect",
                    warning=True,
                )

    def login_files(self) -> Iterable[LoginFile]:
        for name, path in self.package.config.build.secret_to_path_mapping.items():
            location = self.location(("build", "secret_to_path_mapping", name))
            for kind in LOGIN_FILES:
                if path.endswith(kind):
                    yield LoginFile(secret=name, kind=kind, location=location)


_OTHER_TOOLS = ("poetry.lock", "environment.yml", "environment.yaml", "Pipfile", "Pipfile.lock", "pdm.lock")


class _RequirementsReader:
    """Reads `requirements`, or the file that `requirements_file` names, by its kind."""

    def __init__(self, config: _ConfigReader, files: Files) -> None:
        self._config = config
        self._files = files
        self._folder = config.package.folder

    def read(self) -> tuple[Requirements, tuple[str, ...]]:
        name = self._config.package.config.requirements_file
        if not name:
            lines = [
                Line(text=text, location=self._config.location(("requirements", index)))
                for index, text in enumerate(self._config.package.config.requirements)
            ]
            return self._lines(lines, self._folder / "config.yaml"), ()
        location = self._config.location(("requirements_file",))
        file = self._folder / name
        if file.name in _OTHER_TOOLS:
            return self._failed(
                location,
                f"{file.name} belongs to another tool",
                "name a file in pip's format, a pyproject.toml or a uv.lock",
            )
        try:
            text = self._files.read(file)
            if file.name == "uv.lock":
                return self._lock(file, text)
            if file.name == "pyproject.toml":
                return self._pyproject(file, text, location), (text,)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            return self._failed(location, f"{name} cannot be read: {reason}", "correct the path or the file")
        return self._lines(logical_lines(text, self._config.shown(file)), file), ()

    def _lines(self, lines: Iterable[Line], file: Path, folder: Path | None = None) -> Requirements:
        return read_lines(
            lines,
            folder or self._folder,
            self._files.read,
            self._files.variables,
            included_from=file,
            shown=self._config.shown,
        )

    def _failed(
        self, location: FileLocation, message: str, hint: str
    ) -> tuple[Requirements, tuple[str, ...]]:
        return Requirements(problems=(location.problem(message, hint, code="requirements_file"),)), ()

    def _lock(self, file: Path, text: str) -> tuple[Requirements, tuple[str, ...]]:
        project = self._files.read(file.with_name("pyproject.toml"))  # uv needs it as well
        exported = self._files.export(file.parent)
        shown = self._config.shown(file)
        lines = (replace_origin(line, shown) for line in logical_lines(exported, shown))
        return self._lines(lines, file, file.parent), (project, text)

    def _pyproject(self, file: Path, text: str, location: FileLocation) -> Requirements:
        import tomllib  # few folders have such a file

        project = tomllib.loads(text).get("project", {})
        dependencies = project.get("dependencies", []) if isinstance(project, dict) else []
        kept, problems = [], []
        for entry in dependencies if isinstance(dependencies, list) else []:
            line = Line(text=str(entry), location=replace(location, key="requirements_file"))
            try:
                parse_requirement(line.text, line.location, file.parent)
            except ValueError:
                problems.append(
                    location.problem(
                        f"an entry of project.dependencies in {file.name} is left out: not a requirement",
                        "write it as in `name==1.2`",
                        code="requirement",
                        warning=True,
                    )
                )
            else:
                kept.append(line)
        found = self._lines(kept, file, file.parent)
        return replace(found, problems=(*problems, *found.problems))


def replace_origin(line: Line, file: str) -> Line:
    """The line, with a whole file as its location."""
    return replace(line, location=FileLocation(file=file))


def _imports(
    package: Package, named: Iterable[Requirement], shown: Callable[[Path], str]
) -> Iterable[Requirement]:
    """The packages of Truss's list that the model's code imports, but no requirement names."""
    file = package.model_file
    if file is None or not file.is_file():
        return
    known = {each.name for each in named}
    modules = truss_modules()
    for each in imports_of(file, package.folder):
        text = modules.get(each.top_level)
        if text is None or is_in(each.top_level, (package.folder, *package.packages_dirs)):
            continue
        del modules[each.top_level]
        location = FileLocation(file=shown(each.file), line=each.line, column=each.column)
        requirement = parse_requirement(text, location, package.folder)
        if canonicalize_name(str(requirement.name)) not in known:
            yield requirement


def errors(problems: Iterable[Problem]) -> list[Problem]:
    """The problems that are no warnings."""
    return [problem for problem in problems if not problem.warning]
