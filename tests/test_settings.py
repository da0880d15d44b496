"""Settings from the environment and the settings file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from platformdirs import user_cache_path, user_config_path, user_data_path

from gusset.portable import write_private_file
from gusset.settings import Settings, settings_file
from tests.conftest import Cli


@pytest.mark.parametrize("name", ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "HOME"])
@pytest.mark.parametrize("value", [None, "", "/absolute", "relative"])
def test_default_folders_are_those_of_platformdirs(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str | None
) -> None:
    """Though platformdirs is not imported where the rules of Linux apply."""
    for each in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.delenv(name, raising=False)
    if value is not None:
        monkeypatch.setenv(name, value)
    settings = Settings.load({"GUSSET_SETTINGS": "/none/settings.toml"})
    assert settings.home == user_data_path("gusset")
    assert settings.cache == user_cache_path("gusset")
    assert settings_file({}) == user_config_path("gusset") / "settings.toml"


NO_MANAGER = {"GUSSET_MANAGER": "http://127.0.0.1:1"}  # nothing responds there
KEY = b"gusset_key_aaaaaaaa_" + b"Zx81QqLm" * 5


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + KEY,
        (b"\xff\xfe" + KEY.decode().encode("utf-16-le")),
        KEY + b"\xe9",
        KEY + b"\n# mine\n",
    ],
    ids=["BOM", "UTF-16", "Latin-1", "two lines"],
)
@pytest.mark.parametrize("words", [["secret", "list"], ["exec", "--secret", "db", "--", "true"]])
def test_a_token_file_that_no_header_can_contain_is_refused(
    gusset: Cli, tmp_path: Path, words: Sequence[str], content: bytes
) -> None:
    """By its name, without a part of the key; `exec` reads it in another process."""
    file = tmp_path / "key"
    write_private_file(file, content)
    printed = gusset(*words, status=2, GUSSET_TOKEN_FILE=str(file), **NO_MANAGER).stderr
    assert f"error: the token file {file} does not contain just a key".encode() in printed
    assert b"Zx81" not in printed


def test_an_api_key_in_the_settings_that_no_header_can_contain_is_refused(gusset: Cli) -> None:
    file = Path(gusset.environ["GUSSET_SETTINGS"])
    write_private_file(file, b'manager = "http://127.0.0.1:1"\napi_key = "' + KEY + 'é"\n'.encode())
    printed = gusset("secret", "list", status=2).stderr
    assert f"error: the api_key in {file} is not a key".encode() in printed
    assert b"Zx81" not in printed


def test_an_identity_token_file_with_a_byte_order_mark_is_refused(gusset: Cli, tmp_path: Path) -> None:
    file = tmp_path / "identity"
    file.write_bytes(b"\xef\xbb\xbfeyJh.eyJh.eyJh")
    words = ["exec", "--secret", "db", "--identity-token-file", str(file), "--", "true"]
    printed = gusset(*words, status=2, **NO_MANAGER).stderr
    assert f"error: the identity token file {file} does not contain just a token".encode() in printed


def test_login_refuses_a_key_of_several_lines(gusset: Cli) -> None:
    """Before a request, which would fail as if the manager did not respond."""
    printed = gusset("login", NO_MANAGER["GUSSET_MANAGER"], input=KEY + b"\n# mine\n", status=2).stderr
    assert printed == b"error: this is not an API key\n"
