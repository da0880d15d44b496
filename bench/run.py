"""Every benchmark, one after the other: python bench/run.py > figures.md"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PARTS = [
    "startup.py",
    "manager.py",
    "rotation.py",
    "watchers.py",
    "waiting.py",
    "pages.py",
    "proxy.py",
    "serving.py",
    "vault.py",
    "lookup.py",
    "masking.py",
    "scan.py",
    "environments.py",
]

if __name__ == "__main__":
    failed = []
    for part in PARTS:
        print(f"\n## {part}", flush=True)
        if subprocess.run([sys.executable, str(Path(__file__).parent / part)], check=False).returncode:
            failed.append(part)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
