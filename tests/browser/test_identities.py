"""Identities by the form, as an administrator adds and removes them."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.conftest import Site, accessibility_problems

ISSUER = "https://kubernetes.default.svc.cluster.local"


def test_an_identity_is_added_and_removed(site: Site) -> None:
    """The first one brings its issuer; the page is accessible with both."""
    page = site.page
    with site.manager.client() as client:
        client.post("/v1/deployments", json={"name": "ranker", "secrets": ["db_password"]})
    page.get_by_role("link", name="Identities").click()
    form = page.get_by_role("form", name="Add an identity")
    form.get_by_label("Name", exact=True).fill("ranker-prod")
    form.get_by_label("Deployment").select_option(label="default/ranker")
    form.get_by_label("Issuer").fill(ISSUER)
    form.get_by_label("Subject").fill("system:serviceaccount:prod:ranker")
    form.get_by_label("Other claims").fill("kubernetes.io/namespace=prod")
    form.get_by_role("button", name="Add identity").click()
    expect(page.get_by_role("alert")).to_contain_text("JSON Pointer")
    form.get_by_label("Other claims").fill("/kubernetes.io/namespace=prod")
    form.get_by_role("button", name="Add identity").click()
    expect(site.row("ranker-prod")).to_contain_text("system:serviceaccount:prod:ranker")
    site.screenshot("identities")
    assert accessibility_problems(page) == []
    site.row("ranker-prod").get_by_text("Remove", exact=False).first.click()
    site.row("ranker-prod").get_by_role("button", name="Remove identity").click()
    expect(page.get_by_role("status")).to_contain_text("ranker-prod was removed")
    page.get_by_role("button", name=f"Remove {ISSUER}").click()
    expect(page.get_by_role("status")).to_contain_text("was removed")
