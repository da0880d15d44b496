"""The address of a manager: keys and values go there, so a wrong one is refused before anything is sent."""

from __future__ import annotations

from contextlib import closing

import pytest

from gusset.client.manager_client import ManagerClient, checked_url
from gusset.errors import UsageError
from gusset.secrets.value import SecretValue


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host",
        "https://",
        "https://[::1",
        "https://host:99999",
        "https://host:port",
        "host:8700",
        "https://manager..example",
        f"https://{'a' * 64}.example",
        "https://manager.ex\nample",
        "https://manager.example\u2028",
    ],
)
def test_what_is_not_an_http_address_is_refused_with_the_form_of_one(url: str) -> None:
    with pytest.raises(UsageError, match="https://HOST"):
        checked_url(url)


@pytest.mark.parametrize("url", ["https://\u2603.example", "https://xn--.example"])
def test_a_host_that_no_name_server_can_have_is_refused(url: str) -> None:
    """The rules of names in other alphabets are httpx's, so it is refused when it is used first."""
    with closing(ManagerClient(url, SecretValue(b"key"))) as client, pytest.raises(UsageError, match="HOST"):
        client.request("GET", "/v1/users/me")


def test_a_host_in_another_alphabet_is_accepted() -> None:
    assert checked_url("https://b\u00fccher.example") == "https://b\u00fccher.example"


def test_an_address_with_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(UsageError, match="password") as error:
        checked_url("https://user:hunter2@host")
    assert "hunter2" not in f"{error.value}{error.value.hint}"


def test_plain_http_is_refused_unless_it_stays_on_this_machine_or_is_asked_for() -> None:
    with pytest.raises(UsageError, match="plain HTTP"):
        checked_url("http://host:8700")
    assert checked_url("http://host:8700", insecure_http=True) == "http://host:8700"
    assert checked_url("http://[::1]:8700/") == "http://[::1]:8700"
