"""What is left of a custom image's run when its helpers or its memory fail, or it ends in a bad moment."""

from __future__ import annotations

import contextlib
import glob
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.containers.conftest import SERVER, Ship
from tests.serving.conftest import eventually

pytestmark = pytest.mark.xdist_group("containers")

TOKEN = b"hf_cHVibGljIHRva2Vu-0815"


def test_a_rotation_without_room_is_made_up_for(ship: Ship, launch: Callable[..., Ship]) -> None:
    """The file stays whole meanwhile; nothing else has to change for it to follow."""
    ship.secret("hf_access_token", TOKEN)
    launch()
    (home,) = Path("/dev/shm").glob(f"gusset-{ship.running.pid}-*")
    (home / "next").mkdir()  # where each file is written first
    ship.secret("hf_access_token", TOKEN + b"-next")
    eventually(lambda: "Secrets could not be delivered" in ship.output, "it is told")
    assert ship.content("hf_access_token") == TOKEN
    (home / "next").rmdir()
    eventually(lambda: ship.content("hf_access_token") == TOKEN + b"-next", "the new value")


def _service(ship: Ship) -> list[int]:
    """The Podman service that was started for this gusset, also when that is gone."""
    return _running(b"system\0service", bytes(ship.tmp))


def _running(*texts: bytes) -> list[int]:
    """Processes that have these texts in their command line or environment."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            about = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            if all(text in about for text in texts):
                found.append(int(folder.name))
    return found


MOMENTS: dict[str, Callable[[Ship], object]] = {
    "its engine is started": _service,
    "a folder is there": lambda ship: glob.glob(f"/dev/shm/gusset-{ship.running.pid}-*"),
    "a secret is there": lambda ship: glob.glob(f"/dev/shm/gusset-{ship.running.pid}-*/secrets/*"),
    "its container is there": lambda ship: ship.container,
    "its server runs": lambda ship: "thinking about it" in ship.output,
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_the_end_while_it_starts(ship: Ship, images: dict[str, str], moment: str, number: int) -> None:
    """Whenever it comes nothing stays: no container, no folder, no engine of its own."""
    ship.secret("hf_access_token", TOKEN)
    ship.configure(images["root"], f"{SERVER} never-ready")
    ship.start(MARK=str(ship.tmp))
    eventually(lambda: MOMENTS[moment](ship), moment)
    ship.running.send_signal(number)
    ship.running.wait(60)
    eventually(lambda: not ship.left_behind(), "nothing is left")
    eventually(lambda: not _running(bytes(ship.tmp)), "no process, either")
    assert "Traceback" not in ship.output


def test_an_engine_of_its_own_that_dies_is_started_again(ship: Ship, images: dict[str, str]) -> None:
    """With it a new container; of the old one nothing stays."""
    ship.secret("hf_access_token", TOKEN)
    ship.configure(images["root"])
    ship.start(MARK=str(ship.tmp)).ready()
    first = ship.container
    for pid in _service(ship):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: "The container is ready again." in ship.output, "ready again")
    assert "(Podman's service) and was restarted." in ship.output
    assert ship.content("hf_access_token") == TOKEN
    assert ship.container != first
    assert ship.stop() == 0
    assert not ship.left_behind()
    eventually(lambda: not _running(bytes(ship.tmp)), "no process is left, either")


def test_without_the_library(ship: Ship) -> None:
    """It is an extra: what installs it is said."""
    (ship.tmp / "docker.py").write_text("raise ModuleNotFoundError('as if there were none')\n")
    ship.configure("localhost/gusset-test:root")
    ship.start(PYTHONPATH=str(ship.tmp)).fails(2, "need the library docker", "gusset[containers]")
