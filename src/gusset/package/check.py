"""`gusset check`: what is wrong, or suspicious, in a model folder whose config.yaml could be read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from gusset.errors import Problem
from gusset.package import keys
from gusset.package.config import Package, unsupported_for_serving
from gusset.package.model_code import (
    Code,
    keyword_uses,
    read_code,
    secrets_read,
    secrets_used,
    surely_without_entry,
)
from gusset.package.yaml_tree import is_showable
from gusset.secrets.name import fold_name


def check_package(
    package: Package, *, strict: bool = False, available: Collection[str] | None = None
) -> list[Problem]:
    """Everything found, errors and warnings, as the files run; the code is parsed, never run.

    `available` are the names of the secrets that exist; None leaves that question out.
    `strict` makes every warning an error, but for what is only said for information.
    """
    found = [*_sterner(package.warnings), *unsupported_for_serving(package)]
    if available is not None:
        found += _missing(package, available)
    found += _absent_folders(package)
    found += _start_command(package)
    found += code_problems(package)
    found += code_warnings(package)
    if strict:
        found = [replace(problem, warning=False) for problem in found]
    return found + _without_effect(package)


def _sterner(warnings: Iterable[Problem]) -> Iterator[Problem]:
    """A credential in the file does not keep a model from being served, but is no folder to hand on."""
    for problem in warnings:
        yield replace(problem, warning=False) if problem.code == "credential" else problem


def _missing(package: Package, available: Collection[str]) -> Iterator[Problem]:
    known = {fold_name(name): name for name in available}
    for name, slot in package.secrets.items():
        stored = known.get(fold_name(name))
        if stored is None:
            yield Problem(
                f"the secret {name} does not exist" + (" (it is optional)" if slot.optional else ""),
                f"add it with `gusset secret set {name}`",
                package.shown_file,
                slot.line,
                slot.column,
                f"secrets.{name}",
                "secret_missing",
                warning=slot.optional,
            )


def _absent_folders(package: Package) -> list[Problem]:
    report = package.reporter()
    for position, name in enumerate(package.config.external_package_dirs):
        if not (package.folder / name).is_dir():
            path = ("external_package_dirs", position)
            report.add(path, "no such folder", "name one, from the model folder", code="no_folder")
    return report.sorted()


def _start_command(package: Package) -> list[Problem]:
    """A custom image's command would get an empty text where it reads what is not declared."""
    server = package.config.docker_server
    report = package.reporter()
    for name in secrets_read(server.start_command or "") if server else ():
        if name not in package.secrets:
            report.add(
                ("docker_server", "start_command"),
                f"it reads /secrets/{name}, which is not declared",
                f"add `{name}: null` under `secrets:`",
                code="secret_not_declared",
            )
    return report.sorted()


def code_problems(package: Package) -> list[Problem]:
    """What keeps the model's class from being used at all, as far as can be seen without running it."""
    file = package.model_file
    if file is None:
        return []
    shown = _shown(package, file)
    if not file.is_file():
        hint = f"put `class {package.model_class}` there, or set: model_module_dir, model_class_filename"
        return [Problem(f"there is no {shown}", hint, shown, code="no_model_file")]
    code = read_code(file)
    if code.tree is None:
        return [
            Problem(f"{shown}: {code.fault}", "correct it", shown, code.line, code.column, code="model_code")
        ]
    return _class_problems(package, code, shown)


def _class_problems(package: Package, code: Code, shown: str) -> list[Problem]:
    cls = code.find_class(package.model_class)
    if cls is None:
        if code.may_have(package.model_class):
            return []
        hint = f"name it {package.model_class}, or name it under model_class_name in {package.shown_file}"
        return [Problem(f"{shown} has no class {package.model_class}", hint, shown, code="no_model_class")]
    if surely_without_entry(cls, code):
        message = f"class {cls.name} has no predict"
        return [Problem(message, PREDICT_HINT, shown, cls.lineno, cls.col_offset + 1, code="no_predict")]
    return []


PREDICT_HINT = 'add to the class:\n    def predict(self, inputs):\n        return {"answer": inputs}'
"""What to write; also said when the lack is only seen at run time."""


def code_warnings(package: Package) -> Iterator[Problem]:
    """What in the model's code will not do what it seems to: undeclared secrets, arguments without effect."""
    file = package.model_file
    code = read_code(file) if file is not None and file.is_file() else None
    if file is None or code is None or code.tree is None:
        return
    shown = _shown(package, file)
    for use in secrets_used(code.tree):
        if use.name not in package.secrets and is_showable(use.name):
            yield Problem(
                f"the secret {use.name} is used but not declared",
                f"add `{use.name}: null` under `secrets:` in {package.shown_file}",
                shown,
                use.line,
                use.column,
                code="secret_not_declared",
                warning=True,
            )
    for use in keyword_uses(code.tree, "use_auth_token"):
        message = "use_auth_token= is ignored by transformers 4.32 and newer"
        yield Problem(
            message, "write token=", shown, use.line, use.column, code="use_auth_token", warning=True
        )


def _without_effect(package: Package) -> list[Problem]:
    """The keys that gusset does not act on, named once, for information; no error even when strict."""
    names = keys.without_effect(package.reporter().tree.data or {})
    if not names:
        return []
    message = f"without effect here: {', '.join(names)}"
    return [
        Problem(
            message,
            "docs/config.md says why for each",
            package.shown_file,
            code="without_effect",
            warning=True,
        )
    ]


def _shown(package: Package, file: Path) -> str:
    """`file` as it is named from where `package` was named."""
    return (
        str(Path(package.shown_file).parent / file.relative_to(package.folder))
        if (file.is_relative_to(package.folder))
        else str(file)
    )
