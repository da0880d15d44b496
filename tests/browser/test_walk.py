"""A new user's path from an empty machine to a model with a rotated secret. Takes screenshots."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import Site
from tests.cli.test_serve import predict, served, write_model
from tests.conftest import Cli, clean_environ, leaks_in
from tests.manager.conftest import PASSWORD, Manager
from tests.serving.conftest import eventually

VALUE = "hf_" + "aB3dE6gH" * 5
NEW = "hf_" + "zY9xW8vU" * 5
MODEL = """\
import hashlib

{snippet}
    def predict(self, inputs):
        return {{"sha": hashlib.sha256(self._secrets["hf_access_token"].encode()).hexdigest()}}
"""


def sha(text: str) -> dict[str, str]:
    return {"sha": hashlib.sha256(text.encode()).hexdigest()}


@pytest.fixture
def machine(tmp_path: Path) -> Cli:
    return Cli(tmp_path / "home", clean_environ(tmp_path / "home", tmp_path / "settings.toml"))


def test_a_model_served_with_the_manager_receives_a_rotated_secret(
    browser: Browser, machine: Cli, tmp_path: Path
) -> None:
    """Set up, add a secret, copy the snippets, serve, predict, replace the value; all in the browser."""
    manager = Manager(machine, "", tmp_path)
    site = Site(browser, manager)
    site.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = site.page
    assert manager.link
    page.goto(manager.link)
    page.get_by_label("Email").fill("ada@example.com")
    page.locator("#password").fill(PASSWORD.decode())
    page.get_by_label("Repeat password").fill(PASSWORD.decode())
    page.get_by_role("button", name="Create administrator").click()
    page.get_by_role("heading", name="Secrets", exact=True).wait_for()
    site.screenshot("first")

    page.goto(manager.link)
    expect(page.get_by_label("Repeat password")).to_have_count(0)  # the link no longer works

    page.goto("/settings/secrets")
    site.add("hf_access_token", VALUE)
    site.open("hf_access_token")
    code = copied(site, "model.py")
    config = copied(site, "config.yaml")
    folder = write_model(tmp_path / "my-model", config=config, code=MODEL.format(snippet=code))

    page.goto("/settings/api-keys")
    page.get_by_label("Name").fill("laptop")
    page.get_by_role("button", name="Create key").click()
    key = page.locator("#new-key").inner_text()
    environ = machine.environ | {
        "GUSSET_HOME": str(tmp_path / "laptop"),
        "GUSSET_SETTINGS": str(tmp_path / "laptop.toml"),
    }
    laptop = Cli(tmp_path / "laptop", environ)
    laptop("login", manager.address, input=key.encode())

    with served(laptop, str(folder), "--manager", manager.address, errors=tmp_path / "err") as (address, _):
        assert predict(address).json() == sha(VALUE)
        site.open("hf_access_token")
        page.get_by_label("New value").fill(NEW)
        page.get_by_role("button", name="Replace").click()
        eventually(lambda: predict(address).json() == sha(NEW))
        page.goto("/settings/deployments")
        page.get_by_role("link", name="my-model").click()
        expect(site.row("running")).to_contain_text("hf_access_token v2")
        site.screenshot("deployment")
        page.goto("/settings/secrets")
        expect(site.row("hf_access_token")).to_contain_text("my-model")
        site.screenshot("secrets")
        page.emulate_media(color_scheme="dark")
        site.screenshot("secrets-dark")
        page.goto("/settings/audit")
        site.screenshot("audit")
        assert not leaks_in(page.content().encode(), VALUE.encode(), NEW.encode())
    site.close()
    assert manager.stop() == 0
    assert not leaks_in(
        manager.log.read_bytes() + (tmp_path / "err").read_bytes(), VALUE.encode(), NEW.encode()
    )


def copied(site: Site, title: str) -> str:
    """The clipboard's text after clicking a snippet's copy button."""
    box = site.page.locator(".code").filter(has_text=title).first
    box.get_by_role("button", name="Copy").click()
    expect(box.get_by_role("button", name="Copied")).to_be_visible()  # it is in the clipboard
    text: str = site.page.evaluate("navigator.clipboard.readText()")
    return text


@pytest.mark.slow
def test_the_same_works_with_commands_only(machine: Cli, tmp_path: Path) -> None:
    """init, login, secret set, serve, predict, secret set again, deployment show."""
    made = machine("manager", "init", "--email", "ada@example.com", "--output", "json", input=PASSWORD)
    manager = Manager(machine, json.loads(made.stdout)["api_key"], tmp_path)
    environ = machine.environ | {
        "GUSSET_HOME": str(tmp_path / "laptop"),
        "GUSSET_SETTINGS": str(tmp_path / "laptop.toml"),
    }
    laptop = Cli(tmp_path / "laptop", environ)
    laptop("login", manager.address, input=manager.key.encode())
    laptop("secret", "set", "hf_access_token", input=VALUE.encode())
    folder = tmp_path / "my-model"
    laptop("init", str(folder))
    (folder / "config.yaml").write_text("secrets:\n  hf_access_token: null\n")
    code = 'class Model:\n    def __init__(self, **kwargs):\n        self._secrets = kwargs["secrets"]\n'
    (folder / "model" / "model.py").write_text(MODEL.format(snippet=code))
    with served(laptop, str(folder), errors=tmp_path / "err") as (address, _):
        assert predict(address).json() == sha(VALUE)
        laptop("secret", "set", "hf_access_token", input=NEW.encode())
        eventually(lambda: predict(address).json() == sha(NEW))
        eventually(lambda: b"hf_access_token=2" in laptop("deployment", "show", "my-model").stdout)
    assert manager.stop() == 0
