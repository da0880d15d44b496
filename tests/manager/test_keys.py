"""Keys that others rotate while a manager runs, and a root key that it cannot read any more."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import httpx

from gusset.vault.crypto.root_key import encode_root_key, new_root_key, parse_root_key
from tests.conftest import leaks_in
from tests.manager.conftest import Manager
from tests.serving.conftest import eventually
from tests.vault.conftest import run_sql


def test_a_manager_uses_keys_that_a_command_has_rotated(manager: Manager, admin: httpx.Client) -> None:
    """Its next write is sealed under the new KEK, and its verification raises no alarm before or after that."""
    admin.post("/v1/secrets", json={"name": "a", "value": "first value"})
    manager.gusset("key", "rotate", "--all")
    manager.gusset("secret", "set", "b", input=b"of a command")
    assert admin.post("/v1/audit/verify").json()["problems"] == []
    assert admin.post("/v1/secrets", json={"name": "c", "value": "second value"}).status_code == 200
    numbers = run_sql(manager.database, "SELECT DISTINCT hex(substr(sealed, 2, 4)) FROM secret_versions")
    assert numbers == [("00000002",)]
    assert admin.post("/v1/audit/verify").json()["problems"] == []
    assert {secret["name"] for secret in admin.get("/v1/secrets").json()["secrets"]} == {"a", "b", "c"}


def test_a_manager_that_cannot_read_its_root_key_is_not_ready(manager: Manager, tmp_path: Path) -> None:
    """`/readyz` and the log have the reason, without a path for strangers; with the key back all is well."""
    file = manager.gusset.home / "root.key"
    kept = tmp_path / "kept"
    shutil.copy(file, kept)

    def status() -> int:
        return httpx.get(f"{manager.address}/readyz").status_code

    assert status() == 200
    file.write_bytes(encode_root_key(new_root_key()))
    eventually(lambda: status() == 500)
    response = httpx.get(f"{manager.address}/readyz")
    assert response.json()["message"] == "the vault's root key cannot be used"
    assert "is not the root key of this vault" in manager.log.read_text()
    shutil.copy(kept, file)
    eventually(lambda: status() == 200)


def test_the_status_of_keys_says_how_far_each_witness_file_goes(manager: Manager) -> None:
    def reported() -> list[int]:
        status = json.loads(manager.gusset("key", "status", "--output", "json").stdout)
        return [each["checkpoint"] for each in status["managers"]]

    eventually(lambda: len(reported()) == 1)
    text = manager.gusset("key", "status").stderr.decode()
    shown = [
        *reported(),
        *map(int, re.findall(r"its witness file goes up to record (\d+)$", text, re.MULTILINE)),
    ]
    lines = (manager.gusset.home / "audit.witness").read_text().splitlines()
    assert len(shown) == 2
    assert {json.loads(line)["seq"] for line in lines}.issuperset(shown)


def test_a_manager_with_a_command_reports_the_new_root_key(manager: Manager, tmp_path: Path) -> None:
    """Rotated in two steps while it runs; no key is in its arguments, environment, log or responses."""
    file = tmp_path / "kept.key"
    shutil.move(manager.gusset.home / "root.key", file)
    manager.stop()
    command = f"cat {file}"
    manager.start("--root-key-command", command)
    manager.gusset.environ["GUSSET_ROOT_KEY_COMMAND"] = command
    old = parse_root_key(file.read_bytes(), "")

    def reported() -> list[str]:
        status = json.loads(manager.gusset("key", "status", "--output", "json").stdout)
        return [each["root_key"] for each in status["managers"]]

    eventually(lambda: reported() == [old.id])
    manager.gusset("key", "rotate", "--root")
    refused = manager.gusset("key", "rotate", "--root", "--finish", status=6)
    pending = manager.gusset.home / "root.key.new"
    new = parse_root_key(pending.read_bytes(), "")
    shutil.copy(pending, file)
    eventually(lambda: reported() == [new.id])
    manager.gusset("key", "rotate", "--root", "--finish")
    with manager.client() as client:
        assert client.post("/v1/secrets", json={"name": "a", "value": "first value"}).status_code == 200
        ready = client.get("/readyz")
    process = Path(f"/proc/{manager.process.pid}")
    seen = [
        *(process.joinpath(name).read_bytes() for name in ("cmdline", "environ")),
        manager.log.read_bytes(),
        ready.content,
        refused.stderr,
    ]
    assert ready.status_code == 200
    assert not leaks_in(b"".join(seen), old.key, new.key)
    assert manager.stop() == 0
    assert reported() == []


def test_a_request_is_recognised_after_its_key_was_rotated(manager: Manager, admin: httpx.Client) -> None:
    """The idempotency key is another one then; the request is not executed again."""
    body, key = {"name": "a", "value": "first value"}, {"Idempotency-Key": "one"}
    assert admin.post("/v1/secrets", json=body, headers=key).json()["version"] == 1
    manager.gusset("key", "rotate", "--idempotency")
    again = admin.post("/v1/secrets", json=body, headers=key)
    assert (again.json()["version"], again.headers["idempotency-replayed"]) == (1, "true")
    later = {"Idempotency-Key": "two"}
    assert admin.post("/v1/secrets", json=body, headers=later).json()["version"] == 2
    assert admin.post("/v1/secrets", json=body, headers=later).json()["version"] == 2
