"""What the page's tests share: one real Chromium, and pages in it that may talk to the manager alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Response, Route, sync_playwright

from tests.conftest import Cli, clean_environ
from tests.manager.conftest import ADMIN, PASSWORD, Manager

IMAGES = Path(__file__).parents[2] / "docs" / "images"

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


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium, started once for these tests. Without one tests are skipped, in CI they fail.

    Not for the whole session: as long as Playwright runs, its thread has a running event loop, in which
    no other test could start its own.
    """
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


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    """One manager for the tests of a file: each uses names of its own."""
    folder = tmp_path_factory.mktemp("manager")
    gusset = Cli(folder / "home", clean_environ(folder / "home", folder / "settings.toml"))
    made = gusset("manager", "init", "--email", ADMIN, "--output", "json", input=PASSWORD)
    running = Manager(gusset, json.loads(made.stdout)["api_key"], folder)
    yield running
    assert running.stop() == 0
    assert b"A bug in gusset" not in running.log.read_bytes(), running.log.read_text()


class Site:
    """The manager's pages in one browser context of their own; what they ask for and say is kept."""

    def __init__(self, browser: Browser, manager: Manager, **options: Any) -> None:
        self.manager = manager
        self.context = browser.new_context(base_url=manager.address, **options)
        self.context.set_default_timeout(10_000)
        self.requested: list[str] = []
        self.kept: list[tuple[str, bytes, bytes]] = []
        self.said: list[str] = []
        self.answers: list[Response] = []
        self.context.on("request", lambda request: self.requested.append(request.url))
        self.context.on("response", lambda answer: self.answers.append(answer))
        # That a page answered 400 or 409 is what some tests are about; Chromium mentions it.
        self.context.on(
            "console",
            lambda message: (
                "the server responded with a status of 4" in message.text or self.said.append(message.text)
            ),
        )
        self.context.on("weberror", lambda error: self.said.append(str(error.error)))
        self.page = self.context.new_page()

    def sign_in(self, email: str = ADMIN, password: bytes = PASSWORD) -> Page:
        """As a person does it; the page of secrets comes next."""
        self.page.goto("/settings/secrets")
        self.page.get_by_label("Email").fill(email)
        self.page.get_by_label("Password").fill(password.decode())
        self.page.get_by_role("button", name="Sign in").click()
        self.page.get_by_role("heading", name="Secrets", exact=True).wait_for()
        return self.page

    def add(self, name: str, value: str) -> None:
        """A secret, by the form on the page of secrets."""
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Value").fill(value)
        self.page.get_by_role("button", name="Add secret").click()
        self.page.get_by_role("status").filter(has_text=f"{name} was").wait_for()

    def row(self, text: str) -> Locator:
        """The row of a table that has `text` in it."""
        return self.page.locator("tbody tr").filter(has_text=text)

    def open(self, name: str) -> None:
        """The page of one secret."""
        self.page.goto("/settings/secrets")
        self.page.get_by_role("link", name=name, exact=True).click()
        self.page.get_by_role("heading", name=name).wait_for()

    def stored(self, name: str) -> bytes:
        """What the vault has under that name, byte for byte."""
        code = (
            "import os, sys\n"
            "from gusset.settings import Settings\n"
            "from gusset.vault import open_vault\n"
            "with open_vault(Settings.load(os.environ)) as vault:\n"
            f"    value = vault.secrets.reveal({name!r}, actor='a test')\n"
            "sys.stdout.buffer.write(value.reveal())\n"
        )
        environ = self.manager.gusset.environ
        return subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, check=True
        ).stdout

    def keep_answers(self) -> None:
        """From now on `kept` has every answer: its address, headers and body."""

        def keep(route: Route) -> None:
            answer = route.fetch(max_redirects=0)
            headers = json.dumps(answer.headers_array).encode()
            self.kept.append((route.request.url, headers, answer.body()))
            route.fulfill(response=answer)

        self.context.route("**/*", keep)

    def picture(self, name: str) -> None:
        """A screenshot for the documents, when those are being made."""
        if os.environ.get("GUSSET_SCREENSHOTS") == "1":
            IMAGES.mkdir(exist_ok=True)
            self.page.screenshot(path=IMAGES / f"{name}.png", full_page=True)

    def close(self) -> None:
        self.context.unroute_all(behavior="ignoreErrors")
        self.context.close()


@pytest.fixture
def open_site(browser: Browser, manager: Manager) -> Iterator[Callable[..., Site]]:
    """Opens the manager's pages in a context of the given options; afterwards none may have complained."""
    sites: list[Site] = []

    def open_(**options: Any) -> Site:
        sites.append(Site(browser, manager, **options))
        return sites[-1]

    yield open_
    for site in sites:
        site.close()
        elsewhere = [url for url in site.requested if not url.startswith((manager.address, "data:"))]
        assert not elsewhere, f"a page asked another host: {elsewhere}"
        assert not site.said, f"the browser complained: {site.said}"


@pytest.fixture(scope="module")
def signed_in(browser: Browser, manager: Manager) -> Any:
    """The cookies of a session of the administrator's."""
    site = Site(browser, manager)
    site.sign_in()
    cookies = site.context.storage_state()
    site.close()
    return cookies


@pytest.fixture
def site(open_site: Callable[..., Site], signed_in: Any) -> Site:
    """The pages, with the administrator signed in."""
    opened = open_site(storage_state=signed_in)
    opened.page.goto("/settings/secrets")
    return opened


def faults(page: Page) -> list[str]:
    """What axe finds wrong with a page, for those who see, hear or move otherwise."""
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {[node['target'] for node in each['nodes']]}" for each in found]
