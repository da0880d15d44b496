"""The page of one secret in a real browser: versions, deletion, usage, note and expiry date."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
from playwright.sync_api import expect

from tests.browser.conftest import Site, accessibility_problems
from tests.manager.conftest import Replica, lease


def test_replacing_a_value_adds_a_version(site: Site) -> None:
    """The field for the value is empty before and after."""
    site.add("replaced", "the first")
    site.row("replaced").get_by_role("link", name="Replace replaced").click()
    page = site.page
    expect(page.get_by_label("New value")).to_have_value("")
    page.get_by_label("New value").fill("the second")
    page.get_by_role("button", name="Replace").click()
    expect(page.get_by_role("status")).to_contain_text("replaced was replaced. Version 2 is current now")
    expect(site.row("v2")).to_contain_text("current")
    expect(page.get_by_label("New value")).to_have_value("")
    assert site.stored("replaced") == b"the second"
    assert "the first" not in page.content() and "the second" not in page.content()
    assert accessibility_problems(page) == []


def test_a_concurrent_replacement_is_not_overwritten(
    site: Site, open_site: Callable[..., Site], signed_in: Any
) -> None:
    """Whoever loaded the page before the other's version gets an error, and may submit again."""
    site.add("contested", "start")
    site.open("contested")
    other = open_site(storage_state=signed_in)
    other.open("contested")
    other.page.get_by_label("New value").fill("theirs")
    other.page.get_by_role("button", name="Replace").click()
    expect(other.row("v2")).to_contain_text("current")
    page = site.page
    page.get_by_label("New value").fill("mine")
    page.get_by_role("button", name="Replace").click()
    expect(page.get_by_role("alert")).to_contain_text("Contested is at version 2, not 1")
    assert site.stored("contested") == b"theirs"
    page.get_by_label("New value").fill("mine")
    page.get_by_role("button", name="Replace").click()
    expect(site.row("v3")).to_contain_text("current")
    assert site.stored("contested") == b"mine"


def test_versions_can_be_rolled_back_to_and_destroyed(site: Site) -> None:
    """Rolling back adds a version; a destroyed version stays in the list without actions."""
    page = site.page
    site.add("turned", "one")
    site.add("turned", "two")
    site.open("turned")
    site.row("v1").get_by_role("button", name="Roll back").click()
    expect(page.get_by_role("status")).to_contain_text("Version 1 is current again, as version 3")
    assert site.stored("turned") == b"one"
    site.row("v2").locator("summary").click()
    site.row("v2").get_by_role("button", name="Destroy v2").click()
    expect(page.get_by_role("status")).to_contain_text("Version 2 was destroyed")
    expect(site.row("v2")).to_contain_text("destroyed")
    assert site.row("v2").get_by_role("button").count() == 0
    assert accessibility_problems(page) == []


def test_destroying_the_last_version_warns(site: Site) -> None:
    """The secret stays, and a new value makes it usable again."""
    page = site.page
    site.add("emptied", "only one")
    site.open("emptied")
    site.row("v1").locator("summary").click()
    site.row("v1").get_by_role("button", name="Destroy v1").click()
    expect(page.get_by_role("status")).to_contain_text("emptied has no version left")
    expect(page.get_by_text("all versions are destroyed")).to_be_visible()
    page.get_by_label("New value").fill("anew")
    page.get_by_role("button", name="Replace").click()
    expect(site.row("v2")).to_contain_text("current")


def test_a_deletion_can_be_undone(site: Site) -> None:
    """The secret is restored with its versions."""
    page = site.page
    site.add("deleted_once", "a value")
    site.row("deleted_once").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("status").filter(has_text="deleted_once was deleted")).to_be_visible()
    expect(site.row("deleted_once")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("status").filter(has_text="deleted_once was restored")).to_be_visible()
    expect(site.row("deleted_once")).to_contain_text("v1")
    assert site.stored("deleted_once") == b"a value"


def test_deleted_secrets_are_listed_and_can_be_restored(site: Site) -> None:
    """After the notice with the undo button is gone."""
    page = site.page
    site.add("deleted_before", "a value")
    site.row("deleted_before").get_by_role("button", name="Delete").click()
    page.goto("/settings/secrets")
    page.get_by_role("link", name="Deleted secrets").click()
    expect(site.row("deleted_before")).to_contain_text("just now")
    assert accessibility_problems(page) == []
    site.row("deleted_before").get_by_role("button", name="Restore").click()
    expect(site.row("deleted_before")).to_contain_text("v1")


def test_deleting_a_secret_in_use_needs_a_confirmation(site: Site) -> None:
    """The page names the running deployment that would lose the value."""
    page = site.page
    site.add("in_use", "a value")
    replica(site, "in_use", deployment="fill-mask")
    page.reload()
    expect(site.row("in_use")).to_contain_text("fill-mask")
    site.row("in_use").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("status").filter(has_text="in use by fill-mask")).to_be_visible()
    expect(site.row("in_use")).to_have_count(1)
    page.get_by_role("button", name="Delete anyway").click()
    expect(page.get_by_role("status").filter(has_text="in_use was deleted")).to_be_visible()
    expect(site.row("in_use")).to_have_count(0)


def test_a_secrets_page_lists_the_deployments_that_use_it(site: Site) -> None:
    """With their running replicas and the versions these hold, and the lines to copy."""
    page = site.page
    site.add("held", "one")
    replica(site, "held", deployment="holder", version=1)
    site.add("held", "two")
    site.open("held")
    row = page.get_by_role("table", name="Used by").locator("tbody tr")
    expect(row).to_contain_text("1 running")
    expect(row).to_contain_text("v1")
    expect(page.get_by_text("config.yaml").first).to_be_visible()
    assert "held: null" in page.locator("#model-config").inner_text()
    assert 'self._secrets["held"]' in page.locator("#model-code").inner_text()
    assert '"TOKEN=$(cat /secrets/held) my-server"' in page.locator("#image-config").inner_text()


def test_a_note_and_an_expiry_date_can_be_set_and_cleared(site: Site) -> None:
    """Both appear in the list; an expired secret has a warning."""
    page = site.page
    site.add("renewed", "a value")
    site.open("renewed")
    page.get_by_label("Note").fill("ask the ml-bot team")
    page.get_by_label("Expires").fill("2020-01-31")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("This secret expired")).to_be_visible()
    assert accessibility_problems(page) == []
    page.goto("/settings/secrets")
    expect(site.row("renewed")).to_contain_text("ask the ml-bot team")
    expect(site.row("renewed")).to_contain_text("expired")
    site.open("renewed")
    page.get_by_label("Note").fill("")
    page.get_by_label("Expires").fill("")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_contain_text("expiry date were saved")
    expect(page.get_by_text("This secret expired")).to_have_count(0)


def replica(site: Site, *names: str, deployment: str, version: int = 1) -> Replica:
    """Register a deployment that declares `names`, with one running replica that holds them.

    It runs until its manager stops.
    """
    with site.manager.client() as admin:
        made = admin.post("/v1/deployments", json={"name": deployment, "secrets": list(names)})
        assert made.status_code == 200, made.text
    held = lease(site.manager.client(made.json()["token"]))
    reported = held.renew({"host": "gpu-1", "versions": dict.fromkeys(names, version)})
    assert reported.status_code == 200, reported.text
    threading.Thread(target=_keep_renewing, args=(held,), daemon=True).start()
    return held


def _keep_renewing(held: Replica) -> None:
    with contextlib.suppress(httpx.HTTPError):
        while held.renew({}).status_code == 200:
            time.sleep(5)
