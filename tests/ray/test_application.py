"""From a folder to Ray's options, and what is refused. Starts no cluster."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gusset.errors import CheckFailed, ConfigInvalid, GussetError, HostError, UsageError
from tests.ray.conftest import write_folder

MODEL = "class Model:\n    def predict(self, inputs):\n        return inputs\n"


def options_of(folder: Path, **options: Any) -> tuple[Any, Any]:
    """The deployment, and the plan that each replica gets."""
    from gusset.ray import application

    deployment = application(folder, on_nodes=True, **options)._bound_deployment
    return deployment, deployment.init_args[0]


def problems_of(error: GussetError) -> list[str | None]:
    assert isinstance(error, ConfigInvalid | CheckFailed)
    return [problem.code for problem in error.problems if not problem.warning]


def test_config_becomes_rays_options(tmp_path: Path) -> None:
    """Requirements, resources and concurrency; only what is written."""
    config = (
        "model_name: written\nrequirements: [orjson>=3, --pre]\nruntime:\n  predict_concurrency: 7\n"
        "resources:\n  cpu: 1500m\n  memory: 1Gi\n  accelerator: L4:2\n"
    )
    deployment, plan = options_of(write_folder(tmp_path / "a", config, MODEL))
    actor = deployment.ray_actor_options
    assert deployment.name == plan.name == "written"
    assert deployment.max_ongoing_requests == 11
    assert (actor["num_cpus"], actor["memory"], actor["num_gpus"]) == (1.5, 1 << 30, 2)
    assert actor["runtime_env"]["uv"] == ["--pre", "orjson>=3"]

    plain, _ = options_of(write_folder(tmp_path / "b", "model_name: plain\n", MODEL))
    assert "memory" not in plain.ray_actor_options and not plain.ray_actor_options.get("runtime_env")


def test_options_of_the_caller_replace_those_of_the_config(tmp_path: Path) -> None:
    """Autoscaling, replicas and resources are passed on to Ray as they are given."""
    folder = write_folder(tmp_path / "a", "requirements: [orjson]\nresources:\n  cpu: '2'\n", MODEL)
    scaling = {"min_replicas": 1, "max_replicas": 5, "target_ongoing_requests": 3}
    deployment, plan = options_of(
        folder,
        autoscaling_config=scaling,
        max_ongoing_requests=9,
        graceful_shutdown_timeout_s=5,
        ray_actor_options={"num_cpus": 0.25, "num_gpus": 0.5},
        env="current",
        manager="https://a.example,https://b.example",
        identity_token_file="/var/run/token",
    )
    assert deployment._deployment_config.autoscaling_config.max_replicas == 5
    assert deployment._deployment_config.graceful_shutdown_timeout_s == 5
    assert deployment.max_ongoing_requests == 9
    assert (deployment.ray_actor_options["num_cpus"], deployment.ray_actor_options["num_gpus"]) == (0.25, 0.5)
    assert not deployment.ray_actor_options.get("runtime_env")
    assert plan.access.manager == "https://a.example,https://b.example"
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_custom_images_and_code_outside_of_the_folder_are_refused(tmp_path: Path) -> None:
    """Ray runs Python models, and the nodes have only the folder."""
    image = (
        "base_image:\n  image: server:1\ndocker_server:\n  start_command: server\n  server_port: 8000\n"
        "  predict_endpoint: /predict\n  readiness_endpoint: /\n  liveness_endpoint: /\n"
    )
    with pytest.raises(ConfigInvalid, match="custom image") as refused:
        options_of(write_folder(tmp_path / "a", image, MODEL))
    assert "kubernetes" in (refused.value.hint or "")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(CheckFailed) as outside:
        options_of(write_folder(tmp_path / "b", "external_package_dirs: [../elsewhere]\n", MODEL))
    assert problems_of(outside.value) == ["outside"]


def test_credentials_are_not_passed_through_ray(tmp_path: Path) -> None:
    """Not in variables of runtime_env, in the manager's address, or in a file of the folder."""
    from gusset.ray.folders import pack

    token = "hf_" + "a1B2c3D4e5" * 4
    folder = write_folder(tmp_path / "a", "", MODEL)
    variables = {"runtime_env": {"env_vars": {"HF_TOKEN": token}}}
    with pytest.raises(UsageError, match="HF_TOKEN") as refused:
        options_of(folder, ray_actor_options=variables)
    assert token not in str(refused.value)
    with pytest.raises(UsageError, match="login"):
        options_of(folder, manager="https://user:word@manager.example")
    (folder / "notes.txt").write_text(f"first line\nuse {token}\n")
    with pytest.raises(CheckFailed) as found:
        pack(folder)
    (problem,) = found.value.problems
    assert (problem.file, problem.line, problem.code) == ("notes.txt", 2, "credential")
    assert token not in repr(found.value) + repr(problem)


def test_the_same_folder_gives_the_same_archive(tmp_path: Path) -> None:
    """Whatever the times of its files; without caches and what version control keeps."""
    from gusset.ray.folders import pack

    first, second = (write_folder(tmp_path / name, "model_name: same\n", MODEL) for name in "ab")
    (first / ".git").mkdir()
    (first / ".git" / "HEAD").write_text("x")
    (first / ".env").write_text("A=b")
    (second / "model" / "model.py").touch()
    assert pack(first) == pack(second)
    names = zipfile.ZipFile(io.BytesIO(pack(first))).namelist()
    assert sorted(names) == ["config.yaml", "model/model.py"]


def test_a_file_whose_name_no_archive_can_hold_is_an_error(tmp_path: Path) -> None:
    """Names in a zip archive are UTF-8."""
    from gusset.ray.folders import pack

    folder = write_folder(tmp_path / "a", "", MODEL)
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    with pytest.raises(HostError, match=r"caf.*is not UTF-8"):
        pack(folder)


def test_an_api_key_of_a_person_is_refused_in_a_replica(tmp_path: Path) -> None:
    """Replicas run the model's code: they get a token that reads only what it declares."""
    from gusset.ray.plan import SecretAccess
    from gusset.ray.source import open_source
    from gusset.settings import Settings

    file = tmp_path / "key"
    file.touch(0o600)
    file.write_text("gusset_key_abcdefgh_" + "x" * 43)
    settings = Settings.load({"GUSSET_SETTINGS": str(tmp_path / "none"), "GUSSET_HOME": str(tmp_path)})
    access = SecretAccess(manager="https://manager.example", token_file=str(file))
    with (
        pytest.raises(UsageError, match="person's API key") as refused,
        open_source(access, settings, deployment="a", names=["b"]),
    ):
        pass
    assert "xxxx" not in str(refused.value)
    with (
        pytest.raises(UsageError, match="no token"),
        open_source(SecretAccess(manager="https://manager.example"), settings, deployment="a", names=["b"]),
    ):
        pass
