"""One secret after another version: replace, roll back, destroy, delete and undo, and who uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playwright.sync_api import expect

from tests.browser.conftest import Site, faults


def test_replacing_a_value_makes_the_next_version(site: Site) -> None:
    """From the row's link to the new version; the field is empty before and after."""
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
    assert faults(page) == []


def test_two_people_who_replace_at_once_do_not_overwrite_each_other(
    site: Site, open_site: Callable[..., Site], signed_in: Any
) -> None:
    """Who loaded the page before the other's version is told, and may then decide."""
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


def test_rolling_back_and_destroying(site: Site) -> None:
    """An older value is current again as a new version; a destroyed one is gone, its row stays."""
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
    assert faults(page) == []


def test_the_last_version_may_be_destroyed_and_the_page_says_so(site: Site) -> None:
    """A secret without a version is still there; a new value brings it back to life."""
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


def test_deleting_has_an_undo(site: Site) -> None:
    """One press takes it away, one brings it back, with its versions."""
    page = site.page
    site.add("deleted_once", "a value")
    site.row("deleted_once").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("status").filter(has_text="deleted_once was deleted")).to_be_visible()
    expect(site.row("deleted_once")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("status").filter(has_text="deleted_once was restored")).to_be_visible()
    expect(site.row("deleted_once")).to_contain_text("v1")
    assert site.stored("deleted_once") == b"a value"


def test_what_was_deleted_long_ago_is_listed_and_comes_back(site: Site) -> None:
    """Without the notice, too: deleted secrets have a list of their own."""
    page = site.page
    site.add("deleted_before", "a value")
    site.row("deleted_before").get_by_role("button", name="Delete").click()
    page.goto("/settings/secrets")
    page.get_by_role("link", name="Deleted secrets").click()
    expect(site.row("deleted_before")).to_contain_text("just now")
    assert faults(page) == []
    site.row("deleted_before").get_by_role("button", name="Restore").click()
    expect(site.row("deleted_before")).to_contain_text("v1")


def test_a_secret_in_use_is_deleted_only_when_that_is_meant(site: Site) -> None:
    """A running deployment would lose the value: the page names it, and asks once more."""
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


def test_a_secret_says_who_uses_it_and_what_they_hold(site: Site) -> None:
    """Deployments that declare it, their running replicas, and the versions these hold."""
    page = site.page
    site.add("held", "one")
    replica(site, "held", deployment="holder", version=1)
    site.add("held", "two")
    site.open("held")
    row = site.row("holder")
    expect(row).to_contain_text("1 running")
    expect(row).to_contain_text("v1")
    expect(page.get_by_text("config.yaml").first).to_be_visible()
    assert "held: null" in page.locator("#model-config").inner_text()
    assert 'self._secrets["held"]' in page.locator("#model-code").inner_text()
    assert '"TOKEN=$(cat /secrets/held) my-server"' in page.locator("#image-config").inner_text()


def test_note_and_expiry_are_changed_and_warned_of(site: Site) -> None:
    """Both are kept, shown in the list, and cleared again."""
    page = site.page
    site.add("renewed", "a value")
    site.open("renewed")
    page.get_by_label("Note").fill("ask the ml-bot team")
    page.get_by_label("Expires").fill("2020-01-31")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("This secret expired")).to_be_visible()
    assert faults(page) == []
    page.goto("/settings/secrets")
    expect(site.row("renewed")).to_contain_text("ask the ml-bot team")
    expect(site.row("renewed")).to_contain_text("expired")
    site.open("renewed")
    page.get_by_label("Note").fill("")
    page.get_by_label("Expires").fill("")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_contain_text("expiry date were saved")
    expect(page.get_by_text("This secret expired")).to_have_count(0)


def replica(site: Site, *names: str, deployment: str, version: int = 1) -> None:
    """A deployment that declares `names`, with one running replica that holds them."""
    with site.manager.client() as admin:
        made = admin.post("/v1/deployments", json={"name": deployment, "secrets": list(names)})
        assert made.status_code == 200, made.text
    with site.manager.client(made.json()["token"]) as client:
        told = client.put(
            "/v1/deployment/replicas/replica-1",
            json={"host": "gpu-1", "versions": dict.fromkeys(names, version)},
        )
        assert told.status_code == 200, told.text
