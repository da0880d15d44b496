"""Every benchmark, one after the other: python bench/run.py > figures.md"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PARTS = [
    "startup.py",
    "serving.py",
    "environments.py",
    "lookup.py",
    "vault.py",
    "masking.py",
    "manager.py",
    "rotation.py",
    "proxy.py",
    "scan.py",
]

if __name__ == "__main__":
    for part in PARTS:
        print(f"\n## {part}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).parent / part)], check=True)
