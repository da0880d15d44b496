"""A rotation on the page of a secret: the bar, the replica that lags, and what a page without scripts shows."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Site, accessibility_problems
from tests.cli.test_serve import served, write_model
from tests.manager.conftest import lease
from tests.serving.conftest import eventually

CONFIG = "model_name: rotated-model\nsecrets:\n  rotated: null\n"
MODEL = """\
import os

class Model:
    def __init__(self, **kwargs):
        self._secrets = kwargs["secrets"]

    def predict(self, inputs):
        return {"pid": os.getpid(), "value": self._secrets["rotated"]}
"""


def replace(site: Site, name: str, value: str) -> None:
    site.open(name)
    site.page.get_by_label("New value").fill(value)
    site.page.get_by_role("button", name="Replace", exact=True).click()


def test_the_page_shows_the_worker_that_lags_and_then_that_all_have_acknowledged(
    site: Site, tmp_path: Path
) -> None:
    """Two workers, one of which is stopped: the bar stays at 0 of 1 until it goes on. Nothing is reloaded."""
    site.add("rotated", "the-first-value-of-it")
    manager = site.manager
    elsewhere = manager.laptop(tmp_path / "elsewhere")
    folder = write_model(tmp_path / "m", CONFIG, MODEL)
    with served(elsewhere, str(folder), "--workers", "2", errors=tmp_path / "err") as (address, _):
        workers: set[int] = set()

        def both_known() -> bool:
            workers.add(httpx.post(f"{address}/predict", json={}, trust_env=False).json()["pid"])
            return len(workers) == 2

        eventually(both_known)
        stopped = min(workers)
        os.kill(stopped, signal.SIGSTOP)
        replace(site, "rotated", "the-second-value-of-it")
        page = site.page
        rotation = page.locator("#rotation")
        expect(rotation).to_contain_text("Rotation to v2")
        expect(rotation).to_contain_text("0 of 1 replica acknowledged")
        expect(rotation.get_by_role("row").filter(has_text="rotated-model on")).to_contain_text("waiting")
        expect(rotation.get_by_role("progressbar")).to_have_attribute("value", "0")
        assert accessibility_problems(page) == []
        site.screenshot("rotation")
        os.kill(stopped, signal.SIGCONT)
        expect(rotation).to_contain_text("1 of 1 replica acknowledged")
        expect(rotation).to_contain_text("No replica uses an older version any more")
        expect(rotation.get_by_role("progressbar")).to_have_attribute("value", "1")


@pytest.mark.parametrize("scripts", [True, False])
def test_a_rotation_and_an_overlap_are_shown_with_and_without_scripts(
    open_site: Callable[..., Site], signed_in: Any, scripts: bool
) -> None:
    """Without scripts, a link loads the page again."""
    name = f"shown_{scripts}".lower()
    site = open_site(storage_state=signed_in, java_script_enabled=scripts)
    page = site.page
    page.goto("/settings/secrets")
    site.add(name, "the-first-value-of-it")
    with site.manager.client() as admin:
        made = admin.post("/v1/deployments", json={"name": f"d-{name}", "secrets": [name]}).json()
    with site.manager.client(made["token"]) as client:
        replica = lease(client)
        replica.renew({"host": "gpu-7"})
        site.open(name)
        page.get_by_label("New value").fill("the-second-value-of-it")
        page.get_by_label("Keep the previous version readable").select_option("for an hour")
        page.get_by_role("button", name="Replace", exact=True).click()
        rotation = page.locator("#rotation")
        expect(rotation).to_contain_text("0 of 1 replica acknowledged")
        expect(rotation).to_contain_text("Version 1 stays readable")
        expect(rotation).to_contain_text("gpu-7")
        replica.renew({"versions": {name: 2}})
        if not scripts:
            page.get_by_role("link", name="Refresh").click()
        expect(rotation).to_contain_text("1 of 1 replica acknowledged")
