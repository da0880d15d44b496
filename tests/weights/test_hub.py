"""Repositories of a hub are downloaded into the hub's own cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gusset.errors import ConfigInvalid, Denied, SecretsMissing, Unreachable
from gusset.weights.download import Credential, Download, SourceKind
from tests.examples.hub import COMMIT, Caller, Hub, Reply, serving
from tests.weights.conftest import Fetch

TOKEN = b"hf_tests_" + b"aB3dE5fG7h" * 2
CREDENTIAL = Credential("hf_access_token", "config.yaml:9: model_cache[0].runtime_secret_name")


def repository(**options: object) -> Download:
    given = {"address": "org/gated", "credential": CREDENTIAL, "mount": "/app/model_cache/gated"}
    return Download(
        kind=SourceKind.HUB, location="config.yaml:7: model_cache[0].repo_id", **(given | options)
    )


@pytest.fixture
def hub(tmp_path: Path, run_fetch: Fetch) -> Iterator[Hub]:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(os.urandom(200_000))
    with serving(Hub("org/gated", folder, TOKEN)) as hub:
        run_fetch.environ["HF_ENDPOINT"] = hub.address
        yield hub


def test_a_gated_repository_is_downloaded_with_the_token(hub: Hub, run_fetch: Fetch, tmp_path: Path) -> None:
    """It goes where `from_pretrained` looks, and a second start downloads nothing."""
    folders = run_fetch(repository(), hf_access_token=TOKEN)
    snapshot = tmp_path / "hf/hub/models--org--gated/snapshots" / COMMIT
    assert folders == {"/app/model_cache/gated": snapshot}
    for name in ("config.json", "model.safetensors"):
        assert (snapshot / name).read_bytes() == (tmp_path / "repository" / name).read_bytes()
    assert "Downloaded hf://org/gated (200 kB)" in run_fetch.output

    done = len(hub.downloads)
    assert run_fetch(repository(), hf_access_token=TOKEN) == folders
    assert len(hub.downloads) == done


def test_patterns_choose_files(hub: Hub, run_fetch: Fetch) -> None:
    """With `allow_patterns` and `ignore_patterns` as the hub's library understands them."""
    folder = run_fetch(repository(allow_patterns=("*.json",)), hf_access_token=TOKEN)[
        "/app/model_cache/gated"
    ]
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    folder = run_fetch(repository(ignore_patterns=("*.json",)), hf_access_token=TOKEN)[
        "/app/model_cache/gated"
    ]
    assert (folder / "model.safetensors").exists()


def test_without_the_token_the_error_names_secret_key_and_line(hub: Hub, run_fetch: Fetch) -> None:
    """And says that the licence must be accepted."""
    with pytest.raises(SecretsMissing) as error:
        run_fetch(repository())
    assert str(error.value) == (
        "config.yaml:7: model_cache[0].repo_id: hf://org/gated demands a login, and the secret hf_access_token "
        "(config.yaml:9: model_cache[0].runtime_secret_name) has no value"
    )
    assert error.value.hint == (
        "add it with `gusset secret set hf_access_token`; if org/gated is gated, also accept its licence on its "
        "page at the hub"
    )


def test_a_wrong_token_is_denied(hub: Hub, run_fetch: Fetch) -> None:
    """The value is nowhere in the error."""
    with pytest.raises(Denied, match="refuses the value of the secret hf_access_token") as error:
        run_fetch(repository(), hf_access_token=b"hf_wrong_wrong_wrong")
    assert "hf_wrong" not in f"{error.value}{error.value.hint}{run_fetch.output}"


@pytest.mark.parametrize("value", [b"two words", b"", b"line\nline", b"\xff\xfe"])
def test_what_is_no_token_is_refused_without_a_request(hub: Hub, run_fetch: Fetch, value: bytes) -> None:
    """It could not be a header."""
    with pytest.raises(Denied, match="is not a login"):
        run_fetch(repository(), hf_access_token=value)
    assert hub.requests == []


def test_an_unknown_revision_or_repository_is_an_error_of_the_config(hub: Hub, run_fetch: Fetch) -> None:
    """It names the line."""
    with pytest.raises(ConfigInvalid, match=r"config.yaml:7: .*org/gated has no revision v9"):
        run_fetch(repository(revision="v9"), hf_access_token=TOKEN)
    with pytest.raises(ConfigInvalid, match="there is no repository org/other"):
        run_fetch(repository(address="org/other"), hf_access_token=TOKEN)
    with pytest.raises(ConfigInvalid, match="not the name of a repository"):
        run_fetch(repository(address="a/b/c/d"))


def test_a_hub_that_does_not_respond_is_unreachable_unless_cached(hub: Hub, run_fetch: Fetch) -> None:
    """A snapshot in the cache is used without a network."""
    folders = run_fetch(repository(), hf_access_token=TOKEN)
    run_fetch.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
    assert run_fetch(repository(), hf_access_token=TOKEN) == folders
    run_fetch.environ["HF_HOME"] += "-other"
    with pytest.raises(Unreachable, match="hf://org/gated cannot be downloaded"):
        run_fetch(repository(), hf_access_token=TOKEN)


def test_a_hub_cannot_write_outside_of_its_cache(hub: Hub, run_fetch: Fetch, tmp_path: Path) -> None:
    """Names of files come from the hub."""
    hub._files["../../../../../escaped"] = b"x"
    with pytest.raises((Unreachable, ConfigInvalid)):
        run_fetch(repository(), hf_access_token=TOKEN)
    assert not list(tmp_path.rglob("escaped*"))


@pytest.mark.parametrize("form", ["absolute", "relative", "another repository"])
@pytest.mark.parametrize("header", ["ETag", "X-Linked-ETag", "X-Repo-Commit", "sha"])
def test_a_hub_cannot_name_files_of_its_cache_by_paths(
    hub: Hub, run_fetch: Fetch, tmp_path: Path, form: str, header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library names files by the hashes that the hub sends."""
    name = {
        "absolute": str(tmp_path / "escaped"),
        "relative": "../../../../../escaped",
        "another repository": "../../models--org--escaped",
    }[form]
    if header == "sha":
        info = hub._model_info()
        monkeypatch.setattr(hub, "_model_info", lambda: info | {"sha": name})
        tree = [hub._tree_entry(file) for file in hub._files]
        about = hub._about
        monkeypatch.setattr(
            hub,
            "_about",
            lambda rest, caller: Reply.json(200, tree) if "/tree/" in rest else about(rest, caller),
        )
    else:
        file = hub._file

        def changed(path: str, caller: Caller) -> Reply:
            reply = file(path, caller)
            return replace(reply, headers={**reply.headers, header: f'"{name}"' if "Tag" in header else name})

        monkeypatch.setattr(hub, "_file", changed)
    with pytest.raises((Unreachable, ConfigInvalid)):
        run_fetch(repository(), hf_access_token=TOKEN)
    assert not list(tmp_path.rglob("escaped*"))


def test_the_token_is_in_no_file_argument_or_environment(
    hub: Hub, run_fetch: Fetch, tmp_path: Path, leaking_files
) -> None:
    """Not in the hub's cache, and not in the output."""
    process = run_fetch.start(repository(), hf_access_token=TOKEN)
    proc = Path(f"/proc/{process.pid}")
    assert TOKEN not in (proc / "cmdline").read_bytes()
    process.wait_for_external_data()
    process.wait()
    process.kill()
    assert leaking_files([tmp_path], TOKEN) == []


def test_a_missing_library_is_named_with_its_extra(run_fetch: Fetch, tmp_path: Path) -> None:
    """As where only gusset is installed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'huggingface_hub' else find(name, *a)\n"
    )
    run_fetch.environ["PYTHONPATH"] = str(tmp_path)
    with pytest.raises(ConfigInvalid, match=r"config.yaml:7: .*needs the library huggingface_hub") as error:
        run_fetch(repository())
    assert error.value.hint == "pip install 'gusset[hub]'"
