"""Every behaviour, checked on `gusset serve` of its folder. docs/models.md is made from them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conformance.behaviours import Behaviour, behaviours, check_call
from tests.conftest import clean_environ
from tests.serving.conftest import eventually

ALL = behaviours()
DOCS = Path(__file__).parents[2] / "docs" / "models.md"
PATIENCE = 60.0
TITLES = {"openai": "OpenAI-style methods", "msgpack": "msgpack"}
BEGIN, END = "<!-- behaviours: begin -->\n", "<!-- behaviours: end -->\n"


@contextmanager
def served(behaviour: Behaviour, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Callable[[], str]]]:
    """`gusset serve` of the folder, and a function that returns its log so far."""
    folder = tmp_path / "model"
    shutil.copytree(behaviour.folder, folder, ignore=shutil.ignore_patterns("__pycache__"))
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name, value in behaviour.secrets.items():
        (secrets / name).write_text(value)
    log = tmp_path / "log"
    command = [sys.executable, "-m", "gusset", "serve", str(folder), "--port", "0", "--output", "json"]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*command, "--secrets-dir", str(secrets)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=clean_environ(tmp_path / "home", tmp_path / "settings.toml"),
        )
    try:
        yield process, log.read_text
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


@pytest.mark.parametrize("behaviour", ALL, ids=lambda behaviour: behaviour.name)
def test_the_model_behaves_as_documented(behaviour: Behaviour, tmp_path: Path) -> None:
    """The responses to its requests are the expected ones, or its start fails as expected."""
    with served(behaviour, tmp_path) as (process, log):
        assert process.stdout
        announced = process.stdout.readline()
        if behaviour.fails:
            assert process.wait(PATIENCE) == behaviour.fails["status"], log()
            assert behaviour.fails["text"] in log() + announced + process.stdout.read()
            return
        assert announced, log()
        for call in behaviour.calls:
            check_call(json.loads(announced)["address"], call)
        if behaviour.log is not None:
            expected = behaviour.log
            eventually(lambda: expected in log(), f"{expected} in the log")
        process.terminate()
        assert process.wait(PATIENCE) == 0, log()


def test_each_behaviour_has_its_own_position() -> None:
    """The positions give the order of the document."""
    assert [each.position for each in ALL] == list(range(1, len(ALL) + 1))


def test_the_document_lists_every_behaviour() -> None:
    """With GUSSET_WRITE_DOCS=1 the list in docs/models.md is written first."""
    groups: dict[str, list[str]] = {}
    for each in ALL:
        group = each.name.partition("-")[0]
        differs = f" *{each.truss}*" if each.truss else ""
        link = f"../tests/conformance/models/{each.name}/model/model.py"
        groups.setdefault(group, []).append(f"- {each.what}{differs} ([{each.name}]({link}))")
    shown = "\n\n".join(
        f"### {TITLES.get(group, group.capitalize())}\n\n" + "\n".join(lines)
        for group, lines in groups.items()
    )
    text = DOCS.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    expected = f"{before}{BEGIN}\n{shown}\n\n{END}{after}"
    if os.environ.get("GUSSET_WRITE_DOCS") == "1":
        DOCS.write_text(expected)
    assert DOCS.read_text() == expected, "write it: GUSSET_WRITE_DOCS=1 pytest tests/conformance -k document"
