"""Weights of a custom image are downloaded before its container starts, and mounted into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.containers.conftest import ServedImage, podman
from tests.examples.hub import Hub, serving

TOKEN = b"hf_tests_" + b"aB3dE5fG7h" * 2
SERVER = {
    "start_command": "python3 -m http.server 8000 -d /models/llama",
    "predict_endpoint": "/config.json",
    "readiness_endpoint": "/config.json",
    "liveness_endpoint": "/config.json",
    "no_build": True,
}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_bytes(b'{"hidden": 1}')
    (folder / "model.bin").write_bytes(os.urandom(100_000))
    with serving(Hub("org/gated", folder, TOKEN)) as hub:
        yield hub


def test_weights_are_mounted_read_only(
    served: ServedImage, images: dict[str, str], hub: Hub, tmp_path: Path
) -> None:
    """As plain files: the links in the hub's own cache lead nowhere in a container."""
    served.secret("hub_token", TOKEN)
    weights = {"source": "hf://org/gated", "mount_location": "/models/llama", "auth_secret_name": "hub_token"}
    served.configure(images["user"], docker_server=SERVER, weights=[weights], secrets=None)
    served.start(HF_ENDPOINT=hub.address, HF_HOME=str(tmp_path / "hf")).ready()
    assert (
        httpx.get(f"{served.address}/model.bin").content == (tmp_path / "repository/model.bin").read_bytes()
    )
    with pytest.raises(AssertionError, match="Read-only"):
        podman("exec", served.container, "touch", "/models/llama/new")
    assert podman("exec", served.container, "ls", "/secrets") == ""
    assert TOKEN.decode() not in served.output
    assert served.stop() == 0


def test_a_command_that_waits_for_trusss_downloader_goes_on(
    served: ServedImage, images: dict[str, str], hub: Hub, tmp_path: Path
) -> None:
    """Published folders start with `truss-transfer-cli &&`; everything is there already."""
    served.secret("hf_access_token", TOKEN)
    command = 'sh -c "truss-transfer-cli && exec python3 -m http.server 8000 -d /app/model_cache/llama"'
    cache = {"repo_id": "org/gated", "revision": "main", "use_volume": True, "volume_folder": "llama"}
    server = SERVER | {"start_command": command}
    served.configure(images["user"], docker_server=server, model_cache=[cache], secrets=None)
    served.start(HF_ENDPOINT=hub.address, HF_HOME=str(tmp_path / "hf")).ready()
    assert httpx.get(f"{served.address}/config.json").json() == {"hidden": 1}
    assert served.stop() == 0


def test_a_download_that_fails_starts_no_container(
    served: ServedImage, images: dict[str, str], hub: Hub, tmp_path: Path
) -> None:
    """The error names secret and line."""
    weights = {"source": "hf://org/gated", "mount_location": "/models/llama", "auth_secret_name": "hub_token"}
    served.configure(images["user"], docker_server=SERVER, weights=[weights], secrets=None)
    served.start(HF_ENDPOINT=hub.address, HF_HOME=str(tmp_path / "hf"))
    assert served.running.wait(60) == 5
    assert "the secret hub_token" in served.output
    assert not served.left_behind()
