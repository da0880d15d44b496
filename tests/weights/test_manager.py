"""Downloads log in with secrets that a manager has."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from tests.cli.test_serve import predict, served, write_model
from tests.conftest import Cli
from tests.examples.hub import Hub, serving
from tests.manager.conftest import admin, manager, set_up  # noqa: F401  # fixtures
from tests.manager.test_serve import elsewhere  # noqa: F401  # fixture

TOKEN = b"hf_" + b"aB3dE6gH" * 5
CONFIG = """\
model_cache:
  - {repo_id: org/gated, revision: main, use_volume: false}
"""
CODE = """\
import os

class Model:
    def __init__(self, secrets):
        self.names = list(secrets)

    def predict(self, inputs):
        return {"names": self.names, "files": os.listdir(inputs["folder"])}
"""


@pytest.mark.server
def test_the_default_secret_is_registered_delivered_and_not_the_models(
    admin: httpx.Client,  # noqa: F811
    elsewhere: Cli,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The deployment at the manager declares it; if it is missing, the error is the hub's refusal."""
    folder = write_model(tmp_path / "my-model", CONFIG, CODE)
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "model.bin").write_bytes(os.urandom(1000))
    with serving(Hub("org/gated", repository, TOKEN)) as hub:
        elsewhere.environ |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf")}
        done = elsewhere("serve", str(folder), "--port", "0", status=5)
        assert b"the secret hf_access_token" in done.stderr
        assert b"demands a login" in done.stderr

        body = {"name": "hf_access_token", "value": TOKEN.decode()}
        assert admin.post("/v1/secrets", json=body).status_code == 200
        with served(elsewhere, str(folder), errors=tmp_path / "err") as (address, _):
            snapshots = tmp_path / "hf/hub/models--org--gated/snapshots"
            (snapshot,) = snapshots.iterdir()
            result = predict(address, {"folder": str(snapshot)}).json()
            assert result == {"names": [], "files": ["model.bin"]}
            deployment = admin.get("/v1/deployments/my-model").json()
    assert deployment["secrets"] == ["hf_access_token"]
