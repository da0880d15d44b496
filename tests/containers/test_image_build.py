"""What goes into the build of an image, without an engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gusset.containers.engine.image_build import Recipe
from gusset.errors import HostError
from tests.conftest import as_ordinary_process

SERVER = {
    "start_command": "serve",
    "server_port": 8000,
    "predict_endpoint": "/predict",
    "readiness_endpoint": "/ready",
    "liveness_endpoint": "/alive",
}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("data", "data_dir"),
        ("packages", "bundled_packages_dir"),
        ("shared", "external_package_dirs[0]"),
    ],
)
def test_a_folder_that_cannot_be_read_is_a_problem_of_the_config(
    tmp_path: Path, environ: dict[str, str], name: str, key: str
) -> None:
    """It is reported with its path, the key that names it, and what to do."""
    config = {
        "base_image": {"image": "busybox"},
        "docker_server": SERVER,
        "data_dir": "data",
        "bundled_packages_dir": "packages",
        "external_package_dirs": ["shared"],
    }
    model = tmp_path / "model"
    for folder in ("data", "packages", "shared"):
        (model / folder).mkdir(parents=True)
    (model / "config.yaml").write_text(yaml.safe_dump(config))
    (model / name).chmod(0)
    command = [*as_ordinary_process(), sys.executable, "-m", "gusset", "check", str(model)]
    done = subprocess.run(command, capture_output=True, env=environ, text=True, check=False)
    (model / name).chmod(0o755)
    assert done.returncode == 4
    assert f"the folder {model / name} cannot be read: Permission denied" in done.stderr
    assert key in done.stderr
    assert "let the account that runs gusset read it" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_copied_is_named(tmp_path: Path) -> None:
    """As one that was removed after the config had been read."""
    (tmp_path / "context").mkdir()
    recipe = Recipe(data=tmp_path / "removed")
    with pytest.raises(HostError, match=f"{tmp_path}/removed cannot be copied for the build.*No such file"):
        recipe.write_context(tmp_path / "context", recipe.text("busybox", ""))
