"""The address of a manager: keys and values go there, so a wrong one is refused before anything is sent."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from gusset.client.manager_client import ManagerClient, checked_url
from gusset.errors import Unreachable, UsageError
from gusset.portable import write_private_file
from gusset.secrets.value import SecretValue
from tests.conftest import Cli


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


WRONG_VARIABLES = [
    ("HTTPS_PROXY", "ftp://me:hunter2pass@proxy"),
    ("ALL_PROXY", "http://me:hunter2pass@proxy:port"),
    ("SSL_CERT_FILE", "/no/such/file"),
]


@pytest.mark.parametrize(("name", "value"), WRONG_VARIABLES)
@pytest.mark.parametrize("words", [["secret", "list"], ["predict", "https://127.0.0.1:1", "--data", "{}"]])
def test_a_proxy_or_certificates_that_cannot_be_used_are_a_wrong_setting(
    gusset: Cli, tmp_path: Path, words: Sequence[str], name: str, value: str
) -> None:
    """It is named, and not repeated, since the URL of a proxy may have a password."""
    file = tmp_path / "key"
    write_private_file(file, b"a-key")
    settings = {"GUSSET_MANAGER": "https://127.0.0.1:1", "GUSSET_TOKEN_FILE": str(file)}
    printed = gusset(*words, status=2, **settings, **{name: value}).stderr
    assert b"that the environment names cannot be used" in printed and name.encode() in printed
    assert b"hunter2pass" not in printed


def test_a_proxy_whose_name_cannot_be_looked_up_does_not_respond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy..example")
    with (
        closing(ManagerClient("https://127.0.0.1:1", SecretValue(b"key"))) as client,
        pytest.raises(Unreachable, match="does not respond"),
    ):
        client.request("GET", "/v1/users/me")


def test_an_address_with_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(UsageError, match="password") as error:
        checked_url("https://user:hunter2@host")
    assert "hunter2" not in f"{error.value}{error.value.hint}"


def test_plain_http_is_refused_unless_it_stays_on_this_machine_or_is_asked_for() -> None:
    with pytest.raises(UsageError, match="plain HTTP"):
        checked_url("http://host:8700")
    assert checked_url("http://host:8700", insecure_http=True) == "http://host:8700"
    assert checked_url("http://[::1]:8700/") == "http://[::1]:8700"
