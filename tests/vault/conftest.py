"""A vault of its own for each test, as a person's first command makes it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gusset.settings import Settings
from gusset.vault import Vault, open_vault

MakeSettings = Callable[..., Settings]


def settings_in(home: Path, **changes: Any) -> Settings:
    """Settings of a vault that lies in `home` alone."""
    places = {
        "home": home,
        "cache": home / "cache",
        "database": f"sqlite:///{home / 'vault.db'}",
        "root_key_file": home / "root.key",
        "witness_file": home / "audit.witness",
    }
    return Settings(**(places | changes))


@pytest.fixture
def settings(home: Path) -> Settings:
    return settings_in(home)


@pytest.fixture
def vault(settings: Settings) -> Iterator[Vault]:
    with open_vault(settings) as opened:
        yield opened


@pytest.fixture
def sql(home: Path) -> Callable[..., list[Any]]:
    """Runs SQL in the database's file behind the vault's back, as an attacker would."""

    def run(statement: str, *values: Any) -> list[Any]:
        with closing(sqlite3.connect(home / "vault.db", timeout=30)) as connection, connection:
            return connection.execute(statement, values).fetchall()

    return run
