"""The search for leaks finds them: without this, finding none would mean nothing."""

from __future__ import annotations

import base64
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.examples.conftest import Server, Workspace, make_token


@pytest.fixture
def bare(tmp_path: Path, environ: dict[str, str]) -> Workspace:
    """A workspace in which nothing has run yet."""
    return Workspace(tmp_path, environ)


@pytest.mark.slow
def test_a_value_in_a_file_of_the_run_is_found(bare: Workspace, token: bytes) -> None:
    """A value in a file, as it is or in base64 within other text, is found."""
    assert bare.leaks(token) == []
    (bare.folder / "cache").mkdir()
    (bare.folder / "cache" / "plain").write_bytes(b"token: " + token + b"\n")
    (bare.folder / "cache" / "basic").write_bytes(base64.b64encode(b"user:" + token))
    (bare.folder / "cache" / "other").write_bytes(make_token())

    assert sorted(Path(path).name for path in bare.leaks(token)) == ["basic", "plain"]


@pytest.mark.slow
def test_a_value_in_a_new_file_elsewhere_is_found(bare: Workspace, token: bytes) -> None:
    """A temporary file outside the run's own folder is found."""
    with tempfile.NamedTemporaryFile(dir="/tmp") as file:
        file.write(token.hex().encode())
        file.flush()

        assert bare.leaks(token) == [file.name]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["environ", "cmdline"])
def test_a_value_in_a_process_is_found(bare: Workspace, token: bytes, where: str) -> None:
    """A value in the environment or the arguments of a server's child is found."""
    environ = bare.environ | ({"TOKEN": token.decode()} if where == "environ" else {})
    argument = token.decode() if where == "cmdline" else ""
    code = "import subprocess, sys; subprocess.run(['sh', '-c', 'echo up; read line', 'sh', *sys.argv[1:]])"
    with subprocess.Popen(
        [sys.executable, "-c", code, argument], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        bare.servers.append(Server(process, bare.folder))

        found = [Path(path) for path in bare.leaks(token)]
        process.communicate(b"\n")

    assert {path.name for path in found} == {where}
    assert len(found) == 2  # the server's own, and its child's
