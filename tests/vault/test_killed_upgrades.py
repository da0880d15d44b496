"""Upgrades of vaults with data that are killed: the vault is either as before, or upgraded as a whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.storage.revision import REVISION
from tests.newer_gusset import BASE, NEWER
from tests.vault.conftest import Sql, run_sql, settings_in, write_older_vault

# Opens a vault with SQLite, and dies before the statement with this number is executed: it may
# also be the COMMIT. Prints the number of all statements, and which of them is that COMMIT.
_OPENED = """
import os, signal, sqlite3, sys
from pathlib import Path
from gusset.vault import open_vault
from tests.vault.conftest import settings_in

seen, commits = 0, []
def count(statement):
    global seen
    seen += 1
    if seen == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    if statement == "COMMIT":
        commits.append(seen)

connect = sqlite3.connect
def traced(*args, **options):
    driver = connect(*args, **options)
    driver.set_trace_callback(count)
    return driver

sqlite3.connect = traced
with open_vault(settings_in(Path(sys.argv[1]))):
    pass
print(seen, commits[0])
"""

# The release after this one; it dies in its migration, or when all is written but the commit.
_UPGRADED = """
import os, signal, sys
from tests import newer_gusset

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

newer_gusset.revision.REVISION = newer_gusset.NEWER
if sys.argv.pop(1) == "migration":
    newer_gusset.MIGRATIONS["compatible"] += "    import os; os.kill(os.getpid(), 9)"
else:
    from gusset.vault import wiring
    wiring._create_or_sign = die
newer_gusset.main()
"""


def run(code: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=root,
    )


def shown(vault: Vault, name: str) -> bytes:
    return vault.secrets.delivery.reveal(name, actor="alice").reveal()


def check_older(home: Path) -> None:
    with open_vault(settings_in(home)) as vault:
        assert shown(vault, "plain") == b"first value of plain"
        assert shown(vault, "back") == b"back"
        assert len(vault.people.all()) == 5
        assert vault.audit.verify().problems == ()
        [record] = vault.audit.show(action="vault.sign")
        assert "differences" not in record.details


@pytest.mark.slow
@pytest.mark.sqlite("older releases had no other database")
def test_an_upgrade_of_an_older_vault_can_be_killed_at_any_statement(home: Path, tmp_path: Path) -> None:
    """The next opening makes it as if nothing had been: every value is there, and every row signed."""
    write_older_vault(tmp_path / "whole", "vault-0002-people")
    done = run(_OPENED, str(tmp_path / "whole"), "0")
    count, commit = map(int, done.stdout.split())
    assert 100 < commit < count, done.stderr
    write_older_vault(home, "vault-0002-people")
    url = settings_in(home).database
    records = run_sql(url, "SELECT count(*) FROM audit")
    for moment in [*range(commit // 8, commit, commit // 8), commit, commit + 1]:
        assert run(_OPENED, str(home), str(moment)).returncode == -signal.SIGKILL
        upgraded = moment > commit
        found = run_sql(url, "SELECT version_num FROM alembic_version")
        assert found == [(REVISION if upgraded else "0002",)]
        assert (run_sql(url, "SELECT count(*) FROM audit") == records) is not upgraded
        copy = tmp_path / f"killed-{moment}"
        shutil.copytree(home, copy)
        check_older(copy)
    check_older(home)


@pytest.mark.sqlite("older releases had no other database")
def test_an_upgrade_that_is_killed_before_it_writes_the_witness_file_is_whole(home: Path) -> None:
    """The checkpoint is in the database; the witness file gets the next one."""
    write_older_vault(home)
    before = (home / "audit.witness").read_bytes()
    killed = (
        "import gusset.vault.wiring as wiring, os\n"
        "wiring.WitnessFile.add = lambda *_: os.kill(os.getpid(), 9)\n"
    )
    assert run(killed + _OPENED, str(home), "0").returncode == -signal.SIGKILL
    assert (home / "audit.witness").read_bytes() == before
    assert run_sql(settings_in(home).database, "SELECT version_num FROM alembic_version") == [(REVISION,)]
    with open_vault(settings_in(home)) as vault:
        assert shown(vault, "plain") == b"first value of plain"
        vault.secrets.writer.set("plain", SecretValue(b"new"), actor="alice")
        assert vault.audit.verify().problems == ()
    assert (home / "audit.witness").read_bytes() != before


@pytest.fixture
def upgrade(settings: Settings) -> Callable[..., int]:
    """Runs `gusset manager migrate` of the next release; returns its status."""
    environ = {"GUSSET_HOME": str(settings.home), "GUSSET_DATABASE": settings.database}

    def upgrading(moment: str | None = None) -> int:
        words = ("compatible", "manager", "migrate")
        if moment is None:
            return run("from tests.newer_gusset import main; main()", *words, **environ).returncode
        return run(_UPGRADED, moment, *words, **environ).returncode

    return upgrading


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["migration", "commit"])
def test_a_killed_upgrade_leaves_the_vault_to_both_releases(
    settings: Settings, upgrade: Callable[..., int], sql: Sql, moment: str
) -> None:
    """This release goes on with it as it was; then the next one upgrades it, and both use it."""
    with open_vault(settings) as vault:
        vault.people.create_first("alice@example.com", SecretValue(b"correct horse"), actor="root")
        vault.secrets.writer.set("x", SecretValue(b"kept"), actor="alice")
    assert upgrade(moment) == -signal.SIGKILL
    assert sql("SELECT version_num FROM alembic_version") == [(BASE,)]
    with open_vault(settings) as vault:
        assert vault.schema()[0] == BASE
        assert shown(vault, "x") == b"kept"
        vault.secrets.writer.set("y", SecretValue(b"written after that"), actor="alice")
        assert vault.audit.verify().problems == ()
    assert upgrade() == 0
    with open_vault(settings) as vault:
        assert vault.schema() == (NEWER, BASE)
        assert (shown(vault, "x"), shown(vault, "y")) == (b"kept", b"written after that")
        assert vault.audit.verify().problems == ()
