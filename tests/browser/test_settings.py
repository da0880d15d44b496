"""The other pages in a real browser: API keys, people and teams, deployments, audit log, account."""

from __future__ import annotations

from collections.abc import Callable

import httpx
from playwright.sync_api import expect

from tests.browser.conftest import Site, accessibility_problems
from tests.browser.test_versions import replica
from tests.manager.conftest import ADMIN, PASSWORD


def test_an_api_key_is_shown_once_and_works_until_revoked(site: Site) -> None:
    """A reload neither shows it again nor creates a second one."""
    page = site.page
    page.get_by_role("link", name="API keys").click()
    page.get_by_label("Name").fill("laptop")
    page.get_by_role("button", name="Create key").click()
    key = page.locator("#new-key").inner_text()
    assert accessibility_problems(page) == []
    assert can_list(site, key) == 200
    page.reload()
    expect(page.locator("#new-key")).to_have_count(0)
    expect(site.row("laptop")).to_have_count(1)
    site.row("laptop").locator("summary").click()
    site.row("laptop").get_by_role("button", name="Revoke key").click()
    expect(site.row("laptop")).to_contain_text("revoked")
    assert can_list(site, key) == 401
    assert key not in page.content()


def can_list(site: Site, key: str) -> int:
    with site.manager.client(key) as client:
        return client.get("/v1/secrets").status_code


def test_an_api_key_has_the_selected_scopes(site: Site) -> None:
    """A key without any scope is refused."""
    page = site.page
    page.goto("/settings/api-keys")
    page.get_by_label("Name").fill("reader")
    for scope in ("Change secrets", "Manage deployments"):
        page.get_by_label(scope).uncheck()
    page.get_by_role("button", name="Create key").click()
    key = page.locator("#new-key").inner_text()
    with site.manager.client(key) as client:
        refused = client.post("/v1/secrets", json={"name": "x", "value": "y"})
    assert (can_list(site, key), refused.status_code) == (200, 403)
    for scope in ("View secrets", "Change secrets", "Manage deployments"):
        page.get_by_label(scope).uncheck()
    page.get_by_label("Name").fill("nothing")
    page.get_by_role("button", name="Create key").click()
    expect(page.get_by_role("alert")).to_contain_text("A key needs at least one scope")


def test_an_invited_person_chooses_a_password_and_sees_what_members_see(
    site: Site, open_site: Callable[..., Site]
) -> None:
    """The link is shown once. Disabling the person ends their session."""
    page = site.page
    page.get_by_role("link", name="People").click()
    page.get_by_label("Email").fill("bob@example.com")
    page.get_by_role("button", name="Create invitation").click()
    link = page.locator("#new-link").inner_text()
    expect(site.row("bob@example.com")).to_contain_text("invited")
    assert accessibility_problems(page) == []

    guest = open_site()
    guest.page.goto(link)
    expect(guest.page.get_by_text("bob@example.com")).to_be_visible()
    assert accessibility_problems(guest.page) == []
    guest.page.locator("#password").fill("a password of bob's")
    guest.page.get_by_label("Repeat password").fill("another password")
    guest.page.get_by_role("button", name="Save and sign in").click()
    expect(guest.page.get_by_role("alert")).to_contain_text("not the same")
    guest.page.locator("#password").fill("a password of bob's")
    guest.page.get_by_label("Repeat password").fill("a password of bob's")
    guest.page.get_by_role("button", name="Save and sign in").click()
    expect(guest.page.get_by_role("heading", name="Secrets", exact=True)).to_be_visible()
    expect(guest.page.get_by_role("link", name="People")).to_have_count(0)
    guest.page.goto("/settings/people")
    expect(guest.page.get_by_role("heading", name="Not allowed")).to_be_visible()

    site_url = page.url.split("/settings")[0]
    guest.page.goto("/settings/api-keys")
    guest.page.get_by_label("Name").fill("laptop")
    guest.page.get_by_role("button", name="Create key").click()
    key = guest.page.locator("#new-key").inner_text()
    made = httpx.post(
        f"{site_url}/v1/deployments",
        json={"name": "bobs-model", "secrets": ["x"]},
        headers={"Authorization": f"Bearer {key}"},
    )
    assert made.status_code == 200, made.text

    page.reload()
    site.row("bob@example.com").get_by_role("button", name="Make admin").click()
    expect(page.get_by_role("status")).to_contain_text("bob@example.com is now admin")
    site.row("bob@example.com").get_by_role("button", name="Disable").click()
    expect(page.get_by_role("alert")).to_contain_text("bobs-model")
    assert accessibility_problems(page) == []
    page.get_by_role("button", name="Disable and revoke them").click()
    page.goto("/settings/deployments")
    page.get_by_role("link", name="bobs-model").click()
    page.locator(".head summary").click()
    page.get_by_role("button", name="Remove deployment").click()
    page.goto("/settings/people")
    expect(site.row("bob@example.com")).to_contain_text("disabled")
    guest.page.goto("/settings/secrets")
    expect(guest.page.get_by_role("heading", name="Sign in")).to_be_visible()
    guest.page.goto(link)
    expect(guest.page.get_by_role("heading", name="Access denied")).to_be_visible()


def test_each_team_has_its_own_secrets(site: Site) -> None:
    """A person in two teams switches between their secrets."""
    page = site.page
    page.goto("/settings/people")
    page.get_by_label("New team").fill("research")
    page.get_by_role("button", name="Create team").click()
    page.get_by_label("Add to research").select_option(label=ADMIN)
    page.locator(".team").filter(has_text="research").get_by_role("button", name="Add").click()
    expect(page.get_by_role("button", name=f"Remove {ADMIN} from research")).to_be_visible()
    assert accessibility_problems(page) == []
    page.goto("/settings/secrets")
    site.add("of_default", "a value")
    page.get_by_label("Team").select_option(label="research")
    expect(page.get_by_role("heading", name="No secrets yet")).to_be_visible()
    assert accessibility_problems(page) == []
    site.add("of_research", "another value")
    expect(site.row("of_default")).to_have_count(0)
    page.get_by_label("Team").select_option(label="default")
    expect(site.row("of_default")).to_have_count(1)
    expect(site.row("of_research")).to_have_count(0)


def test_a_new_setup_link_replaces_the_old_one(site: Site, open_site: Callable[..., Site]) -> None:
    """A reload does not create another one."""
    page = site.page
    page.goto("/settings/people")
    page.get_by_label("Email").fill("carol@example.com")
    page.get_by_role("button", name="Create invitation").click()
    old = page.locator("#new-link").inner_text()
    site.row("carol@example.com").get_by_role("button", name="New link").click()
    expect(page.locator("#new-link")).not_to_have_text(old)
    new = page.locator("#new-link").inner_text()
    page.reload()
    expect(page.get_by_role("heading", name="People", exact=True)).to_be_visible()
    expect(page.locator("#new-link")).to_have_count(0)
    guest = open_site()
    guest.page.goto(old)
    expect(guest.page.get_by_role("heading", name="Access denied")).to_be_visible()
    guest.page.goto(new)
    expect(guest.page.get_by_text("carol@example.com")).to_be_visible()


def test_administrators_cannot_change_their_own_account(site: Site, open_site: Callable[..., Site]) -> None:
    """The page has no buttons for it, so at least one administrator remains."""
    page = site.page
    page.goto("/settings/people")
    expect(site.row(ADMIN).get_by_role("button")).to_have_count(0)


def test_a_deployments_page_updates_the_versions_that_replicas_hold(site: Site) -> None:
    """Without a reload; an outdated version is marked."""
    page = site.page
    page.get_by_role("link", name="Deployments").click()
    expect(page.get_by_role("heading", name="No deployments yet")).to_be_visible()
    assert accessibility_problems(page) == []
    site.page.goto("/settings/secrets")
    site.add("watched", "one")
    site.add("watched", "two")
    running = replica(site, "watched", deployment="live", version=1)
    page.goto("/settings/deployments")
    expect(site.row("live")).to_contain_text("1 running")
    assert accessibility_problems(page) == []
    page.get_by_role("link", name="live", exact=True).click()
    expect(page.locator("#live .warning")).to_have_text("watched v1")
    assert accessibility_problems(page) == []
    running.renew({"versions": {"watched": 2}})
    expect(page.locator("#live .pill.on")).to_have_text("watched v2")
    page.locator(".head summary").click()
    page.get_by_role("button", name="Remove deployment").click()
    expect(page.get_by_role("status")).to_contain_text("live was removed")


def test_the_audit_log_can_be_filtered_verified_and_exported(site: Site) -> None:
    """Filters apply while typing; the export has every record as JSON Lines."""
    page = site.page
    site.add("audited", "a value")
    page.get_by_role("link", name="Audit log").click()
    added = page.locator("tbody tr").filter(has_text="audited")
    expect(added).to_contain_text("secret.create")
    expect(added).to_contain_text(ADMIN)
    expect(added).to_contain_text("127.0.0.1")
    assert accessibility_problems(page) == []
    page.get_by_label("Action", exact=True).press_sequentially("SESSION.")
    expect(page.locator("tbody tr").filter(has_text="secret.create")).to_have_count(0)
    expect(page.locator("tbody tr").first).to_contain_text("session.create")
    assert page.url.endswith("action=SESSION.&target=&outcome=")
    page.get_by_role("button", name="Verify").click()
    expect(page.get_by_role("status").filter(has_text="The audit log is intact")).to_be_visible()
    page.goto(page.url)
    expect(page.get_by_role("heading", name="Audit log")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Export").click()
    lines = download.value.path().read_text().splitlines()
    assert any('"secret.create"' in line and '"audited"' in line for line in lines)


def test_changing_the_password_needs_the_current_one_and_ends_other_sessions(
    open_site: Callable[..., Site], site: Site
) -> None:
    """Afterwards the old password no longer works."""
    with site.manager.client() as admin:
        team = admin.get("/v1/teams").json()["teams"][0]["id"]
        made = admin.post("/v1/people", json={"email": "eve@example.com", "team_ids": [team]})
    one = open_site()
    one.page.goto(made.json()["link"])
    one.page.locator("#password").fill(PASSWORD.decode())
    one.page.get_by_label("Repeat password").fill(PASSWORD.decode())
    one.page.get_by_role("button", name="Save and sign in").click()
    other = open_site()
    other.sign_in("eve@example.com")
    page = one.page
    page.get_by_role("link", name="Account").click()
    assert accessibility_problems(page) == []
    for now, new in (("not the old one", "a new long password"), (PASSWORD.decode(), "a new long password")):
        page.get_by_label("Current password").fill(now)
        page.locator("#new").fill(new)
        page.get_by_label("Repeat new password").fill(new)
        page.get_by_role("button", name="Change password").click()
        if now != PASSWORD.decode():
            expect(page.get_by_role("alert")).to_contain_text("That is not your current password")
    expect(page.get_by_role("status")).to_contain_text("Your password was changed")
    other.page.reload()
    expect(other.page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    one.page.get_by_label("Email").fill("eve@example.com")
    one.page.locator("#password").fill(PASSWORD.decode())
    one.page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("or the password is wrong")
    one.page.locator("#password").fill("a new long password")
    one.page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Secrets", exact=True)).to_be_visible()
