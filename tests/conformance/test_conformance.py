"""Every behaviour, through `gusset serve` of its folder; docs/models.md is made from them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conformance.behaviours import Behaviour, behaviours, make
from tests.conftest import clean_environ

ALL = behaviours()
DOCS = Path(__file__).parents[2] / "docs" / "models.md"
PATIENCE = 30.0
BEGIN, END = "<!-- behaviours: begin -->\n", "<!-- behaviours: end -->\n"


@contextmanager
def served(behaviour: Behaviour, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Callable[[], str]]]:
    """`gusset serve` of the folder, and what it has printed so far on standard error."""
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
def test_behaves(behaviour: Behaviour, tmp_path: Path) -> None:
    """The answers to its calls are as promised, or its start fails as promised."""
    with served(behaviour, tmp_path) as (process, log):
        assert process.stdout
        announced = process.stdout.readline()
        if behaviour.fails:
            assert process.wait(PATIENCE) == behaviour.fails["status"], log()
            assert behaviour.fails["text"] in log() + announced + process.stdout.read()
            return
        assert announced, log()
        for call in behaviour.calls:
            make(json.loads(announced)["address"], call)
        deadline = time.monotonic() + PATIENCE
        while behaviour.log and behaviour.log not in log() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (behaviour.log or "") in log()
        process.terminate()
        assert process.wait(PATIENCE) == 0, log()


def test_there_are_enough() -> None:
    assert len(ALL) >= 80


def test_docs_show_all() -> None:
    """docs/models.md has each of them; GUSSET_WRITE_DOCS=1 writes it."""
    groups: dict[str, list[str]] = {}
    for each in ALL:
        group = each.name.partition("-")[0]
        differs = f" *{each.truss}*" if each.truss else ""
        link = f"../tests/conformance/models/{each.name}/model/model.py"
        groups.setdefault(group, []).append(f"- {each.what}{differs} ([{each.name}]({link}))")
    shown = "\n\n".join(f"### {group.capitalize()}\n\n" + "\n".join(lines) for group, lines in groups.items())
    text = DOCS.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    expected = f"{before}{BEGIN}\n{shown}\n\n{END}{after}"
    if os.environ.get("GUSSET_WRITE_DOCS") == "1":
        DOCS.write_text(expected)
    assert DOCS.read_text() == expected, "make it anew: GUSSET_WRITE_DOCS=1 pytest tests/conformance -k docs"
