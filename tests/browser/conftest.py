"""What the page's tests share: one real Chromium, and pages in it that may talk to the manager alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

DEBIANS = Path("/usr/bin/chromium")
# Beside the first two, which a container without a GPU needs: nothing that speaks up by itself.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str | None:
    """Where Chromium is: Debian's, else whichever is on PATH."""
    return str(DEBIANS) if DEBIANS.is_file() else shutil.which("chromium")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, started once for each worker. Without one tests are skipped, in CI they fail."""
    where = chromium()
    if where is None:
        why = "there is no Chromium here: `make system-deps` installs it (as root, on Debian or Ubuntu)"
        if os.environ.get("CI") == "1":
            pytest.fail(why)
        pytest.skip(why)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=where, headless=True, args=ARGUMENTS)
        yield running
        running.close()
