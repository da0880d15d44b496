"""pip's settings in uv's words."""

from __future__ import annotations

from pathlib import Path

from gusset.environments.index_settings import (
    constraint_files,
    identifying,
    pip_config_files,
    uv_settings,
)

PIP_CONF = """
[global]
index-url = https://mirror.test/simple
extra-index-url =
    https://a.test/simple
    https://b.test/simple
find-links = /wheels https://c.test/links
cert = /etc/ca.pem
trusted-host = mirror.test
unknown = x

[install]
constraint = /etc/limits.txt
no-index = false
pre = yes

[freeze]
timeout = 10
"""


def read_from(files: dict[str, str]) -> dict[str, str]:
    def read(path: Path) -> str:
        try:
            return files[str(path)]
        except KeyError:
            raise FileNotFoundError from None

    return uv_settings({"HOME": "/h"}, pip_config_files({"HOME": "/h"}, Path("/venv")), read)


def test_a_pip_conf_is_translated() -> None:
    """Indexes, links, certificates and constraints become variables of uv; other options are left out."""
    assert read_from({"/etc/pip.conf": PIP_CONF}) == {
        "UV_DEFAULT_INDEX": "https://mirror.test/simple",
        "UV_INDEX": "https://a.test/simple https://b.test/simple",
        "UV_FIND_LINKS": "/wheels,https://c.test/links",
        "SSL_CERT_FILE": "/etc/ca.pem",
        "UV_INSECURE_HOST": "mirror.test",
        "UV_CONSTRAINT": "/etc/limits.txt",
        "UV_PRERELEASE": "allow",
    }


def test_later_files_win_and_broken_ones_are_left_out() -> None:
    """The user's file beats the machine's, that of the virtual environment beats both."""
    files = {
        "/etc/xdg/pip/pip.conf": "[global]\nindex-url = https://xdg.test",
        "/etc/pip.conf": "no section",
        "/h/.config/pip/pip.conf": "[global]\nindex-url = https://home.test\ntimeout=5",
        "/venv/pip.conf": "[global]\nindex-url = https://venv.test",
    }
    assert read_from(files) == {"UV_DEFAULT_INDEX": "https://venv.test", "UV_HTTP_TIMEOUT": "5"}


def test_variables_win_and_settings_of_uv_stay() -> None:
    """PIP_* beats the files; what is set for uv itself is not replaced."""
    environ = {
        "PIP_INDEX_URL": "https://a.test",
        "PIP_FIND_LINKS": "/w",
        "PIP_NO_INDEX": "1",
        "UV_INDEX_URL": "https://own.test",
        "PIP_CONFIG_FILE": "/dev/null",
    }
    assert pip_config_files(environ, Path("/venv")) == []
    assert uv_settings(environ, [], lambda path: "") == {"UV_FIND_LINKS": "/w", "UV_NO_INDEX": "1"}


def test_only_settings_that_change_the_packages_identify_an_environment() -> None:
    """Timeouts and caches do not make another environment; indexes do."""
    environ = {"UV_DEFAULT_INDEX": "x", "UV_HTTP_TIMEOUT": "1", "UV_CACHE_DIR": "/c", "HOME": "/h"}
    assert identifying(environ) == {"UV_DEFAULT_INDEX": "x"}
    assert list(constraint_files({"UV_CONSTRAINT": "/a /b"})) == [Path("/a"), Path("/b")]
