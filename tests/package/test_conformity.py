"""gusset accepts the configurations that Truss accepts, and refuses those that it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from gusset.errors import ConfigInvalid
from gusset.package.config import Package, load_package
from tests.package.corpus import ACCEPTED, LOOSER, REFUSED, STRICTER, V1

LOOKAHEAD = (
    f"trt_llm: {{build: {{{V1}, speculator: {{speculative_decoding_mode: LOOKAHEAD_DECODING, "
    "lookahead_windows_size: 3, lookahead_ngram_size: 3, lookahead_verification_set_size: 3}}}"
)


def load(folder: Path, text: str) -> Package:
    (folder / "config.yaml").write_text(text)
    return load_package(folder)


@pytest.mark.parametrize("text", [*ACCEPTED, *LOOSER])
def test_what_truss_accepts_loads(tmp_path: Path, text: str) -> None:
    """With warnings at most, and it can be passed to a model."""
    package = load(tmp_path, text)

    assert all(problem.warning for problem in package.warnings)
    assert package.dump()["spec_version"]


@pytest.mark.parametrize("text", [*REFUSED, *STRICTER])
def test_what_truss_refuses_is_refused(tmp_path: Path, text: str) -> None:
    """Also what crashes Truss; with a message and a hint."""
    with pytest.raises(ConfigInvalid) as error:
        load(tmp_path, text)

    errors = [problem for problem in error.value.problems if not problem.warning]
    assert errors
    assert all(problem.message and problem.hint and problem.file for problem in errors)


def test_a_minimal_file_has_all_defaults(tmp_path: Path) -> None:
    """The model gets every key with its default."""
    config = load(tmp_path, "model_name: x").dump()

    assert config["resources"] == {"cpu": "1", "memory": "2Gi", "accelerator": None, "use_gpu": False}
    assert config["runtime"]["transport"] == {"kind": "http"}
    assert config["runtime"]["predict_concurrency"] == 1
    assert config["build"]["model_server"] == "TrussServer"
    assert config["python_version"] == "py313"
    assert len(config) == 37


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("environment_variables: {A: null, B: yes, C: 1.0, D: [1]}", ["environment_variables"],
         {"A": "None", "B": "true", "C": "1.0", "D": "[1]"}),
        ("resources: {accelerator: ' L4:02 '}", ["resources", "accelerator"], "L4:2"),
        ("resources: {accelerator: 'L4:2:3'}", ["resources", "accelerator"], "L4"),
        ("resources: {accelerator: {accelerator: L4, count: 0}}", ["resources", "use_gpu"], True),
        ("resources: {use_gpu: true}", ["resources", "use_gpu"], False),
        ("runtime: {is_websocket_endpoint: 'no'}", ["runtime", "transport", "kind"], "websocket"),
        ("runtime: {transport: {kind: grpc}, is_websocket_endpoint: true}", ["runtime", "transport", "kind"], "websocket"),
        ("runtime: {transport: {kind: http, foo: 1}}", ["runtime", "transport"], {"kind": "http"}),
        ("runtime: {predict_concurrency: 010}", ["runtime", "predict_concurrency"], 8),
        ("bdn: {mounts: [{source: 'bdn:n/v', path: /m/./x/}]}", ["bdn", "mounts", 0, "path"], "/m/x"),
        ("hf_cache: [{repo_id: a, use_volume: no}]", ["model_cache", 0, "repo_id"], "a"),
        ("model_metadata: {when: 2024-01-01, n: .nan}", ["model_metadata"], {"when": "2024-01-01", "n": None}),
        ("other: {deep: [1]}", ["other"], {"deep": [1]}),
        ("resources: {zone: x}", ["resources", "zone"], "x"),
        ("secrets: {a: some text}", ["secrets"], {"a": None}),
        ("secrets:", ["secrets"], {}),
        (LOOKAHEAD, ["trt_llm", "build", "speculator", "num_draft_tokens"], 11),
        (LOOKAHEAD, ["trt_llm", "build", "speculator", "enable_b10_lookahead"], False),
        (LOOKAHEAD, ["trt_llm", "build", "speculator", "runtime", "total_token_limit"], 500000),
    ],
)  # fmt: skip
def test_values_are_converted_as_by_truss(
    tmp_path: Path, text: str, path: list[str | int], value: object
) -> None:
    """Unknown keys are kept."""
    found = load(tmp_path, text).dump()
    for part in path:
        found = found[part]

    assert found == value
