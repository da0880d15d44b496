"""The benchmarks, one after the other: python bench/run.py > figures.md

Some take many minutes. Not among them is `peers.py`, which takes half an hour by itself and first installs the
other servers from a package index.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PARTS = [  # with their arguments
    "startup.py",
    "manager.py",
    "rotation.py",
    "acknowledged.py SQLite",
    "acknowledged.py PostgreSQL",
    "watchers.py",
    "waiting.py",
    "pages.py",
    "proxy.py",
    "idle_image.py",
    "serving.py",
    "request_cpu.py",
    "soak.py",
    "ray_serve.py",
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
        name, *arguments = part.split()
        command = [sys.executable, str(Path(__file__).parent / name), *arguments]
        if subprocess.run(command, check=False).returncode:
            failed.append(part)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
