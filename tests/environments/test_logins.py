"""Logins for package indexes from secrets: the installation uses them, and nothing keeps them."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gusset.environments.logins import login_files, pip_to_uv
from gusset.environments.plan import FileLocation, LoginFile
from gusset.errors import ConfigInvalid, Denied, GussetError
from tests.environments.conftest import Index, Making
from tests.environments.packages import project, wheel

PASSWORD = "hunter22-of-the-index"
FORMS = (PASSWORD.encode(), base64.b64encode(f"user:{PASSWORD}".encode()).rstrip(b"="))


def login(secret: str, kind: str) -> LoginFile:
    location = FileLocation(file="config.yaml", line=7, key=f"build.secret_to_path_mapping.{secret}")
    return LoginFile(secret=secret, kind=kind, location=location)


def with_login(url: str) -> str:
    return url.replace("://", f"://user:{PASSWORD}@")


Content = Callable[[Index, Index], str]
CONTENTS: dict[str, Content] = {
    ".netrc": lambda private, public: (
        f"machine {urlsplit(private.url).hostname} login user password {PASSWORD}\n"
    ),
    "pip.conf": lambda private, public: (
        f"[global]\nindex-url = {public.url}\nextra-index-url =\n  {with_login(private.url)}\n"
    ),
    "uv.toml": lambda private, public: (
        f'[[index]]\nurl = "{with_login(private.url)}"\n\n[[index]]\nurl = "{public.url}"\ndefault = true\n'
    ),
}


@pytest.fixture
def private(private_index: Index, tmp_path: Path) -> Index:
    """An index with a login that has one package, which needs one of the public index."""
    private_index.login = f"user:{PASSWORD}"
    private_index.add(wheel(tmp_path, "inner", requires=["outer"]))
    return private_index


def assert_nowhere(folder: Path, *texts: object) -> None:
    """The password is in no file of a folder and in none of the texts, in no form."""
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_relative_to(folder / "private"):
            data = file.read_bytes()
            assert not any(form in data for form in FORMS), file
    for text in texts:
        assert not any(form.decode() in repr(text) for form in FORMS)


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_login_from_a_secret_is_used_and_not_kept(
    make: Making, index: Index, private: Index, tmp_path: Path, kind: str
) -> None:
    """Not in the arguments and variables of uv, the environment, direct_url.json, uv's cache or its output."""
    index.add(wheel(tmp_path, "outer"))
    make.logins = {"index_login": CONTENTS[kind](private, index).encode()}
    seen = tmp_path / "seen"
    wrapper = tmp_path / "uv"
    wrapper.write_text(
        f'#!/bin/sh\ncat /proc/$$/cmdline /proc/$$/environ >> {seen}\nexec {make.program} "$@"\n'
    )
    wrapper.chmod(0o755)
    make.program = str(wrapper)
    lines = ["inner"] if kind != ".netrc" else [f"--extra-index-url {private.url}", "inner"]

    site = make(*lines, login_files=(login("index_login", kind),))

    assert (site / "inner.py").exists()
    assert (site / "outer.py").exists()
    assert b"/proc/self/fd/" in seen.read_bytes()
    assert_nowhere(tmp_path, bytes(make.shown), make.warnings, make.installer())


def test_a_private_repository_gets_the_login_of_netrc(make: Making, private: Index, tmp_path: Path) -> None:
    """git, which uv runs, reads it from memory; neither uv's clone nor the environment has it."""
    folder = project(tmp_path / "work", "cloned")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@h.test", "-C", str(folder)]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *arguments], check=True)
    bare = private.folder / "simple" / "r.git"
    bare.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "clone", "-q", "--bare", str(folder), str(bare)], check=True)
    subprocess.run(["git", "-C", str(bare), "update-server-info"], check=True)
    make.logins = {"index_login": CONTENTS[".netrc"](private, private).encode()}

    site = make(f"cloned @ git+{private.url}/r.git", login_files=(login("index_login", ".netrc"),))

    assert (site / "cloned.py").exists()
    assert_nowhere(tmp_path, bytes(make.shown))
    make.logins = {}
    make.environ["UV_CACHE_DIR"] = str(tmp_path / "other-cache")
    with pytest.raises(Denied, match="refused the login"):
        make(f"cloned @ git+{private.url}/r.git")


def test_a_url_with_a_login_from_a_variable_is_not_kept(
    make: Making, index: Index, private: Index, tmp_path: Path
) -> None:
    """A direct URL with `${NAME}`: uv completes it, and direct_url.json has the address alone."""
    index.add(wheel(tmp_path, "outer"))
    make.environ["PASSWORD"] = PASSWORD
    url = private.url.replace("://", "://user:${PASSWORD}@") + "/inner/inner-1.0-py3-none-any.whl"

    site = make(f"inner @ {url}")

    assert (site / "inner-1.0.dist-info" / "direct_url.json").exists()
    assert_nowhere(tmp_path, bytes(make.shown))


def test_a_refused_login_is_denied_and_not_shown(make: Making, private: Index) -> None:
    """Status 7; the message has the index without the login."""
    make.logins = {"index_login": CONTENTS["uv.toml"](private, private).replace("user:", "other:").encode()}
    with pytest.raises(Denied, match="refused the login") as error:
        make("inner", login_files=(login("index_login", "uv.toml"),))
    assert PASSWORD not in str(error.value) + str(error.value.hint)

    make.logins = {}
    with pytest.raises(GussetError, match="refused the login") as error:
        make(f"--index-url {private.url}", "inner")
    assert ".netrc" in str(error.value.hint)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (".netrc", b"machine h.test wrong hunter22"),
        ("pip.conf", b"hunter22 without a section"),
        ("uv.toml", b"[broken hunter22"),
        ("uv.toml", b"\xffhunter22"),
    ],
)
def test_a_malformed_login_is_an_error_without_its_content(kind: str, value: bytes) -> None:
    """The error names the secret, the key and the line."""
    with pytest.raises(ConfigInvalid) as error, login_files([login("x", kind)], {"x": value}):
        pass
    [problem] = error.value.problems
    assert problem.message == f"the secret x is not a valid {kind}"
    assert (problem.line, problem.key) == (7, "build.secret_to_path_mapping.x")
    assert "hunter22" not in repr(problem)
    assert error.value.__context__ is None or error.value.__suppress_context__


def test_two_files_of_settings_exclude_each_other() -> None:
    """uv takes one file of settings; several .netrc are joined."""
    both = [login("a", "pip.conf"), login("b", "uv.toml")]
    with pytest.raises(ConfigInvalid, match="only one"), login_files(both, {"a": b"", "b": b""}):
        pass
    netrcs = [login("a", ".netrc"), login("b", ".netrc")]
    with login_files(netrcs, {"a": b"machine a", "b": b"machine b"}) as found:
        content = Path(f"/proc/self/fd/{found.descriptors[0]}").read_bytes()
    assert content == b"machine a\nmachine b\n"
    assert not Path(f"/proc/self/fd/{found.descriptors[0]}").exists()


def test_a_pip_conf_becomes_a_uv_toml() -> None:
    """Indexes, links, hosts; a certificate is a path, so it goes into a variable."""
    text, variables = pip_to_uv(
        {
            "index-url": "https://u:p%40@a.test/simple",
            "extra-index-url": "https://b.test\nhttps://c.test",
            "find-links": "/links",
            "trusted-host": "a.test",
            "no-index": "true",
            "cert": "/ca.pem",
        }
    )
    assert text.decode().splitlines() == [
        'find-links = ["/links"]',
        'allow-insecure-host = ["a.test"]',
        "no-index = true",
        "[[index]]",
        'url = "https://u:p%40@a.test/simple"',
        "default = true",
        "[[index]]",
        'url = "https://b.test"',
        "[[index]]",
        'url = "https://c.test"',
    ]
    assert variables == {"SSL_CERT_FILE": "/ca.pem"}
