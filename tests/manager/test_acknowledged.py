"""Many rotations with `--wait` on two managers: none lost, none stale."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "bench" / "acknowledged.py"


def test_no_rotation_of_many_is_lost_or_stale(tmp_path: Path) -> None:
    """Small here; the whole size is `GUSSET_ROTATIONS=1000 GUSSET_REAL=8 GUSSET_CLIENTS=492`."""
    small = {"GUSSET_ROTATIONS": "5", "GUSSET_REAL": "2", "GUSSET_CLIENTS": "20"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "SQLite"],
        env={**os.environ, **{name: os.environ.get(name, value) for name, value in small.items()}},
        cwd=tmp_path,
        capture_output=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    assert b"| SQLite |" in done.stdout
