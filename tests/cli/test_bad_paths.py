"""Paths that cannot be used, in every place of the command line and the settings that takes one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.test_serve import write_model
from tests.conftest import Cli, as_ordinary_process, clean_environ

pytestmark = pytest.mark.slow

VALUE = b"a-value-worth-hiding"
CODE = "class Model:\n    def predict(self, inputs):\n        return inputs\n"
STATUSES = range(2, 13)  # of docs/cli.md, without success and bugs

# Runs each command line in a fork: most of a command's time goes into imports.
SCRIPT = """\
import json, os, sys
import gusset.package.check, gusset.vault.wiring
from gusset.cli.main import main

statuses = []
for number, (variables, words) in enumerate(json.load(sys.stdin)):
    if not (pid := os.fork()):
        os.dup2(os.open(f"{sys.argv[1]}/{number}", os.O_WRONLY | os.O_CREAT, 0o600), 1)
        os.dup2(1, 2)
        os.environ.update(variables)
        main(words)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(json.dumps(statuses))
"""

MANAGER = "GUSSET_MANAGER=https://localhost:1 "
WITH_TOKEN = MANAGER + "GUSSET_TOKEN_FILE={ok}/manager-token "

# {file}, {folder} and {new} stand for the path, {ok} for a folder with what is valid.
COMMANDS = [
    "init {new}",
    "check {folder}",
    "serve {folder} --port 0",
    "predict {folder} -d 1",
    "build {folder}",
    "build {ok}/model --context-only {new}",
    "deploy kubernetes {folder} --image r.example/x:1 --manager https://h.test",
    "env path {folder}",
    "env remove {new}",
    "check {ok}/model --secrets-dir {folder}",
    "serve {ok}/model --port 0 --secrets-dir {folder}",
    "serve {ok}/model --port 0 --tls-certificate {file} --tls-key {file}",
    "predict http://localhost:1 -d @{file}",
    "predict http://localhost:1 -d 1 --caller-file {file}",
    "predict http://localhost:1 -d 1 --caller token --secrets-dir {folder}",
    "deploy kubernetes {ok}/model --image r.example/x:1 --manager https://h.test --manager-ca {file}",
    "scan {new}",
    "scan {ok}/archive --secrets-dir {folder}",
    "secret set other --from-file {file}",
    "secret import {file}",
    "exec --secret token --secrets-dir {folder} -- true",
    "exec --secret token -- {file}",
    MANAGER + "exec --secret token --identity-token-file {file} -- true",
    WITH_TOKEN + "agent --deployment d --once --dir {folder}",
    "audit verify --checkpoint {file}",
    "audit verify --public-key {file} --checkpoint {ok}/home/audit.witness",
    "key passphrase --file {file}",
    "manager --port 0 --tls-certificate {file} --tls-key {file}",
    WITH_TOKEN + "issuer add https://i.example --jwks {file}",
    "migrate-database --from sqlite:///{ok}/home/vault.db --to sqlite:///{new}",
    "migrate-database --from sqlite:///{new} --to sqlite:///{ok}/new.db",
    "GUSSET_HOME={folder} secret list",
    "GUSSET_HOME={folder} secret set other --from-file {ok}/secrets/token",
    "GUSSET_HOME={folder} doctor",
    "GUSSET_DATABASE=sqlite:///{file} secret list",
    "GUSSET_SETTINGS={file} secret list",
    "GUSSET_ROOT_KEY_FILE={file} secret set other --from-file {ok}/secrets/token",
    "GUSSET_ROOT_KEY_FILE={file} doctor",
    MANAGER + "GUSSET_TOKEN_FILE={file} secret list",
    WITH_TOKEN + "GUSSET_MANAGER_CA={file} secret list",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what is valid, and with paths that cannot be used."""
    folder = tmp_path_factory.mktemp("paths")
    gusset_in(folder)("secret", "set", "token", input=VALUE)
    write_model(folder / "model", "secrets: {token: null}\n", CODE)
    (folder / "secrets").mkdir()
    (folder / "secrets" / "token").write_bytes(VALUE)
    (folder / "manager-token").write_bytes(b"gst_a-token")
    (folder / "manager-token").chmod(0o600)
    for name in ("archive", "a-file"):
        (folder / name).write_bytes(b"")
    (folder / "a-folder").mkdir()
    (folder / "loop").symlink_to("loop")
    locked = folder / "locked"
    locked.mkdir()
    locked.chmod(0)
    yield folder
    locked.chmod(0o700)


def gusset_in(folder: Path) -> Cli:
    return Cli(folder / "home", clean_environ(folder / "home", folder / "settings.toml"))


def paths_for(command: str, folder: Path) -> dict[str, str]:
    """The paths that this command cannot use, and what its error has to name."""
    names = {"locked/x": "locked", "n" * 5000: "n" * 5000, "loop": "loop"}
    if command == "scan {new}":
        del names["loop"]  # as any path without a file, it may be an image of the engine
    elif "{file}" in command:
        names["a-folder"] = "a-folder"
    else:
        names["a-file/x"] = "a-file"
    return {str(folder / name): str(folder / named) for name, named in names.items()}


def settings_and_words(command: str) -> tuple[dict[str, str], list[str]]:
    words = command.split()
    variables = dict(word.split("=", 1) for word in words if word.startswith("GUSSET_"))
    return variables, [word for word in words if not word.startswith("GUSSET_")]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_that_cannot_be_used_is_an_error_that_names_it(
    folder: Path, tmp_path: Path, command: str
) -> None:
    """No permission, a name that is too long, links that lead to each other, another kind of file."""
    paths = paths_for(command, folder)
    lines = [command.format(file=path, folder=path, new=path, ok=folder) for path in paths]
    done = subprocess.run(
        [*as_ordinary_process(), sys.executable, "-c", SCRIPT, str(tmp_path)],
        input=json.dumps([settings_and_words(line) for line in lines]).encode(),
        capture_output=True,
        env=gusset_in(folder).environ,
        timeout=300,
        check=True,
    )
    for number, (status, named) in enumerate(zip(json.loads(done.stdout), paths.values(), strict=True)):
        printed = (tmp_path / str(number)).read_text()
        assert status in STATUSES, printed
        assert named in printed, printed
        assert "Traceback" not in printed


@pytest.mark.parametrize("command", ["check", "build", "env path"])
@pytest.mark.parametrize("key", ["requirements_file", "external_package_dirs"])
def test_a_path_of_the_config_with_nul_is_refused(
    gusset: Cli, tmp_path: Path, command: str, key: str
) -> None:
    """With its location: no file has such a name."""
    path = '"a\\0b"' if key == "requirements_file" else '["a\\0b"]'
    write_model(tmp_path / "model", f"{key}: {path}\n", CODE)
    done = gusset(*command.split(), str(tmp_path / "model"), status=3)
    assert b"config.yaml:1:" in done.stderr and b"a path cannot contain NUL" in done.stderr


@pytest.mark.parametrize("key", ["home", "cache", "root_key_file", "witness_file", "token_file"])
def test_a_setting_with_nul_or_an_unknown_account_is_refused(gusset: Cli, tmp_path: Path, key: str) -> None:
    (tmp_path / "settings.toml").write_text(f'{key} = "/tmp/a\\u0000b"\n')
    assert f"{key} contains a NUL".encode() in gusset("secret", "list", status=2).stderr

    (tmp_path / "settings.toml").write_text("")
    variable = f"GUSSET_{key.upper()}"
    done = gusset("secret", "list", status=2, **{variable: "~no-such-account/x"})
    assert b"~no-such-account/x begins with the home folder of an unknown account" in done.stderr


def test_a_witness_file_that_cannot_be_read_is_named(gusset: Cli, tmp_path: Path) -> None:
    gusset("secret", "set", "token", input=VALUE)
    done = gusset("audit", "verify", status=11, GUSSET_WITNESS_FILE=str(tmp_path))
    assert b"is a directory" in done.stderr and f"check {tmp_path} ".encode() in done.stderr


def test_a_full_disk_under_the_context_of_a_build_is_named(gusset: Cli, tmp_path: Path) -> None:
    """It is not taken for the disk under standard output: neither error has the name of a file."""
    write_model(tmp_path / "model", "", CODE)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this account cannot mount a tmpfs")
    try:
        with suppress(OSError):
            (disk / "filler").write_bytes(bytes(32_768))
        done = gusset("build", str(tmp_path / "model"), "--context-only", f"{disk}/context", status=11)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert f"cannot be written to {disk}/context: No space left on device".encode() in done.stderr


def test_a_model_folder_may_have_links_that_lead_to_each_other(gusset: Cli, tmp_path: Path) -> None:
    """Also in place of its folder with data."""
    write_model(tmp_path / "model", "", CODE)
    for name in ("data", "loop"):
        (tmp_path / "model" / name).symlink_to(name)
    gusset("check", str(tmp_path / "model"))
    context = tmp_path / "context"
    gusset("build", str(tmp_path / "model"), "--context-only", str(context))
    assert (context / "app" / "loop").is_symlink()
