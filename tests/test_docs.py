"""The documents are true: what they show runs, what they name is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import httpx
import pytest

from gusset import errors, settings
from gusset.vault.audit.actions import Action
from tests.cli.test_serve import served
from tests.conftest import Cli
from tests.manager.conftest import Manager, manager, set_up  # noqa: F401  # fixtures

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.server
def test_the_readmes_model_is_served_as_it_stands(gusset: Cli, tmp_path: Path) -> None:
    """Its config.yaml, its model.py, its commands: a newcomer gets the promised response."""
    folder = tmp_path / "my-model"
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text(blocks(README, "yaml")[0])
    (folder / "model" / "model.py").write_text(blocks(README, "python")[0])
    shown = next(block for block in blocks(README, "sh") if "gusset secret set" in block)
    assert "gusset secret set hf_access_token" in shown and "gusset serve my-model" in shown
    body = re.search(r"curl -d '([^']*)' http://127.0.0.1:8080(\S*)", shown)
    assert body

    gusset("secret", "set", "hf_access_token", input=b"a-token-from-the-hub")
    with served(gusset, str(folder), errors=tmp_path / "errors") as (address, _):
        response = httpx.post(address + body[2], content=body[1])

    assert response.json() == {"authorized": True, "text": "hello"}


@pytest.mark.server
def test_the_quickstart_works_as_it_stands(gusset: Cli, tmp_path: Path) -> None:
    """Its commands after the installation, in order, with the edit that it asks for: each does what the text says."""
    text = (ROOT / "docs" / "quickstart.md").read_text()
    commands = [line for block in blocks(text, "sh")[1:] for line in block.splitlines()]
    body, path = re.search(r"curl -d '([^']*)' http://127.0.0.1:8080(\S*)", text).groups()  # type: ignore[union-attr]
    careless_line = next(block for block in blocks(text, "python") if "print" in block)
    values = iter(["the-first-of-the-values", "the-second-of-the-values"])

    def run(command: str) -> subprocess.CompletedProcess[bytes]:
        words = command.removeprefix("gusset ").replace("my-model", str(tmp_path / "my-model")).split()
        return gusset(*words, input=next(values).encode() if words[:2] == ["secret", "set"] else b"")

    def run_until(command: str) -> None:
        while (next_command := commands.pop(0)) != command:
            if not next_command.startswith("curl"):
                run(next_command)

    run_until("gusset serve my-model --port 8080")
    model = tmp_path / "my-model" / "model" / "model.py"
    lines = model.read_text().splitlines(keepends=True)
    looked_up = next(index for index, line in enumerate(lines) if 'self._secrets["api_key"]' in line)
    model.write_text("".join([*lines[: looked_up + 1], careless_line, *lines[looked_up + 1 :]]))
    printed = tmp_path / "errors"
    with served(gusset, str(tmp_path / "my-model"), errors=printed) as (address, _):
        response = httpx.post(address + path, content=body)
        run_until("gusset secret set api_key")
        run("gusset secret set api_key")
        assert httpx.post(address + path, content=body).json() == response.json()
    assert response.json() == json.loads(blocks(text, "json")[0])
    assert commands == ["gusset audit show", "gusset audit verify"]
    shown = run(commands[0]).stdout.decode()
    run(commands[1])
    assert "api_key" in shown
    assert "the key is ***" in printed.read_text()
    assert not any(value in printed.read_text() + shown for value in ("the-first-", "the-second-"))


@pytest.mark.server
def test_the_reference_of_secrets_is_true(gusset: Cli, tmp_path: Path) -> None:
    """The model of docs/secrets.md says what the text beside it promises."""
    text = (ROOT / "docs" / "secrets.md").read_text()
    folder = tmp_path / "documented"
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text(blocks(text, "yaml")[0])
    (folder / "model" / "model.py").write_text(blocks(text, "python")[0])
    gusset("secret", "set", "hf-access-token", input="tökens-are-bytes".encode())
    with served(gusset, str(folder), errors=tmp_path / "errors") as (address, _):
        response = httpx.post(f"{address}/predict", json={}).json()

    assert response == {
        "text": 16,
        "bytes": 17,
        "default": "none",
        "set": ["hf_access_token"],
        "declared": ["hf_access_token", "db-password"],
        "printed": "'***'",
    }


@pytest.mark.server
def test_a_rotation_is_proven_as_documented(manager: Manager, tmp_path: Path) -> None:  # noqa: F811
    """The first commands of docs/rotation.md, from the login on, and what the last one prints."""
    text = (ROOT / "docs" / "rotation.md").read_text()
    start, replace = blocks(text, "bash")[:2]
    commands = [line.partition("#")[0].removesuffix("&").split() for line in start.splitlines()]
    init, store, serve = (command[1:] for command in commands[3:])
    laptop, folder = manager.laptop(tmp_path / "laptop"), str(tmp_path / "my-model")

    laptop(init[0], folder)
    laptop(*store, input=b"the-first-of-the-values")
    with served(laptop, folder, *serve[2:], errors=tmp_path / "errors"):
        done = laptop(*replace.split()[1:], input=b"the-second-of-the-values")
    assert (init[1], serve[:2]) == ("my-model", ["serve", "my-model"])
    assert f"```\n{done.stdout.decode().strip()}\n```" in text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(document: Path) -> None:
    """No dead link from one document to another, or to a picture."""
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text())
    inside = [link for link in links if "://" not in link]
    assert [link for link in inside if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_are_shown_exist(document: Path) -> None:
    """Every `gusset ...` in a code block or in backticks is a command, and has the options that are shown."""
    text = document.read_text()
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    shown = "\n".join([*blocks(text, "sh"), *blocks(text, "console"), *re.findall(r"`([^`\n]+)`", prose)])
    shown = re.sub(r"#.*", "", shown)  # comments are prose
    calls = re.findall(r"\bgusset ((?:[a-z]+|--\S+)[^\n|;&)]*)", shown)
    assert [call for call in calls if fault_of(call.split(" -- ")[0].split())] == []


def fault_of(words: list[str]) -> str | None:
    """The first word of a call that no command or option of gusset has."""
    from gusset.cli.commands import gusset

    command: click.Command = gusset
    context = click.Context(gusset)
    for word in words:
        word = word.strip("[],.'\"")
        if word.startswith("--"):
            options = {option for parameter in command.params for option in parameter.opts}
            if word.partition("=")[0] not in {*options, "--help", "--version"}:
                return word
        elif isinstance(command, click.Group) and word.replace("-", "").isalpha() and word.islower():
            found = command.get_command(context, word)
            if found is None and not command.invoke_without_command:
                return word
            command = found or command
    return None


def test_exit_statuses_are_documented() -> None:
    """docs/cli.md has one row for each status of the error tree, for success and for bugs, and no other row."""
    section = (ROOT / "docs" / "cli.md").read_text().partition("## Exit status")[2].partition("\n## ")[0]
    rows = [int(status) for status in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)]
    assert rows == sorted({0, errors.BUG.exit, *(outcome.exit for outcome in errors.OUTCOMES.values())})


def test_settings_are_documented() -> None:
    """docs/cli.md has each variable that gusset reads."""
    table = (ROOT / "docs" / "cli.md").read_text()
    assert [name for name in settings._VARIABLES.values() if name not in table] == []


def test_actions_of_the_audit_log_are_documented() -> None:
    """docs/manager.md explains each action, and none that does not exist."""
    section = (
        (ROOT / "docs" / "manager.md").read_text().partition("## The audit log")[2].partition("\n## ")[0]
    )
    assert sorted(re.findall(r"^\| `(\S+)` \|", section, re.MULTILINE)) == sorted(Action)


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").rglob("*.svg")), ids=lambda path: path.name)
def test_pictures_are_well_formed(picture: Path) -> None:
    """A browser shows them."""
    from xml.etree import ElementTree

    ElementTree.parse(picture)


def test_the_tests_that_contributing_selects_exist() -> None:
    """Each `pytest FILE -k WORD` that it shows runs a test."""
    shown = re.findall(r"pytest (tests/\S+\.py) -k (\w+)", (ROOT / "CONTRIBUTING.md").read_text())
    assert shown
    for file, word in shown:
        assert re.search(rf"^(?:async )?def test_\w*{word}", (ROOT / file).read_text(), re.MULTILINE), (
            file,
            word,
        )


def test_nothing_names_a_registry_or_a_machine() -> None:
    """Files of the repository speak of the project alone."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not files:
        pytest.skip("not a git checkout: there is no list of the repository's files")
    hosts = ["python" + "hosted", "pypi" + ".org", "registry.npm" + "js", "deb.debian" + ".org"]
    machines = [*hosts, "/ro" + "ot/"]
    options = ["--index" + "-url", "find" + "-links"]  # installing the models' requirements is about these
    readable = [file for file in files if (ROOT / file).suffix not in {".png", ".db"}]
    for file in readable:
        is_about_them = any(word in file for word in ("environment", "requirements", "build"))
        wrong = machines if is_about_them else [*machines, *options]
        text = (ROOT / file).read_text() if (ROOT / file).exists() else ""
        assert [word for word in wrong if word in text] == [], file


def test_the_schema_is_json(gusset: Cli) -> None:
    """`gusset schema` prints what an editor reads."""
    schema = json.loads(gusset("schema").stdout)
    assert "secrets" in schema["properties"]


def test_the_package_runs_as_a_module() -> None:
    """`python -m gusset --version` says the version that the package has."""
    from gusset import __version__

    done = subprocess.run([sys.executable, "-m", "gusset", "--version"], capture_output=True, text=True)
    assert done.stdout == f"gusset {__version__}\n"
