"""The commands of docs/identity.md lead to what it says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from tests.conftest import Cli
from tests.manager.conftest import Manager

DOCUMENT = (Path(__file__).parents[2] / "docs" / "identity.md").read_text()


def blocks(language: str) -> list[str]:
    """The code blocks of one language, also those within lists."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    return [
        re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)
        for indent, kind, text in found
        if kind == language
    ]


def identity_commands() -> list[list[str]]:
    """The arguments of each `gusset identity add`."""
    text = "\n".join(blocks("")).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("gusset identity add")]


@pytest.fixture
def administrator(manager: Manager, tmp_path: Path) -> Cli:
    return manager.laptop(tmp_path / "administrator")


def test_an_issuer_of_ones_own_leads_to_a_secret(
    manager: Manager, admin: httpx.Client, administrator: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        admin.post("/v1/secrets", json={"name": "db_password", "value": "a-password-of-it"}).status_code
        == 200
    )
    [script] = blocks("python")
    for _ in range(2):
        issued = subprocess.run(
            [sys.executable, "-c", script, "build-machine"], capture_output=True, check=True
        )
        Path("token").write_bytes(issued.stdout)
    assert Path("issuer.pem").stat().st_mode & 0o077 == 0
    administrator(*identity_commands()[2])
    workload = Cli(
        tmp_path / "workload",
        manager.gusset.environ
        | {
            "GUSSET_HOME": str(tmp_path / "workload"),
            "GUSSET_SETTINGS": "/none",
            "GUSSET_MANAGER": manager.address,
        },
    )
    command = ("--identity-token-file", "token", "--secret", "db_password", "--", "sh", "-c")
    done = workload("exec", *command, "cat $GUSSET_SECRETS_DIR/db_password | wc -c")
    assert done.stdout.strip() == b"16"


def test_the_other_commands_are_accepted(
    administrator: Cli, admin: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("jwks.json").write_text('{"keys": [{"kty": "RSA", "kid": "1", "n": "AQAB", "e": "AQAB"}]}')
    kubernetes, github, _ = identity_commands()
    administrator(*kubernetes)
    administrator(*github)
    pod, job = map(yaml.safe_load, blocks("yaml"))
    [projected] = pod["spec"]["volumes"][0]["projected"]["sources"]
    assert projected["serviceAccountToken"]["audience"] == "gusset"
    account = f"system:serviceaccount:{pod['metadata']['namespace']}:{pod['spec']['serviceAccountName']}"
    assert job["jobs"]["release"]["permissions"]["id-token"] == "write"
    found = {each["name"]: each for each in admin.get("/v1/identities").json()["identities"]}
    assert found["ranker-prod"]["subject"] == account
    assert found["release"]["claims"] == {"/repository_id": "123456789"}
