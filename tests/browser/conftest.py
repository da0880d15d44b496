"""Fixtures for tests in a real browser: one Chromium, whose pages may only request the manager."""

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
from playwright.sync_api import Browser, Locator, Page, Response, Route, expect, sync_playwright

from tests.conftest import Cli, clean_environ
from tests.manager.conftest import ADMIN, PASSWORD, Manager
from tests.serving.conftest import PATIENCE
from tests.system import skip_if

expect.set_options(timeout=1000 * PATIENCE)

IMAGES = Path(__file__).parents[2] / "docs" / "images"

# Chromium without a window, which takes about a third of the processor time, or the whole browser.
NAMES = ("chromium-headless-shell", "chromium")
# The first two are needed in a container without a GPU; the others prevent background requests.
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
    """The path of Chromium."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium, started once for these tests. Without it they are skipped; in CI they fail.

    It does not have the scope of the session: while Playwright runs, its thread has a running event loop,
    and other tests could not start theirs.
    """
    where = chromium()
    if where is None:
        skip_if("Chromium is not installed: run `make system-deps` as root, on Debian")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=where, headless=True, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    """One manager for the tests of a file, each of which uses its own names."""
    folder = tmp_path_factory.mktemp("manager")
    gusset = Cli(folder / "home", clean_environ(folder / "home", folder / "settings.toml"))
    made = gusset("manager", "init", "--email", ADMIN, "--output", "json", input=PASSWORD)
    running = Manager(gusset, json.loads(made.stdout)["api_key"], folder)
    yield running
    assert running.stop() == 0
    assert b"A bug in gusset" not in running.log.read_bytes(), running.log.read_text()


class Site:
    """The manager's pages in their own browser context; records requests, responses and console messages."""

    def __init__(self, browser: Browser, manager: Manager, **options: Any) -> None:
        self.manager = manager
        self.context = browser.new_context(base_url=manager.address, **options)
        self.context.set_default_timeout(1000 * PATIENCE)
        self.requested: list[str] = []
        self.kept: list[tuple[str, bytes, bytes]] = []
        self.messages: list[str] = []
        self.responses: list[Response] = []
        self.context.on("request", lambda request: self.requested.append(request.url))
        self.context.on("response", lambda response: self.responses.append(response))
        # Chromium logs responses with 400 or 409, which some tests provoke.
        self.context.on(
            "console",
            lambda message: (
                "the server responded with a status of 4" in message.text
                or self.messages.append(message.text)
            ),
        )
        self.context.on("weberror", lambda error: self.messages.append(str(error.error)))
        self.page = self.context.new_page()

    def sign_in(self, email: str = ADMIN, password: bytes = PASSWORD) -> Page:
        """Sign in by the form, and wait for the page of secrets."""
        self.page.goto("/settings/secrets")
        self.page.get_by_label("Email").fill(email)
        self.page.get_by_label("Password").fill(password.decode())
        self.page.get_by_role("button", name="Sign in").click()
        self.page.get_by_role("heading", name="Secrets", exact=True).wait_for()
        return self.page

    def add(self, name: str, value: str) -> None:
        """Add a secret by the form."""
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Value").fill(value)
        self.page.get_by_role("button", name="Add secret").click()
        self.page.get_by_role("status").filter(has_text=f"{name} was").wait_for()

    def row(self, text: str) -> Locator:
        """The table row that contains `text`."""
        return self.page.locator("tbody tr").filter(has_text=text)

    def open(self, name: str) -> None:
        """Open the page of one secret."""
        self.page.goto("/settings/secrets")
        self.page.get_by_role("link", name=name, exact=True).click()
        self.page.get_by_role("heading", name=name).wait_for()

    def stored(self, name: str) -> bytes:
        """The exact bytes in the vault under this name."""
        code = (
            "import os, sys\n"
            "from gusset.settings import Settings\n"
            "from gusset.vault import open_vault\n"
            "with open_vault(Settings.load(os.environ)) as vault:\n"
            f"    value = vault.secrets.delivery.reveal({name!r}, actor='a test')\n"
            "sys.stdout.buffer.write(value.reveal())\n"
        )
        environ = self.manager.gusset.environ
        return subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, check=True
        ).stdout

    def keep_responses(self) -> None:
        """From now on record every response in `kept`: its URL, headers and body."""

        def keep(route: Route) -> None:
            response = route.fetch(max_redirects=0)
            headers = json.dumps(response.headers_array).encode()
            self.kept.append((route.request.url, headers, response.body()))
            route.fulfill(response=response)

        self.context.route("**/*", keep)

    def screenshot(self, name: str) -> None:
        """Take a screenshot for the documents, if GUSSET_SCREENSHOTS=1."""
        if os.environ.get("GUSSET_SCREENSHOTS") == "1":
            IMAGES.mkdir(exist_ok=True)
            self.page.screenshot(path=IMAGES / f"{name}.png", full_page=True)

    def close(self) -> None:
        self.context.unroute_all(behavior="ignoreErrors")
        self.context.close()


@pytest.fixture
def open_site(browser: Browser, manager: Manager) -> Iterator[Callable[..., Site]]:
    """Opens the pages in a new context; fails if they requested other hosts or logged errors."""
    sites: list[Site] = []

    def open_(**options: Any) -> Site:
        sites.append(Site(browser, manager, **options))
        return sites[-1]

    yield open_
    for site in sites:
        site.close()
        elsewhere = [url for url in site.requested if not url.startswith((manager.address, "data:"))]
        assert not elsewhere, f"a page requested another host: {elsewhere}"
        assert not site.messages, f"the browser logged: {site.messages}"


@pytest.fixture(scope="module")
def signed_in(browser: Browser, manager: Manager) -> Any:
    """The cookies of an administrator's session."""
    site = Site(browser, manager)
    site.sign_in()
    cookies = site.context.storage_state()
    site.close()
    return cookies


@pytest.fixture
def site(open_site: Callable[..., Site], signed_in: Any) -> Site:
    """The page of secrets, with an administrator signed in."""
    opened = open_site(storage_state=signed_in)
    opened.page.goto("/settings/secrets")
    return opened


def accessibility_problems(page: Page) -> list[str]:
    """The accessibility problems that axe finds in a page."""
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {[node['target'] for node in each['nodes']]}" for each in found]
