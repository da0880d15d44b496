"""Settings from the environment and the settings file."""

from __future__ import annotations

import pytest
from platformdirs import user_cache_path, user_config_path, user_data_path

from gusset.settings import Settings, settings_file


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
