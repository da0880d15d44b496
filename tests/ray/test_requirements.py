"""Requirements that Ray cannot install are refused, with what to do instead. Starts no cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gusset.errors import CheckFailed, ConfigInvalid
from tests.ray.conftest import write_folder
from tests.ray.test_application import MODEL, options_of, problems_of

PYTHON = f"py{sys.version_info[0]}{sys.version_info[1]}"


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ("build:\n  secret_to_path_mapping:\n    login: /home/app/.netrc\n", "install_credentials"),
        ("requirements: ['x @ https://user:s3cr3t-w0rd@index.example/x.whl']\n", "credential"),
        ("requirements_file: url.txt\n", "install_credentials"),
        ("requirements_file: index.txt\n", "install_credentials"),
        ("requirements: [./wheels/x.whl]\n", "requirement"),
        (f"python_version: {'py312' if PYTHON != 'py312' else 'py311'}\n", "python_version"),
        ("requirements_file: uv.lock\n", "requirements_file"),
    ],
)
def test_what_ray_cannot_install_is_refused(tmp_path: Path, config: str, code: str) -> None:
    """With a problem that has a location and says what to do instead; no login in the text."""
    folder = write_folder(tmp_path / "a", config, MODEL)
    (folder / "url.txt").write_text("x @ https://user:s3cr3t-w0rd@index.example/x.whl\n")
    (folder / "index.txt").write_text("--index-url https://user:s3cr3t-w0rd@index.example/\nx\n")
    (folder / "uv.lock").write_text("version = 1\n")
    (folder / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    with pytest.raises((ConfigInvalid, CheckFailed)) as refused:
        options_of(folder)
    assert code in problems_of(refused.value)
    errors = [problem for problem in refused.value.problems if not problem.warning]
    assert all(problem.hint for problem in errors)
    assert "s3cr3t" not in repr(refused.value) + repr(errors)


def test_a_folder_whose_install_needs_credentials_is_served_where_its_packages_are_there(
    tmp_path: Path,
) -> None:
    """`env="current"`, as the hint says."""
    config = "build:\n  secret_to_path_mapping:\n    login: /home/app/.netrc\n"
    deployment, _ = options_of(write_folder(tmp_path / "a", config, MODEL), env="current")
    assert not deployment.ray_actor_options.get("runtime_env")
