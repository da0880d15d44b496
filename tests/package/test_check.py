"""`gusset check`: code, secrets and credentials of a folder, without running anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from gusset.errors import Conflict, Problem
from gusset.package.check import check_package
from gusset.package.config import load_package
from gusset.package.scaffold import create_package

MODEL = "class Model:\n    def predict(self, inputs):\n        return inputs\n"


def check(
    folder: Path, config: str = "", code: str | None = MODEL, file: str = "model/model.py", **options: object
) -> list[Problem]:
    (folder / "config.yaml").write_text(config)
    if code is not None:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(code)
    return check_package(load_package(folder), **options)  # type: ignore[arg-type]


def codes(problems: list[Problem]) -> list[str]:
    return [problem.code for problem in problems]


def test_a_new_folder_has_no_problem_but_its_missing_secret(tmp_path: Path) -> None:
    """What `init` writes is valid; the only error names the missing secret, its line and the command."""
    create_package(tmp_path / "new", 'new: "one"')
    package = load_package(tmp_path / "new")

    assert codes(check_package(package, strict=True, available=["api-key"])) == ["without_effect"]
    [missing] = [p for p in check_package(package, available=[]) if not p.warning]
    assert (missing.line, missing.hint) == (9, "add it with `gusset secret set api_key`")
    assert package.config.model_name == 'new: "one"'


def test_init_never_overwrites_a_file(tmp_path: Path) -> None:
    """A file that exists stops it before anything is written."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.py").write_text("mine")
    with pytest.raises(Conflict, match=r"model\.py"):
        create_package(tmp_path, "x")
    assert not (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize("file", ["model/model.py", "model/main.py", "main.py"])
def test_the_code_is_found_in_each_of_its_places(tmp_path: Path, file: str) -> None:
    """At the configured path, or in a main.py."""
    assert check(tmp_path, file=file) == []
    assert load_package(tmp_path).model_file == tmp_path / file


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (None, ["no_model_file"]),
        ("class Model\n", ["model_code"]),
        ("x = 1\n", ["no_model_class"]),
        ("class Model:\n    def load(self): ...\n", ["no_predict"]),
        ("from other import Model\n", []),
        ("from other import *\n", []),
        ("class Model(Base):\n    pass\n", []),
        ("class Model:\n    async def chat_completions(self): ...\n", []),
        ("class Model:\n    pass\nsetattr(Model, 'predict', print)\n", []),
        ("class Model:\n    pass\nModel.predict = print\n", []),
        ("class Model:\n    predict = print\n", []),
        ("class Model:\n    def __init__(self):\n        self.predict = print\n", []),
        ("try:\n    class Model:\n        predict = 1\nexcept ImportError:\n    pass\n", []),
    ],
)
def test_a_class_that_can_handle_no_request_is_an_error(
    tmp_path: Path, code: str | None, expected: list[str]
) -> None:
    """Only if nothing at run time could change that."""
    assert codes(check(tmp_path, code=code)) == expected


def test_undeclared_secrets_and_old_keywords_in_the_code_are_reported(tmp_path: Path) -> None:
    """With their lines, whatever the name of the mapping."""
    code = (
        MODEL
        + "    def __init__(self, **kwargs):\n"
        + "        self._secrets = kwargs['secrets']\n"
        + "        kwargs['secrets']['one']; self._secrets.get('two'); self._secrets['known']\n"
        + "        pipeline(use_auth_token=self._secrets['known'])\n"
    )
    problems = check(tmp_path, "secrets: {known: null}", code)

    assert [(p.code, p.line) for p in problems] == [
        ("secret_not_declared", 6),
        ("secret_not_declared", 6),
        ("use_auth_token", 7),
    ]
    assert all(
        not problem.warning for problem in check(tmp_path, "secrets: {known: null}", code, strict=True)
    )


def test_a_credential_anywhere_in_the_file_is_an_error(tmp_path: Path) -> None:
    """Also where the schema accepts any text. It is not repeated."""
    token = "sk-proj-" + "aB3x" * 12
    problems = check(
        tmp_path, f"environment_variables:\n  KEY: {token}\nmodel_metadata: {{a: [{{b: 'x {token}'}}]}}\n"
    )

    assert [(p.code, p.line, p.warning) for p in problems] == [
        ("credential", 2, False),
        ("credential", 3, False),
    ]
    assert token not in repr(problems)


def test_a_credential_in_a_comment_is_found(tmp_path: Path) -> None:
    """`gusset check` makes an error of it; for serving it is a warning."""
    token = "hf_" + "aB3x" * 9
    problems = check(tmp_path, f"# token: {token}\nsecrets:\n  a: null  # {token[:-1]}\n")

    assert [(p.code, p.line, p.column, p.warning) for p in problems] == [
        ("credential", 1, 10, False),
        ("credential", 3, 14, False),
    ]
    assert all(problem.warning for problem in load_package(tmp_path).warnings)
    assert token[:-1] not in repr(problems)


def test_keys_without_effect_are_listed_in_one_warning(tmp_path: Path) -> None:
    """For information only, so `strict` does not make it an error."""
    [problem] = check(
        tmp_path, "requirements: [x]\nresources: {cpu: '1'}\nruntime: {oidc: {}}\n", strict=True
    )
    assert problem.warning
    assert "requirements, resources, runtime.oidc" in problem.message


def test_a_missing_optional_secret_is_a_warning(tmp_path: Path) -> None:
    """The model can start without it."""
    config = "secrets: {a: null, b: null}\nmodel_metadata: {gusset: {optional_secrets: [b]}}\n"
    assert [(p.key, p.warning) for p in check(tmp_path, config, available=[])] == [
        ("secrets.a", False),
        ("secrets.b", True),
    ]


def test_a_missing_folder_of_external_packages_is_an_error(tmp_path: Path) -> None:
    """It would be an import error later."""
    (tmp_path / "shared").mkdir()
    [problem] = check(tmp_path, "external_package_dirs:\n- shared\n- nowhere\n")
    assert (problem.code, problem.line, problem.warning) == ("no_folder", 3, False)
