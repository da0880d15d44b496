"""`gusset scan` as a person runs it: sources of images and of values, output, exit status."""

from __future__ import annotations

import base64
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.images.archives import OciImage, docker_archive, layer
from tests.manager.conftest import Manager, manager, set_up  # noqa: F401  # fixtures

VALUE = b"hf_Qm3kZ81vTx/w0PzRn5-aB"
OLDER = b"the-older-value-19-of-it"


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "token").write_bytes(VALUE)
    (folder / ".hidden").write_bytes(b"not a secret, just a file")
    return folder


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """An archive with a value in its second layer, and its older value in the config."""
    path = tmp_path / "leaky.tar"
    image = OciImage().add(
        layer(("etc/clean", b"clean")),
        layer(("srv/note.gz", gzip.compress(base64.b64encode(VALUE)))),
        config={"Labels": {"note": OLDER.decode()}},
        history=["COPY . /etc", f"RUN make --token {VALUE.decode()}"],
    )
    path.write_bytes(image.archive())
    return path


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    path = tmp_path / "clean.tar"
    path.write_bytes(docker_archive(layer(("etc/clean", b"clean"))))
    return path


def test_a_leak_is_reported_with_layer_file_instruction_and_secret(
    gusset: Cli, leaky: Path, secrets: Path
) -> None:
    """With exit status 4, and never with the value."""
    done = gusset("scan", str(leaky), "--secrets-dir", str(secrets), status=4)
    shown = (done.stdout + done.stderr).decode()

    assert "layer 2 of 2 (sha256:" in shown and "srv/note.gz" in shown
    assert "token (base64) is in the content" in shown
    assert "made by: RUN make --token ***" in shown
    assert "searched 2 layers, 2 files" in shown and "for 1 secret" in shown
    assert VALUE.decode() not in shown and base64.b64encode(VALUE).decode() not in shown


def test_a_leak_is_reported_as_json(gusset: Cli, leaky: Path, secrets: Path) -> None:
    """One document, with the fields of an error and all findings."""
    done = gusset("scan", str(leaky), "--secrets-dir", str(secrets), "--output", "json", status=4)
    report = json.loads(done.stdout)

    assert report["code"] == "check_failed" and report["message"] and report["hint"]
    assert not report["clean"]
    found = next(each for each in report["findings"] if each["layer"])
    assert found["digest"].startswith("sha256:")
    assert {name: found[name] for name in ("secret", "form", "layer", "file", "part", "instruction")} == {
        "secret": "token",
        "form": "base64",
        "layer": 2,
        "file": "srv/note.gz",
        "part": "content",
        "instruction": "RUN make --token ***",
    }
    assert VALUE not in done.stdout + done.stderr


def test_a_clean_image_says_what_was_searched(gusset: Cli, clean: Path, secrets: Path) -> None:
    """With exit status 0, as text and as JSON."""
    text = gusset("scan", str(clean), "--secrets-dir", str(secrets)).stdout.decode()
    report = json.loads(gusset("scan", str(clean), "--secrets-dir", str(secrets), "--output", "json").stdout)

    assert "no value found; searched 1 layer, 1 file, 0.0 MB for 1 secret" in text
    assert report["clean"] and "code" not in report
    assert report["searched"]["secrets"] == ["token"] and report["searched"]["layers"] == 1


def test_an_allowed_secret_is_accepted_and_reported(gusset: Cli, leaky: Path, secrets: Path) -> None:
    """The status is 0, and the output says what was accepted."""
    done = gusset("scan", str(leaky), "--secrets-dir", str(secrets), "--allow", "token")
    assert b"accepted with --allow" in done.stderr and b"srv/note.gz" in done.stderr

    (secrets / "other").write_bytes(OLDER)
    done = gusset("scan", str(leaky), "--secrets-dir", str(secrets), "--allow", "token", status=4)
    assert b"other is in the label note" in done.stderr


def test_an_unknown_name_cannot_be_allowed(gusset: Cli, clean: Path, secrets: Path) -> None:
    """It is a usage error."""
    done = gusset("scan", str(clean), "--secrets-dir", str(secrets), "--allow", "tokne", status=2)
    assert b"tokne" in done.stderr


@pytest.mark.slow
def test_all_live_versions_of_the_vault_are_searched_for_and_audited(
    gusset: Cli, leaky: Path, tmp_path: Path
) -> None:
    """An older version is found; a destroyed one is not searched for. Each read is in the audit log."""
    gusset("secret", "set", "api_key", input=OLDER)
    gusset("secret", "set", "api_key", input=b"the-newer-value-20-of-it")

    done = gusset("scan", str(leaky), status=4)
    assert b"api_key is in the label note" in done.stderr
    records = json.loads(gusset("audit", "show", "--output", "json").stdout)["records"]
    reads = [each for each in records if each["action"] == "secret.reveal"]
    assert sorted(each["details"]["version"] for each in reads) == [1, 2]

    gusset("secret", "destroy", "api_key", "--version", "1", "--yes")
    assert gusset("scan", str(leaky)).returncode == 0


def test_nothing_to_search_for_is_a_usage_error(gusset: Cli, clean: Path, tmp_path: Path) -> None:
    """An empty vault, an empty folder, or only values that are too short."""
    folder = tmp_path / "empty"
    folder.mkdir()
    assert b"no secret to search for" in gusset("scan", str(clean), status=2).stderr
    gusset("scan", str(clean), "--secrets-dir", str(folder), status=2)
    (folder / "short").write_bytes(b"1234567")
    done = gusset("scan", str(clean), "--secrets-dir", str(folder), status=2)
    assert b"no value to search for" in done.stderr


def test_an_archive_comes_from_a_pipe_or_a_folder(gusset: Cli, tmp_path: Path, secrets: Path) -> None:
    """`-` is standard input; a folder is an OCI folder."""
    image = OciImage().add(layer(("srv/leak", VALUE)))
    done = gusset("scan", "-", "--secrets-dir", str(secrets), input=image.archive(), status=4)
    assert b"srv/leak" in done.stderr

    folder = image.write(tmp_path / "layout")
    done = gusset("scan", str(folder), "--secrets-dir", str(secrets), status=4)
    assert b"srv/leak" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1, 511, 700, -2000, -1])
def test_a_truncated_archive_is_never_clean(gusset: Cli, clean: Path, secrets: Path, size: int) -> None:
    """It is an error with status 9, wherever the archive ends."""
    data = clean.read_bytes().rstrip(b"\0")
    clean.write_bytes(data[:size])
    done = gusset("scan", str(clean), "--secrets-dir", str(secrets), status=9)
    assert f"error: {clean} could not be searched completely".encode() in done.stderr
    assert b"save, pull or build the image again" in done.stderr


def test_a_corrupt_layer_is_named(gusset: Cli, tmp_path: Path, secrets: Path) -> None:
    """With status 9 and the digest of the layer; findings in other layers come first, with status 4."""
    image = OciImage().add(layer(("a", b"clean")), layer(("b", os.urandom(5_000))))
    name = next(name for name, data in image.files.items() if len(data) > 4_000)
    image.files[name] = image.files[name][:3_000]
    archive = tmp_path / "corrupt.tar"
    archive.write_bytes(image.archive())
    done = gusset("scan", str(archive), "--secrets-dir", str(secrets), status=9)
    assert b"layer 2 of 2 (sha256:" in done.stderr and b"truncated" in done.stderr

    image.add(layer(("c", VALUE)))
    archive.write_bytes(image.archive())
    done = gusset("scan", str(archive), "--secrets-dir", str(secrets), status=4)
    assert b"layer 2 of 2 (sha256:" in done.stderr


def test_what_is_no_image_is_an_error(gusset: Cli, tmp_path: Path, secrets: Path) -> None:
    """A folder without an index, a text, a tar archive of something else."""
    options = ("--secrets-dir", str(secrets))
    (tmp_path / "text").write_text("just a text")
    (tmp_path / "other.tar").write_bytes(layer(("a", b"a")))
    assert b"not an OCI folder" in gusset("scan", str(secrets), *options, status=2).stderr
    gusset("scan", str(tmp_path / "text"), *options, status=9)
    done = gusset("scan", str(tmp_path / "other.tar"), *options, status=9)
    assert b"neither an index.json nor a manifest.json" in done.stderr


def test_a_deployments_token_searches_for_its_secrets(
    gusset: Cli,
    manager: Manager,  # noqa: F811
    leaky: Path,
    tmp_path: Path,
) -> None:
    """The values are delivered, and audited. A person's key is refused, with the reason."""
    with manager.client() as admin:
        for name, value in (("token", VALUE), ("other", OLDER)):
            admin.post("/v1/secrets", json={"name": name, "value": value.decode()}).raise_for_status()
        made = admin.post("/v1/deployments", json={"name": "ranker", "secrets": ["token"]})
    keys = {"person": manager.key, "token": made.json()["token"]}
    for name, key in keys.items():
        (tmp_path / name).write_text(key)
        (tmp_path / name).chmod(0o600)

    def environ(key: str) -> dict[str, str]:
        return {"GUSSET_MANAGER": manager.address, "GUSSET_TOKEN_FILE": str(tmp_path / key)}

    done = gusset("scan", str(leaky), status=4, **environ("token"))
    assert b"token (base64)" in done.stderr and b"other" not in done.stderr
    done = gusset("scan", str(leaky), status=7, **environ("person"))
    assert b"never returns a value to a person" in done.stderr


@pytest.mark.slow
def test_memory_does_not_grow_with_a_layer(gusset: Cli, secrets: Path) -> None:
    """A layer of 2 GB of zeros, from a pipe, takes less than 200 MB of memory."""
    script = Path(__file__).parent / "large_image.py"
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        measured = (
            "import runpy, sys\n"
            "try: runpy.run_module('gusset', run_name='__main__', alter_sys=True)\n"
            "finally: print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", measured, "scan", "-", "--secrets-dir", str(secrets)],
            stdin=writer.stdout,
            capture_output=True,
            env=gusset.environ,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert b"2,147.5 MB" in done.stdout
    assert int(done.stderr.split()[-1]) < 200_000
