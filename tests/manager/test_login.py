"""`gusset login`: with a manager, every `gusset secret` command works as it does without one."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from tests.conftest import Cli, leaks_in
from tests.manager.conftest import Manager

VALUE = b"hf_" + b"aB3dE6gH" * 5


@pytest.fixture
def logged_in(manager: Manager, tmp_path: Path) -> Cli:
    """The command as on another machine, with its own home and settings, logged in."""
    return manager.laptop(tmp_path / "elsewhere")


def settings(cli: Cli) -> Path:
    return Path(cli.environ["GUSSET_SETTINGS"])


def test_the_key_is_stored_in_the_settings_readable_by_its_owner_only(
    logged_in: Cli, manager: Manager
) -> None:
    """Mode 0600; other lines of the file stay; `logout` removes the key."""
    path = settings(logged_in)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and manager.key in path.read_text()
    with path.open("a") as file:
        file.write('# mine\nname_collisions = "overwrite"\n')
    logged_in("logout")
    assert path.read_text() == '# mine\nname_collisions = "overwrite"\n'
    logged_in("secret", "list")
    assert logged_in("login", manager.address, input=b"gusset_key_aaaaaaaa_" + b"A" * 43, status=7)
    assert path.read_text() == '# mine\nname_collisions = "overwrite"\n'


def test_a_key_that_others_can_read_is_refused(logged_in: Cli) -> None:
    settings(logged_in).chmod(0o644)
    assert b"chmod 600" in logged_in("secret", "list", status=2).stderr


def test_the_key_is_sent_only_to_its_own_manager(logged_in: Cli, manager: Manager) -> None:
    """A manager named by GUSSET_MANAGER does not get the key stored for another one."""
    done = logged_in("secret", "list", status=7, GUSSET_MANAGER="http://127.0.0.1:1")
    assert b"gusset login http://127.0.0.1:1" in done.stderr
    file = Path(logged_in.environ["GUSSET_SETTINGS"]).with_name("key")
    file.touch(0o600)
    file.write_text(manager.key)
    logged_in("logout")
    there = {"GUSSET_MANAGER": manager.address, "GUSSET_TOKEN_FILE": str(file)}
    assert logged_in("secret", "list", "--output", "json", **there).stdout == b'{"secrets": []}\n'
    file.chmod(0o640)
    assert b"chmod 600" in logged_in("secret", "list", status=2, **there).stderr


# Commands whose output and exit status must be the same with and without a manager.
COMMANDS: list[tuple[list[str], bytes, int]] = [
    (["secret", "list"], b"", 0),
    (["secret", "set", "hf_access_token"], VALUE + b"\n", 0),
    (["secret", "set", "hf_access_token", "--note", "a note", "--expires", "2031-05-06"], b"second value", 0),
    (["secret", "set", "hf-access-token"], b"value", 6),
    (["secret", "set", "hf_access_token", "--expect-version", "1"], b"value", 6),
    (["secret", "set", "empty", "--exact"], b"", 0),
    (["secret", "set", "not a name"], b"value", 2),
    (["secret", "set", "long", "--exact"], b"x" * 65_537, 2),
    (["secret", "history", "hf_access_token"], b"", 0),
    (["secret", "history", "nope"], b"", 5),
    (["secret", "rollback", "hf_access_token", "1"], b"", 0),
    (["secret", "rollback", "hf_access_token", "9"], b"", 5),
    (["secret", "destroy", "hf_access_token", "--version", "2", "--yes"], b"", 0),
    (["secret", "annotate", "hf_access_token", "--note", "", "--expires", "never"], b"", 0),
    (["secret", "import", "-"], b"A=1\nB=two\n", 0),
    (["secret", "delete", "A"], b"", 0),
    (["secret", "delete", "A"], b"", 5),
    (["secret", "restore", "A"], b"", 0),
    (["secret", "list"], b"", 0),
    (["secret", "reveal", "A"], b"", 7),
]
VARYING = ("id", "created_at", "updated_at", "created_by", "deleted_at", "last_read_at")


def comparable(output: bytes) -> object:
    """JSON without ids, times and actors, which always differ."""

    def strip(data: object) -> object:
        if isinstance(data, dict):
            return {key: strip(value) for key, value in data.items() if key not in VARYING}
        return [strip(each) for each in data] if isinstance(data, list) else data

    return strip(json.loads(output)) if output else None


def test_every_command_behaves_the_same_with_and_without_a_manager(logged_in: Cli, tmp_path: Path) -> None:
    """The same output and exit status, on success and on failure."""
    home = tmp_path / "embedded"
    embedded = Cli(
        home, logged_in.environ | {"GUSSET_HOME": str(home), "GUSSET_SETTINGS": str(home / "none")}
    )
    for words, given, status in COMMANDS:
        one = embedded(*words, "--output", "json", input=given, status=status)
        other = logged_in(*words, "--output", "json", input=given, status=status)
        assert comparable(other.stdout) == comparable(one.stdout), words
        assert other.stderr == one.stderr, words
        assert not leaks_in(other.stdout + other.stderr, VALUE)
    assert not (Path(logged_in.environ["GUSSET_HOME"]) / "vault.db").exists()


def test_a_stopped_manager_is_reported_as_unreachable(logged_in: Cli, manager: Manager) -> None:
    """Exit status 8, never "missing"."""
    manager.stop()
    for words in (["secret", "list"], ["secret", "delete", "x"], ["exec", "--secret", "x", "--", "true"]):
        assert b"does not respond" in logged_in(*words, status=8).stderr


def test_plain_http_to_another_machine_is_refused(gusset: Cli) -> None:
    done = gusset("login", "http://192.0.2.1:8700", input=b"key", status=2)
    assert b"--insecure-http" in done.stderr


@pytest.mark.parametrize(
    "url", ["nonsense", "ftp://x", "https://user:pw@host", "https://host/?k=v", "https://"]
)
def test_an_invalid_address_is_refused(gusset: Cli, url: str) -> None:
    gusset("login", url, input=b"key", status=2)


def test_a_token_is_created_listed_and_revoked_by_commands(logged_in: Cli, manager: Manager) -> None:
    """The token is shown only once; removing its deployment works too."""
    made = json.loads(
        logged_in("token", "create", "--deployment", "d", "--secrets", "a,b", "--output", "json").stdout
    )
    with manager.client(made["token"]) as client:
        assert client.get("/v1/deployment").json()["secrets"] == ["a", "b"]
    listed = logged_in("token", "list", "--deployment", "d")
    assert made["prefix"].encode() in listed.stdout and made["token"].encode() not in listed.stdout
    assert b"a,b" in logged_in("deployment", "list").stdout
    logged_in("deployment", "show", "d")
    logged_in("token", "revoke", made["prefix"])
    with manager.client(made["token"]) as client:
        assert client.get("/v1/deployment").status_code == 401
    logged_in("deployment", "remove", "d")
    logged_in("deployment", "show", "d", status=5)
    assert logged_in("token", "create", "--deployment", "d", "--secrets", "no name", status=2)


def test_the_audit_log_is_read_and_verified_on_the_manager(logged_in: Cli, manager: Manager) -> None:
    """`show` and `export` print what they print without a manager; `verify` has its result."""
    logged_in("secret", "set", "hf_access_token", input=VALUE)
    for command in (["show", "--action", "secret.create"], ["show", "--limit", "2"], ["export"]):
        remote = logged_in("audit", *command).stdout
        assert remote and remote == manager.gusset("audit", *command).stdout
    report = json.loads(logged_in("audit", "verify", "--output", "json").stdout)
    assert report["records"] >= 2 and report["checkpoints"] >= 1


def test_checkpoints_kept_elsewhere_are_not_given_to_a_manager(logged_in: Cli, tmp_path: Path) -> None:
    file = tmp_path / "witness"
    file.touch()
    done = logged_in("audit", "verify", "--checkpoint", str(file), status=2)
    assert b"--public-key" in done.stderr
