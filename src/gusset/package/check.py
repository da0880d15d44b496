"""Errors and warnings of `gusset check` for a model folder whose config.yaml is valid."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from gusset.errors import Problem
from gusset.package import keys
from gusset.package.config import Package, unsupported_for_serving
from gusset.package.model_code import (
    ModelCode,
    keyword_uses,
    lacks_entry_method,
    read_code,
    secret_files_in_command,
    secrets_used,
)
from gusset.package.model_imports import imports_of, is_in, is_installed
from gusset.package.requirements import declared_requirements, missing_module_hint
from gusset.package.schema import names_accelerator
from gusset.package.yaml_tree import looks_like_key
from gusset.secrets.name import fold_name


def check_package(
    package: Package,
    *,
    strict: bool = False,
    available: Collection[str] | None = None,
    secrets_dir: Path | None = None,
    has_own_environment: bool = False,
) -> list[Problem]:
    """All errors and warnings, in the order of the checks. The code is parsed but never run.

    `available` are the names of the secrets that exist; None skips that check.
    `secrets_dir` is the folder to add missing ones to, if not the vault or manager.
    With `has_own_environment` it does not matter which modules this Python has.
    `strict` makes every warning an error, except those about keys without effect.
    """
    found = [*_credentials_as_errors(package.warnings), *unsupported_for_serving(package)]
    if available is not None:
        found += _missing_secrets(package, available, secrets_dir)
    found += _missing_folders(package)
    found += _start_command(package)
    found += _accelerator(package)
    found += code_problems(package)
    found += code_warnings(package)
    found += _import_problems(package, has_own_environment=has_own_environment)
    if strict:
        found = [replace(problem, warning=False) for problem in found]
    return [*found, *_build_keys(package), *_ignored_keys(package)]


def _credentials_as_errors(warnings: Iterable[Problem]) -> Iterator[Problem]:
    """Make credentials in the file errors: such a model can be served, but should not be passed on."""
    for problem in warnings:
        yield replace(problem, warning=False) if problem.code == "credential" else problem


def _missing_secrets(
    package: Package, available: Collection[str], secrets_dir: Path | None
) -> Iterator[Problem]:
    known = {fold_name(name): name for name in available}
    for name, declaration in (*package.secrets.items(), *package.callers.items()):
        stored = known.get(fold_name(name))
        if stored is None:
            yield Problem(
                f"the secret {name} does not exist" + (" (it is optional)" if declaration.optional else ""),
                f"store it in {secrets_dir / name}"
                if secrets_dir
                else f"add it with `gusset secret set {name}`",
                file=package.display_file,
                line=declaration.line,
                column=declaration.column,
                key="model_metadata.gusset.callers" if name in package.callers else f"secrets.{name}",
                code="secret_missing",
                warning=declaration.optional,
            )


def _missing_folders(package: Package) -> list[Problem]:
    problems = package.problem_collector()
    for position, name in enumerate(package.config.external_package_dirs):
        path = ("external_package_dirs", position)
        try:
            is_folder = (package.folder / name).is_dir()
        except OSError as error:
            reason = (error.strerror or "an error").lower()
            problems.add(path, f"the folder cannot be read: {reason}", "check the path", code="no_folder")
            continue
        if not is_folder:
            hint = "write a path from the model folder"
            problems.add(path, "there is no such folder", hint, code="no_folder")
    return problems.sorted()


def _start_command(package: Package) -> list[Problem]:
    """Report secrets that a custom image's command reads but that are not declared."""
    server = package.config.docker_server
    problems = package.problem_collector()
    for name in secret_files_in_command(server.start_command or "") if server else ():
        if name not in package.secrets:
            is_variable = name in package.config.environment_variables
            problems.add(
                ("docker_server", "start_command"),
                f"the command reads /secrets/{name}, which is not declared",
                f"move `{name}: null` from `environment_variables:` to `secrets:`"
                if is_variable
                else f"add `{name}: null` under `secrets:`",
                code="secret_not_declared",
            )
    return problems.sorted()


def _accelerator(package: Package) -> list[Problem]:
    """Warn that a custom image gets a GPU only by an option of `serve`."""
    problems = package.problem_collector()
    resources = package.config.resources
    key = "accelerator" if resources.use_gpu else "instance_type"
    if package.is_image and (resources.use_gpu or names_accelerator(resources.instance_type or "")):
        problems.add(
            ("resources", key),
            "gusset gives the container no accelerator by itself",
            "start it with `gusset serve --gpus N` (-1 for all)",
            code="no_accelerator",
            warning=True,
        )
    return problems.sorted()


def code_problems(package: Package) -> list[Problem]:
    """What makes the model's class unusable, as far as can be seen without running the code."""
    file = package.model_file
    if file is None or (package.has_engine and not file.is_file()):  # such folders have no model code
        return []
    file_name = _display_path(package, file)
    if not file.is_file():
        hint = f"write `class {package.model_class}` there, or set model_module_dir and model_class_filename"
        return [Problem(f"there is no {file_name}", hint, file=file_name, code="no_model_file")]
    code = read_code(file)
    if code.tree is None:
        message = f"{file_name}: {code.fault}"
        return [
            Problem(
                message, "correct it", file=file_name, line=code.line, column=code.column, code="model_code"
            )
        ]
    return _class_problems(package, code, file_name)


def _class_problems(package: Package, code: ModelCode, file_name: str) -> list[Problem]:
    cls = code.find_class(package.model_class)
    if cls is None:
        if code.may_have(package.model_class):
            return []
        hint = f"name the class {package.model_class}, or set model_class_name in {package.display_file}"
        return [
            Problem(
                f"{file_name} has no class {package.model_class}", hint, file=file_name, code="no_model_class"
            )
        ]
    if lacks_entry_method(cls, code):
        message = f"class {cls.name} has no predict"
        column = cls.col_offset + 1
        return [
            Problem(message, PREDICT_HINT, file=file_name, line=cls.lineno, column=column, code="no_predict")
        ]
    return []


PREDICT_HINT = 'add to the class:\n    def predict(self, inputs):\n        return {"output": inputs}'
"""The hint for a class without `predict`."""


def code_warnings(package: Package) -> Iterator[Problem]:
    """Undeclared secrets and arguments without effect in the model's code."""
    file = package.model_file
    code = read_code(file) if file is not None and file.is_file() else None
    if file is None or code is None or code.tree is None:
        return
    file_name = _display_path(package, file)
    for reference in secrets_used(code.tree):
        if reference.name not in package.secrets and looks_like_key(reference.name):
            yield Problem(
                f"the secret {reference.name} is used but not declared",
                f"add `{reference.name}: null` under `secrets:` in {package.display_file}",
                file=file_name,
                line=reference.line,
                column=reference.column,
                code="secret_not_declared",
                warning=True,
            )
    for reference in keyword_uses(code.tree, "use_auth_token", "pipeline", "transformers"):
        message = "pipeline() of transformers ignores use_auth_token= since version 4.32"
        yield Problem(
            message,
            "write token=",
            file=file_name,
            line=reference.line,
            column=reference.column,
            code="use_auth_token",
            warning=True,
        )


def _import_problems(package: Package, *, has_own_environment: bool) -> Iterator[Problem]:
    """Modules that the model's code imports and that `gusset serve` will not find."""
    file = package.model_file
    if file is None or not file.is_file():
        return
    requirements = declared_requirements(package.dump(), package.folder)
    has_base_image = package.config.base_image is not None
    module_dir = ".".join(package.model_module_dir.relative_to(package.folder).parts)
    reported = set()
    for each in imports_of(file, package.folder):
        name = each.top_level
        if each.is_path_changed:
            continue  # the module may be in a folder that the code adds
        if name in reported or is_in(name, (package.folder, *package.packages_dirs)) or is_installed(name):
            continue
        reported.add(name)
        is_in_module_dir = is_in(name, (package.model_module_dir,))
        if has_own_environment and not is_in_module_dir:
            continue  # a requirement may bring it
        yield Problem(
            f"there is no module {name}: it is part of {module_dir}"
            if is_in_module_dir
            else f"the module {name} is not installed",
            f"import it as {module_dir}.{each.module}"
            if is_in_module_dir
            else missing_module_hint(name, requirements, has_base_image=has_base_image),
            file=_display_path(package, each.file),
            line=each.line,
            column=each.column,
            code="no_module",
            warning=not is_in_module_dir,
        )


_BUILD_HINTS = {
    "base_image": (
        "gusset serve runs the model on this machine, without what is in this image",
        "name the packages in `requirements`, or make an image with `gusset build`",
    ),
    "build_commands": (
        "gusset serve runs the model on this machine, without these commands",
        "run them yourself if the model needs their results, or make an image with `gusset build`",
    ),
}


def _build_keys(package: Package) -> list[Problem]:
    """Warn of what a Python model would have only in an image. `strict` does not apply."""
    problems = package.problem_collector()
    for name in keys.keys_for_build(problems.tree.data or {}):
        problems.add((name,), *_BUILD_HINTS[name], code="without_effect", warning=True, at_key=True)
    return problems.sorted()


def _ignored_keys(package: Package) -> list[Problem]:
    """One warning that lists the keys without effect. For information only, so `strict` does not apply."""
    names = keys.ignored_keys(package.problem_collector().tree.data or {})
    if not names:
        return []
    message = f"keys without effect in gusset: {', '.join(names)}"
    return [
        Problem(
            message,
            "docs/config.md explains each",
            file=package.display_file,
            code="without_effect",
            warning=True,
        )
    ]


def _display_path(package: Package, file: Path) -> str:
    """The path of `file` for messages, relative to what the caller wrote for the folder."""
    return (
        str(Path(package.display_file).parent / file.relative_to(package.folder))
        if (file.is_relative_to(package.folder))
        else str(file)
    )
