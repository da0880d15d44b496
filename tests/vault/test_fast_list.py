"""The fast list of secrets equals the vault's own list, or is None."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import open_vault
from gusset.vault.services.fast_list import list_secrets


def settings_in(home: Path) -> Settings:
    return Settings.load({"GUSSET_HOME": str(home), "GUSSET_SETTINGS": str(home / "none.toml")})


def test_it_equals_the_list_of_the_open_vault(tmp_path: Path) -> None:
    """With deleted, destroyed and replaced secrets, with and without the deleted ones."""
    settings = settings_in(tmp_path / "a folder % with ünusual näme")
    with open_vault(settings) as vault:
        for name in ("b", "a", "c", "d"):
            vault.secrets.writer.set(name, SecretValue(b"value"), actor="alice", note=f"note of {name}")
        vault.secrets.writer.set("a", SecretValue(b"another"), actor="alice")
        vault.secrets.writer.delete("b", actor="alice")
        vault.secrets.writer.set("b", SecretValue(b"anew"), actor="alice")
        vault.secrets.writer.destroy("c", actor="alice")
        vault.secrets.writer.delete("d", actor="alice")

        for include_deleted in (False, True):
            quick = list_secrets(settings, include_deleted=include_deleted)
            assert quick == vault.secrets.reader.list(include_deleted=include_deleted)
            assert quick


def test_it_is_none_for_what_only_opening_the_vault_can_handle(tmp_path: Path) -> None:
    """No vault yet, another database, a damaged file: None, and nothing is created."""
    settings = settings_in(tmp_path / "home")
    assert list_secrets(settings) is None
    assert not settings.home.exists()
    assert list_secrets(replace(settings, database="postgresql://host/db")) is None

    settings.home.mkdir()
    (settings.home / "vault.db").write_bytes(b"no database" * 1000)
    assert list_secrets(settings) is None


def test_it_imports_none_of_the_large_libraries() -> None:
    """Neither SQLAlchemy nor cryptography: their imports take longer than the list."""
    script = "import sys, gusset.vault.services.fast_list as _; print([m for m in ('sqlalchemy', 'cryptography') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
