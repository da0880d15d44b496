"""From config.yaml to downloads."""

from __future__ import annotations

from pathlib import Path

import pytest

from gusset.package.config import Package, load_package
from gusset.weights.download import Credential, Download, SourceKind
from gusset.weights.plan import find_problems, plan_downloads


def package(tmp_path: Path, text: str) -> Package:
    (tmp_path / "config.yaml").write_text(text)
    return load_package(tmp_path)


def plan(tmp_path: Path, text: str) -> tuple[Download, ...]:
    return plan_downloads(package(tmp_path, text))


def problems(tmp_path: Path, text: str) -> list[str]:
    found = find_problems(package(tmp_path, text))
    return [f"{problem.line}: {problem.key} {problem.message}" for problem in found]


def test_weights_name_source_revision_patterns_and_secret(tmp_path: Path) -> None:
    """All that the fetching process needs, with the lines for its errors."""
    text = """
weights:
  - source: hf://org/model@refs/pr/1
    mount_location: /models//llama/
    allow_patterns: ["*.json"]
    auth: {auth_method: CUSTOM_SECRET, auth_secret_name: token}
"""
    file = tmp_path / "config.yaml"
    assert plan(tmp_path, text) == (
        Download(
            kind=SourceKind.HUB,
            address="org/model",
            location=f"{file}:3: weights[0].source",
            revision="refs/pr/1",
            allow_patterns=("*.json",),
            credential=Credential("token", f"{file}:6: weights[0].auth.auth_secret_name"),
            mount="/models/llama",
        ),
    )


@pytest.mark.parametrize(
    ("source", "kind", "address", "label"),
    [
        ("hf://gpt2", "hf", "gpt2", "hf://gpt2"),
        ("s3://bucket/a/b", "s3", "bucket/a/b", "s3://bucket/a/b"),
        ("gs://bucket", "gs", "bucket", "gs://bucket"),
        ("r2://0123ab.bucket/a", "r2", "0123ab.bucket/a", "r2://0123ab.bucket/a"),
        ("cw://bucket/a", "cw", "bucket/a", "cw://bucket/a"),
        ("azure://account/container/a", "azure", "account/container/a", "azure://account/container/a"),
        ("https://h.test/a?sig=1", "https", "https://h.test/a?sig=1", "https://h.test/a"),
    ],
)
def test_every_scheme_of_truss_has_a_kind(
    tmp_path: Path, source: str, kind: str, address: str, label: str
) -> None:
    """And a label that shows no query, which may hold a signature."""
    (found,) = plan(tmp_path, f"weights: [{{source: '{source}', mount_location: /m}}]")
    assert (found.kind, found.address, found.label) == (kind, address, label)
    assert problems(tmp_path, f"weights: [{{source: '{source}', mount_location: /m}}]") == []


@pytest.mark.parametrize("key", ["model_cache", "hf_cache"])
def test_a_cached_repository_has_a_mount_only_with_a_volume(tmp_path: Path, key: str) -> None:
    """The old name of the key means the same. The default secret is the hub's token."""
    text = f"""
{key}:
  - {{repo_id: a/b, use_volume: false}}
  - {{repo_id: a/c, use_volume: true, revision: main, volume_folder: c}}
"""
    first, second = plan(tmp_path, text)
    assert (first.mount, second.mount) == (None, "/app/model_cache/c")
    file = tmp_path / "config.yaml"
    assert first.location == f"{file}:3: {key}[0].repo_id"
    assert second.credential is not None
    assert second.credential.secret == "hf_access_token"


def test_a_bucket_of_model_cache_has_its_own_login(tmp_path: Path) -> None:
    """The default name is that of a hub's token, which is not for buckets."""
    text = """
model_cache:
  - {repo_id: "s3://bucket/a", use_volume: false, kind: s3}
  - {repo_id: "gs://other", use_volume: true, kind: gcs, volume_folder: v, runtime_secret_name: account}
"""
    first, second = plan(tmp_path, text)
    assert (first.kind, first.address, first.mount) == (SourceKind.S3, "bucket/a", "/app/model_cache/bucket")
    assert first.credential is None
    assert (second.kind, second.address, second.mount) == (SourceKind.GCS, "other", "/app/model_cache/v")
    assert second.credential is not None


def test_external_data_comes_first(tmp_path: Path) -> None:
    """It must be there before the model's code is imported."""
    text = """
weights: [{source: hf://a, mount_location: /m}]
external_data: [{url: http://h.test/x, local_data_path: weights/x.bin}]
"""
    data, weights = plan(tmp_path, text)
    assert (data.data_file, data.mount, weights.mount) == ("weights/x.bin", None, "/m")


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", ".", "./"])
def test_external_data_stays_in_the_data_folder(tmp_path: Path, path: str) -> None:
    """A path that leaves it is a problem with its line."""
    text = f"external_data:\n  - url: https://h.test/x\n    local_data_path: '{path}'\n"
    assert problems(tmp_path, text) == ["3: external_data[0].local_data_path leaves the data folder"]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (
            "source: hf://a, mount_location: /",
            "weights[0].mount_location is not a folder just for these files",
        ),
        ("source: hf://a, mount_location: /a/../b", "weights[0].mount_location contains `..`"),
        ("source: 'r2://bucket/a', mount_location: /m", "weights[0].source does not name account and bucket"),
        ("source: 'r2://evil.test/x.b/a', mount_location: /m", None),
        (
            "source: azure://account, mount_location: /m",
            "weights[0].source does not name account and container",
        ),
        (
            "source: 'https://u:p@h/x', mount_location: /m",
            "weights[0].source contains a user name or password",
        ),
        (
            "source: 'https://h/', mount_location: /m",
            "weights[0].source does not end with the name of a file",
        ),
        ("source: 'https://[/x', mount_location: /m", "weights[0].source is not a URL that can be fetched"),
        (
            "source: 'https://h..x/x', mount_location: /m",
            "weights[0].source is not a URL that can be fetched",
        ),
    ],
)
def test_what_cannot_be_fetched_is_a_problem(tmp_path: Path, entry: str, problem: str | None) -> None:
    """Found before anything is downloaded."""
    expected = [f"1: {problem}"] if problem else []
    assert problems(tmp_path, f"weights: [{{{entry}}}]") == expected


def test_mounts_do_not_overlap(tmp_path: Path) -> None:
    """Truss compares the texts alone."""
    text = "weights:\n- {source: hf://a, mount_location: /m}\n- {source: hf://b, mount_location: /m/x/}\n"
    assert problems(tmp_path, text) == [
        "2: weights[0].mount_location overlaps with another entry",
        "3: weights[1].mount_location overlaps with another entry",
    ]
    text = "model_cache:\n- {repo_id: a, use_volume: true, revision: main, volume_folder: ../x}\n"
    assert problems(tmp_path, text) == ["2: model_cache[0].volume_folder contains `..`"]
