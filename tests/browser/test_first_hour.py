"""The first hour with a manager: set it up, add a secret, copy the lines for a model. Takes screenshots."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from playwright.sync_api import Browser, expect

from tests.browser.conftest import Site, accessibility_problems
from tests.browser.test_versions import replica
from tests.conftest import Cli, clean_environ
from tests.manager.conftest import ADMIN, PASSWORD, Manager

VALUE = "hf_" + "aB3dE6gH" * 5
WIDE = {"viewport": {"width": 1280, "height": 800}}


class NewManager(Manager):
    """A manager without accounts, which prints a setup link."""

    def __init__(self, gusset: Cli, folder: object) -> None:
        self.gusset, self.port, self.key = gusset, 0, ""
        self.log = folder / "manager.log"  # type: ignore[operator]
        command = [sys.executable, "-m", "gusset", "manager", "--port", "0", "--output", "json"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=gusset.environ, stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        started = json.loads(self.process.stdout.readline())
        self.address, self.setup = started["address"], started["setup"]


@pytest.fixture
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    folder = tmp_path_factory.mktemp("new")
    running = NewManager(
        Cli(folder / "home", clean_environ(folder / "home", folder / "settings.toml")), folder
    )
    yield running
    assert running.stop() == 0
    assert b"A bug in gusset" not in running.log.read_bytes(), running.log.read_text()


def test_the_setup_link_leads_to_the_first_declared_secret(
    open_site: Callable[..., Site], manager: NewManager, browser: Browser
) -> None:
    """Set up the manager, add a secret, copy config.yaml, create a key; the link then no longer works."""
    site = open_site(**WIDE, permissions=["clipboard-read", "clipboard-write"])
    page = site.page
    page.goto("/settings/secrets")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.goto(manager.setup)
    assert accessibility_problems(page) == []
    page.get_by_label("Email").fill(ADMIN)
    page.locator("#password").fill("too short")
    page.get_by_label("Repeat password").fill("too short")
    page.get_by_role("button", name="Create administrator").click()
    assert page.locator("#password").evaluate("field => field.validity.tooShort")
    page.locator("#password").fill(PASSWORD.decode())
    page.get_by_label("Repeat password").fill(PASSWORD.decode())
    page.get_by_role("button", name="Create administrator").click()

    expect(page.get_by_role("heading", name="No secrets yet")).to_be_visible()
    assert accessibility_problems(page) == []
    site.add("hf_access_token", VALUE)
    site.row("hf_access_token").get_by_role("link", name="hf_access_token", exact=True).click()
    page.get_by_role("button", name="Copy config.yaml").first.click()
    expect(page.get_by_role("button", name="Copied config.yaml")).to_be_visible()  # for a moment
    copied = page.evaluate("navigator.clipboard.readText()")
    assert yaml.safe_load(copied) == {"secrets": {"hf_access_token": None}}

    page.get_by_role("link", name="API keys").click()
    expect(page.get_by_role("heading", name="No API keys yet")).to_be_visible()  # setup creates no hidden key
    page.get_by_label("Name").fill("laptop")
    page.get_by_label("Administer").check()
    page.get_by_role("button", name="Create key").click()
    manager.key = page.locator("#new-key").inner_text()
    add_samples(site)
    page.goto("/settings/secrets")
    expect(site.row("openai-api-key")).to_contain_text("expires in 6 days")
    site.open("hf_access_token")
    site.screenshot("secret")
    phone = open_site(storage_state=site.context.storage_state(), **PHONE)
    phone.page.goto("/settings/secrets")
    phone.screenshot("secrets-phone")
    again = open_site()
    again.page.goto(manager.setup)
    expect(again.page.get_by_role("heading", name="Access denied")).to_be_visible()


PHONE = {"viewport": {"width": 360, "height": 780}, "device_scale_factor": 1.5}


def add_samples(site: Site) -> None:
    """Add more secrets and two deployments, for the screenshots."""
    soon = (datetime.now(UTC) + timedelta(days=6, hours=1)).isoformat()
    with site.manager.client() as admin:
        for name, note in (
            ("registry_password", "pull access for the images of team vision"),
            ("openai-api-key", None),
            ("gcp.service-account.json", "svc-models; ask the platform team"),
        ):
            body = {"name": name, "value": f"a value of {name}", "note": note}
            assert admin.post("/v1/secrets", json=body).status_code == 200
        updated = admin.patch("/v1/secrets/openai-api-key", json={"expires_at": soon})
        assert updated.status_code == 200, updated.text
    site.page.goto("/settings/secrets")
    site.add("hf_access_token", VALUE)
    replica(site, "hf_access_token", "registry_password", deployment="fill-mask", version=1)
    replica(site, "hf_access_token", deployment="embedder", version=2)
