"""Problems of config.yaml: reported all at once, with locations, and without the text of a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gusset.errors import ConfigInvalid, Problem
from gusset.package.config import json_schema, load_package, unsupported_for_serving
from gusset.package.yaml_tree import MAX_NODES
from tests.package.corpus import ACCEPTED, REFUSED

SENTINEL = "Zq7sentinelXv"


def problems_of(folder: Path, text: str | bytes) -> list[Problem]:
    """All problems of the text, whether or not it loads."""
    (folder / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        package = load_package(folder)
    except ConfigInvalid as error:
        return list(error.problems)
    return [*package.warnings, *unsupported_for_serving(package)]


def test_all_problems_are_found_at_once_with_their_locations(tmp_path: Path) -> None:
    """One run reports every problem in the order of the file, including rules between sections."""
    text = """\
model_name: 123
requirements: [a]
requirements_file: r.txt
resources:
  cpu: 4
  memroy: 2Gi
weights:
  - mount_location: m
  - {source: s3://a@b, mount_location: /m}
model_cache: [{repo_id: a}]
runtime: {predict_concurrency: 1, predict_concurrency: 2}
"""
    found = [(p.line, p.column, p.key) for p in problems_of(tmp_path, text)]

    assert found == [
        (1, 13, "model_name"),
        (3, 1, "requirements_file"),
        (5, 8, "resources.cpu"),
        (6, 3, "resources.memroy"),
        (8, 5, "weights[0].source"),
        (8, 21, "weights[0].mount_location"),
        (9, 14, "weights[1].source"),
        (10, 1, "model_cache"),
        (10, 15, "model_cache[0].use_volume"),
        (11, 35, "runtime.predict_concurrency"),
    ]


def test_missing_docker_server_keys_are_reported_as_one_block(tmp_path: Path) -> None:
    """The suggested block, pasted in, makes the file valid."""
    [problem] = [
        p for p in problems_of(tmp_path, "docker_server: {server_port: 8000}") if p.code == "missing"
    ]
    assert problem.hint is not None
    block = problem.hint.split("\n", 1)[1] + "\n  server_port: 8000\n"

    (tmp_path / "config.yaml").write_text(block)
    assert load_package(tmp_path).is_image


def test_an_unknown_key_is_reported_with_the_most_similar_one(tmp_path: Path) -> None:
    """A typing mistake is found although the key is accepted."""
    [problem] = problems_of(tmp_path, "requirments: [x]")

    assert problem.warning
    assert "'requirments'" in problem.message
    assert problem.hint == "did you mean 'requirements'?"


def test_text_after_a_name_is_a_warning_and_a_credential_an_error(tmp_path: Path) -> None:
    """Neither is repeated, and neither is used as the value."""
    token = "hf_" + "aB3x" * 9
    placeholder, credential = problems_of(tmp_path, f"secrets:\n  a: ENTER TOKEN HERE\n  b: {token}\n")

    assert (placeholder.line, placeholder.warning) == (2, True)
    assert (credential.line, credential.warning, credential.code) == (3, False, "credential")
    assert token not in str(credential)
    assert "ENTER" not in str(placeholder)


def test_a_credential_as_name_is_not_repeated(tmp_path: Path) -> None:
    """The text in place of a name may be the value itself."""
    token = "ghp_" + "aB3x" * 9
    [problem] = problems_of(tmp_path, f"secrets:\n  {token}: null\n")
    assert token not in str(problem)
    assert problem.message.startswith("that looks like a credential, not a name")
    assert (problem.line, problem.code) == (2, "credential")
    assert token not in str(problems_of(tmp_path, f"{token}: null\n{token}: 1\n"))


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("environment_variables:\n  '': x\n", 2, "environment_variables"),
        ("environment_variables:\n  A=hunter2: x\n", 2, "environment_variables"),
        ('environment_variables:\n  A: "hunter2\\0"\n', 2, "environment_variables.A"),
        ("model_name: x\nmodel_module_dir: ../..\n", 2, "model_module_dir"),
        ("model_module_dir: .\nmodel_class_filename: ../model.py\n", 2, "model_class_filename"),
        ("\ndata_dir: /data\n", 2, "data_dir"),
        ("\nbundled_packages_dir: ../packages\n", 2, "bundled_packages_dir"),
    ],
)
def test_impossible_variables_and_paths_have_a_line_and_a_hint(
    tmp_path: Path, text: str, line: int, key: str
) -> None:
    """Variables that no process can have, and paths out of the model folder. Values are not shown."""
    [problem] = problems_of(tmp_path, text)
    assert (problem.line, problem.key, problem.warning) == (line, key, False)
    assert problem.hint
    assert "hunter2" not in str(problem)


def test_a_long_name_of_words_and_numbers_is_valid(tmp_path: Path) -> None:
    """It is not mistaken for a credential."""
    assert problems_of(tmp_path, "secrets: {db_password_v2_staging_2024q1: null}\n") == []


def test_optional_secrets_must_be_declared(tmp_path: Path) -> None:
    """`model_metadata.gusset.optional_secrets` marks declared names only."""
    text = "secrets: {a: null, b: null}\nmodel_metadata: {gusset: {optional_secrets: [b]}}\n"
    assert problems_of(tmp_path, text) == []
    assert [declaration.optional for declaration in load_package(tmp_path).secrets.values()] == [False, True]

    assert (
        problems_of(tmp_path, text.replace("[b]", "[c]"))[0].key
        == "model_metadata.gusset.optional_secrets[0]"
    )


@pytest.mark.parametrize("path", ["nowhere", "file"])
def test_a_missing_folder_is_named(tmp_path: Path, path: str) -> None:
    """The error has its path."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigInvalid, match=path):
        load_package(tmp_path / path)


def test_a_file_with_the_ending_yml_is_suggested(tmp_path: Path) -> None:
    """Only config.yaml is read; the hint names the likely mistake."""
    (tmp_path / "config.yml").touch()
    with pytest.raises(ConfigInvalid) as error:
        load_package(tmp_path)
    assert "config.yml" in str(error.value.hint)


@pytest.mark.parametrize(
    ("text", "location"),
    [
        (b"a: 1\nb: \xff\n", (2, 4)),
        (b"a: 1\nb: \x00\n", (2, 4)),
        ("a: 1\n\tb: 2\n", (2, 1)),
        ("a: 'x\n", None),
        ("a: 2024-13-45\n", (1, 4)),
        ("a: &x [*x]\n", (1, 4)),
        ("a: " + "[" * 5000 + "\n", None),
        ("a: " + "[" * 200_000 + "\n", None),
        ("a: " + "{a: " * 100_000 + "\n", None),
        ("- " * 100_000 + "\n", None),
    ],
)
def test_invalid_yaml_has_a_location(
    tmp_path: Path, text: str | bytes, location: tuple[int, int] | None
) -> None:
    """Messages distinguish syntax, encoding and control characters, without quoting the file."""
    problems = [problem for problem in problems_of(tmp_path, text) if not problem.warning]
    assert problems
    if location:
        assert (problems[0].line, problems[0].column) == location


@pytest.mark.slow
def test_aliases_cannot_exhaust_the_memory(tmp_path: Path) -> None:
    """A few lines of aliases of aliases are refused quickly."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert any("aliases expand" in p.message for p in problems_of(tmp_path, "\n".join(lines)))
    assert MAX_NODES <= 1_000_000


def poisoned(data: Any) -> list[Any]:
    """Copies of `data`, each with the sentinel in the place of one value."""
    if isinstance(data, dict):
        return [{**data, key: bad} for key, value in data.items() for bad in poisoned(value)]
    if isinstance(data, list):
        return [[*data[:n], bad, *data[n + 1 :]] for n, value in enumerate(data) for bad in poisoned(value)]
    return [SENTINEL, [SENTINEL], {"x": SENTINEL}, f"{SENTINEL} and more"]


@pytest.mark.slow
def test_no_message_repeats_a_value(tmp_path: Path) -> None:
    """A text in place of any value of any configuration appears in no problem."""
    for text in [*ACCEPTED, *REFUSED]:
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError:
            continue
        for bad in poisoned(data):
            problems = problems_of(tmp_path, yaml.safe_dump(bad))
            assert SENTINEL not in repr(problems), text


def test_a_package_shows_nothing_of_its_file(tmp_path: Path) -> None:
    """A package may be logged; the contents of its file may not."""
    (tmp_path / "config.yaml").write_text(
        f"model_name: {SENTINEL}\nenvironment_variables: {{A: {SENTINEL}}}\n"
    )
    assert SENTINEL not in repr(load_package(tmp_path))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([*ACCEPTED, *REFUSED]),
    st.integers(0, 200),
    st.text("'\"{}[]:-&*!|>%@`#, \n\tx1", max_size=4),
)
def test_damaged_yaml_is_not_quoted(tmp_path: Path, text: str, at: int, noise: str) -> None:
    """Whatever breaks the syntax, the line with a value is not shown."""
    damaged = f"{text[:at]}{noise}\nname: {SENTINEL}{noise}\n{text[at:]}"
    problems = problems_of(tmp_path, damaged)
    assert f"{SENTINEL}{noise}" not in repr([p for p in problems if p.code == "yaml" or "name" in str(p.key)])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=200), st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass"))
    )
)
def test_any_bytes_load_or_are_refused(tmp_path: Path, data: bytes) -> None:
    """No file causes anything but a package or a `ConfigInvalid`."""
    problems_of(tmp_path, data)


_leaf = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.binary(max_size=4),
)
_data = st.recursive(
    _leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
_KEYS = sorted(json_schema()["properties"])


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(_KEYS), _data, max_size=4))
def test_any_data_loads_or_is_refused(tmp_path: Path, data: dict[str, Any]) -> None:
    """Neither does any data below the known keys."""
    problems_of(tmp_path, yaml.safe_dump(data))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("bdn: {mounts: [{source: 'bdn:n/v', path: /m}]}", "bdn.mounts"),
        ("training_checkpoints: {loops_checkpoint_ids: [a]}", "training_checkpoints"),
        ("trt_llm: {build: {checkpoint_repository: {source: HF, repo: a/b}}}", "trt_llm"),
        ("bis_llm: {}", "bis_llm"),
        ("runtime: {transport: {kind: grpc}}", "runtime.transport.kind"),
    ],
)
def test_keys_that_serve_refuses_are_reported(tmp_path: Path, text: str, key: str) -> None:
    """A model that would not work is not started."""
    (tmp_path / "config.yaml").write_text(text)
    assert key in [problem.key for problem in unsupported_for_serving(load_package(tmp_path))]
