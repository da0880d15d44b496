"""`gusset check`: code, secrets and credentials of a folder, without running anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from gusset.errors import ConfigInvalid, Conflict, Problem
from gusset.package.check import check_package
from gusset.package.config import load_package
from gusset.package.requirements import declared_requirements, provider_of
from gusset.package.scaffold import create_package

SERVER = "server_port: 1, predict_endpoint: /, readiness_endpoint: /, liveness_endpoint: /"
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

    assert codes(check_package(package, strict=True, available=["api-key"])) == []
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
        ("from json import Model\n", []),
        ("from json import *\n", []),
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
        + "        from transformers import pipeline\n"
        + "        self._secrets = kwargs['secrets']\n"
        + "        kwargs['secrets']['one']; self._secrets.get('two'); self._secrets['known']\n"
        + "        pipeline(use_auth_token=self._secrets['known'])\n"
    )
    problems = [p for p in check(tmp_path, "secrets: {known: null}", code) if p.code != "no_module"]

    assert [(p.code, p.line) for p in problems] == [
        ("secret_not_declared", 7),
        ("secret_not_declared", 7),
        ("use_auth_token", 8),
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
    config = "requirements: [x]\nlive_reload: true\nruntime: {oidc: {enabled: true}}\n"
    [problem] = check(tmp_path, config, strict=True)
    assert problem.warning
    assert "gusset: live_reload, runtime.oidc" in problem.message


@pytest.mark.parametrize(
    "config",
    [
        "description: for readers\nspec_version: '2.0'\nmodel_framework: custom\n",
        "resources: {cpu: '1', memory: 2Gi, accelerator: L4}\n",
        "build_commands: []\nlive_reload: false\nruntime: {oidc: {}}\n",
    ],
)
def test_a_key_whose_effect_nobody_misses_is_not_reported(tmp_path: Path, config: str) -> None:
    """Texts for readers, what chooses a machine of the platform, and empty values."""
    assert check(tmp_path, config) == []


def test_what_a_model_has_only_in_an_image_is_a_warning_that_names_the_command(tmp_path: Path) -> None:
    """With its line; `strict` does not make it an error, and a custom image has all of it."""
    config = "base_image: {image: with-torch:1}\nbuild_commands: [make weights]\n"
    problems = check(tmp_path, config, strict=True)

    assert [(p.key, p.line, p.warning) for p in problems] == [
        ("base_image", 1, True),
        ("build_commands", 2, True),
    ]
    assert all("gusset build" in str(problem.hint) for problem in problems)
    assert check(tmp_path, f"{config}docker_server: {{start_command: x, {SERVER}}}\n", code=None) == []


def test_the_hint_for_a_missing_module_names_the_base_image_that_may_have_it(tmp_path: Path) -> None:
    """Many folders rely on the packages of their image."""
    problems = check(tmp_path, "base_image: {image: with-it:1}\n", "import nowhere_to_be_found\n" + MODEL)
    [missing] = [problem for problem in problems if problem.code == "no_module"]
    assert "base_image" in str(missing.hint) and "nowhere-to-be-found" in str(missing.hint)


@pytest.mark.parametrize(
    "change",
    ["sys.path.insert(0, os.path.dirname(__file__))", "sys.path += ['/opt/x']", "site.addsitedir('x')"],
)
def test_code_that_changes_where_modules_are_found_gets_no_report_of_missing_ones(
    tmp_path: Path, change: str
) -> None:
    """The module may be in the folder that it adds, as `beside` is here."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "beside.py").touch()
    imports = "import beside\nfrom elsewhere import thing\n"

    assert "no_module" in codes(check(tmp_path, code=f"{imports}{MODEL}"))
    assert check(tmp_path, code=f"import os, site, sys\n{change}\n{imports}{MODEL}") == []


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


@pytest.mark.parametrize(
    "line",
    [
        "from pyannote.audio import Pipeline; Pipeline.from_pretrained('x', use_auth_token='t')",
        "import whisperx; whisperx.DiarizationPipeline(use_auth_token='t')",
        "from transformers import AutoModel; AutoModel.from_pretrained('x', use_auth_token='t')",
        "from mine import pipeline; pipeline(use_auth_token='t')",
    ],
)
def test_use_auth_token_is_reported_only_where_it_is_ignored(tmp_path: Path, line: str) -> None:
    """Other libraries, and other functions of transformers, still honour it."""
    assert "use_auth_token" not in codes(check(tmp_path, code=f"{MODEL}\n{line}\n"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import helper", "import it as model.helper"),
        ("from helper import THING", "import it as model.helper"),
        ("    import helper", "import it as model.helper"),
        ("import deep.part", "import it as model.deep.part"),
    ],
)
def test_an_import_of_a_module_beside_the_models_file_is_an_error(
    tmp_path: Path, line: str, expected: str
) -> None:
    """Python does not find it by its bare name; the hint gives the name that works."""
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "helper.py").write_text("THING = 1\n")
    (tmp_path / "model" / "deep" / "part.py").touch()
    code = MODEL + ("    def load(self):\n    " if line.startswith(" ") else "") + line + "\n"
    [problem] = check(tmp_path, code=code)
    assert (problem.code, problem.hint, problem.warning) == ("no_module", expected, False)


@pytest.mark.parametrize(
    "line",
    [
        "import json, os.path, pydantic",
        "from model import helper",
        "from model.helper import THING",
        "from . import helper",
        "from .helper import THING",
        "import shared_code, bundled",
        "try:\n    import no_such_module\nexcept ImportError:\n    pass",
        "if False:\n    import no_such_module",
    ],
)
def test_modules_that_are_found_or_optional_are_not_reported(tmp_path: Path, line: str) -> None:
    """In the folder, in its packages, installed, or imported with a fallback."""
    for file in ("model/helper.py", "packages/bundled.py", "lib/shared_code/__init__.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("THING = 1\n")
    assert check(tmp_path, "external_package_dirs: [lib]\n", f"{line}\n{MODEL}") == []


def test_a_module_that_is_not_installed_is_a_warning_that_names_its_requirement(tmp_path: Path) -> None:
    """Also where a module of the folder imports it, and where the distribution has another name."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "helper.py").write_text("import PIL_not_there, cv2_missing\n")
    code = "from .helper import THING\nimport no_such_one, no_such_two, sklearnx\n" + MODEL
    config = "requirements: ['No.Such_One[extra]>=1; python_version > \"3\"', 'git+https://x.test/y/no-such-two.git@v1']\n"
    problems = [p for p in check(tmp_path, config, code) if p.code == "no_module"]
    assert [(Path(p.file or "").name, p.line, p.warning) for p in problems] == [
        ("model.py", 2, True),
        ("model.py", 2, True),
        ("model.py", 2, True),
        ("helper.py", 1, True),
        ("helper.py", 1, True),
    ]
    assert [p.hint for p in problems][:3] == [
        "`requirements` names no-such-one: leave out --env current, or install it",
        "`requirements` names no-such-two: leave out --env current, or install it",
        "`requirements` does not name it either: add sklearnx there",
    ]


def test_requirements_may_stand_in_a_file(tmp_path: Path) -> None:
    """The file that `requirements_file` names is read, comments and options left out."""
    (tmp_path / "needs.txt").write_text("# comment\n--extra-index-url https://x.test\nPillow>=10\n")
    requirements = declared_requirements({"requirements_file": "needs.txt"}, tmp_path)
    assert provider_of("PIL", requirements) == "pillow"
    assert provider_of("cv2", requirements) is None


@pytest.mark.parametrize("key", ["trt_llm", "bis_llm"])
def test_a_folder_for_an_engine_gets_one_error(tmp_path: Path, key: str) -> None:
    """It is refused, and not also said to lack a model.py, which it does not need on the platform."""
    section = {
        "trt_llm": "{inference_stack: v2, runtime: {}, build: {checkpoint_repository: {source: HF, repo: a/b}}}"
    }
    config = f"resources: {{accelerator: H100}}\n{key}: {section.get(key, '{}')}\n"
    problems = check(tmp_path, config, code=None)
    assert [p.code for p in problems if not p.warning] == ["unsupported"]


def test_an_error_in_a_refused_key_does_not_hide_that_it_is_refused(tmp_path: Path) -> None:
    """Both are reported in one run."""
    (tmp_path / "config.yaml").write_text(
        "training_checkpoints: {loops_checkpoint_ids: [a], download_folder: 1}\nbis_llm: {version: 1}\n"
    )
    with pytest.raises(ConfigInvalid) as error:
        load_package(tmp_path)
    refused = {p.key for p in error.value.problems if p.code == "unsupported"}
    assert refused == {"training_checkpoints", "bis_llm"}


def test_a_custom_image_has_no_external_data(tmp_path: Path) -> None:
    """It has no data folder; the hint names the key that works."""
    server = (
        "{start_command: x, server_port: 1, predict_endpoint: /, readiness_endpoint: /, liveness_endpoint: /}"
    )
    config = f"external_data: [{{url: u, local_data_path: x}}]\nbase_image: {{image: x}}\ndocker_server: {server}\n"
    [problem] = [p for p in check(tmp_path, config, code=None) if p.code == "unsupported"]
    assert (problem.key, problem.line) == ("external_data", 1)


def test_an_accelerator_of_a_custom_image_is_a_warning_that_names_the_option(tmp_path: Path) -> None:
    """The container gets none without `--gpus`; a Python model uses the machine's own."""
    server = (
        "{start_command: x, server_port: 1, predict_endpoint: /, readiness_endpoint: /, liveness_endpoint: /}"
    )
    config = f"resources: {{accelerator: L4}}\nbase_image: {{image: x}}\ndocker_server: {server}\n"
    [problem] = [p for p in check(tmp_path, config, code=None) if p.code == "no_accelerator"]
    assert problem.warning and "--gpus" in (problem.hint or "")
    assert "no_accelerator" not in codes(check(tmp_path, "resources: {accelerator: L4}\n"))


@pytest.mark.parametrize(
    ("machine", "expected"), [("RTX-PRO-6000", True), ("L4:4x16", True), ("b200:8", True), ("4x16", False)]
)
def test_a_type_of_machine_with_an_accelerator_is_a_warning_that_names_the_option(
    tmp_path: Path, machine: str, expected: bool
) -> None:
    """As for `resources.accelerator`: the container would start without the GPU that it needs."""
    config = f"base_image: {{image: x}}\nresources: {{instance_type: '{machine}'}}\ndocker_server: {{start_command: x, {SERVER}}}\n"
    found = [problem for problem in check(tmp_path, config, code=None) if problem.code == "no_accelerator"]
    assert [problem.key for problem in found] == ["resources.instance_type"] * expected


def test_the_hint_for_an_undeclared_secret_names_the_wrong_section(tmp_path: Path) -> None:
    """Published folders have such names below `environment_variables`, where they are only the text None."""
    config = "base_image: {image: x}\nenvironment_variables: {token: null}\n"
    command = 'sh -c "A=$(cat /secrets/token) B=$(cat /secrets/other) run"'
    config += f"docker_server: {{start_command: '{command}', {SERVER}}}\n"
    errors = [problem for problem in check(tmp_path, config, code=None) if not problem.warning]

    assert [problem.hint for problem in errors] == [
        "move `token: null` from `environment_variables:` to `secrets:`",
        "add `other: null` under `secrets:`",
    ]


def test_an_empty_text_after_the_name_of_a_secret_is_like_null(tmp_path: Path) -> None:
    """Any other text is a warning, since it is never the value."""
    assert check(tmp_path, "secrets: {a: '', b: null}\n") == []
    assert codes(check(tmp_path, "secrets: {a: ENTER TOKEN HERE}\n")) == ["secret_text"]


def test_a_null_environment_variable_is_a_warning(tmp_path: Path) -> None:
    """It becomes the text `None`, which hardly anybody wants."""
    [problem] = check(tmp_path, "environment_variables: {EMPTY: null, SET: ''}\n")
    assert (problem.code, problem.key, problem.warning) == (
        "environment_null",
        "environment_variables.EMPTY",
        True,
    )


def test_the_platforms_training_section_is_accepted(tmp_path: Path) -> None:
    """It is named once among the keys without effect, and passed to the model."""
    [problem] = check(tmp_path, "training: {image: {base_image: x}}\n")
    assert problem.code == "without_effect" and "training" in problem.message
    assert load_package(tmp_path).dump()["training"] == {"image": {"base_image": "x"}}


@pytest.mark.parametrize("name", ["a/b", "..", '"a\\tb"', "x" * 254])
def test_a_name_that_a_manager_refuses_is_reported(tmp_path: Path, name: str) -> None:
    """With its line, and as a warning: without a manager the name works."""
    [problem] = check(tmp_path, f"# a model\nmodel_name: {name}\n")
    assert (problem.code, problem.key, problem.warning) == ("deployment_name", "model_name", True)
    assert problem.line == 2
