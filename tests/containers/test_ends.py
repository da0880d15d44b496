"""What is left of a run when its helper processes fail, or it ends at an unfortunate moment."""

from __future__ import annotations

import contextlib
import glob
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.containers.conftest import SERVER, ServedImage, podman
from tests.serving.conftest import eventually

TOKEN = b"hf_cHVibGljIHRva2Vu-0815"


def test_a_failed_delivery_is_retried(served: ServedImage, launch: Callable[..., ServedImage]) -> None:
    """Without another change of the secret; the file keeps the old value until then."""
    served.secret("hf_access_token", TOKEN)
    launch()
    (home,) = Path("/dev/shm").glob(f"gusset-{served.running.pid}-*")
    (home / "next").mkdir()  # where each file is written first
    served.secret("hf_access_token", TOKEN + b"-next")
    eventually(lambda: "Secrets could not be delivered" in served.output, "it is reported")
    assert served.content("hf_access_token") == TOKEN
    (home / "next").rmdir()
    eventually(lambda: served.content("hf_access_token") == TOKEN + b"-next", "the new value")


def _service(served: ServedImage) -> list[int]:
    """The process ids of the Podman service that this gusset has started, even if gusset has ended."""
    return _running(b"system\0service", bytes(served.tmp))


def _running(*texts: bytes) -> list[int]:
    """The ids of processes with these texts in their command line or environment."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            about = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            if all(text in about for text in texts):
                found.append(int(folder.name))
    return found


MOMENTS: dict[str, Callable[[ServedImage], object]] = {
    "its engine starts": _service,
    "it has a folder": lambda served: glob.glob(f"/dev/shm/gusset-{served.running.pid}-*"),
    "it has a secret": lambda served: glob.glob(f"/dev/shm/gusset-{served.running.pid}-*/secrets/*"),
    "it has a container": lambda served: served.container,
    "its server runs": lambda served: "thinking about it" in served.output,
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_nothing_is_left_when_it_ends_during_its_start(
    served: ServedImage, images: dict[str, str], moment: str, number: int
) -> None:
    """No container, no folder and no Podman service, whenever the signal comes."""
    served.secret("hf_access_token", TOKEN)
    served.configure(images["root"], f"{SERVER} never-ready")
    served.start(MARK=str(served.tmp))
    eventually(lambda: MOMENTS[moment](served), moment)
    served.running.send_signal(number)
    served.running.wait(60)
    eventually(lambda: not served.left_behind(), "nothing is left")
    eventually(lambda: not _running(bytes(served.tmp)), "no process is left")
    assert "Traceback" not in served.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_no_conmon_process_outlives_its_container(
    served: ServedImage, launch: Callable[..., ServedImage], number: int
) -> None:
    """The process with which Podman monitors a container ends with it, also after `podman exec`."""
    launch()
    container = served.container
    podman("exec", container, "true")
    assert _running(b"conmon", container.encode())
    served.running.send_signal(number)
    served.running.wait(60)
    eventually(lambda: not served.left_behind(), "nothing is left")
    eventually(lambda: not _running(b"conmon", container.encode()), "conmon ends")


def test_a_podman_service_that_dies_is_restarted(served: ServedImage, images: dict[str, str]) -> None:
    """A new container is started, and nothing is left of the old one."""
    served.secret("hf_access_token", TOKEN)
    served.configure(images["root"])
    served.start(MARK=str(served.tmp)).ready()
    first = served.container
    for pid in _service(served):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: "The container is ready again." in served.output, "ready again")
    assert "(Podman's service) and was restarted." in served.output
    assert served.content("hf_access_token") == TOKEN
    assert served.container != first
    assert served.stop() == 0
    assert not served.left_behind()
    eventually(lambda: not _running(bytes(served.tmp)), "no process is left")
    eventually(lambda: not _running(b"conmon", first.encode()), "the first container's conmon ends")


def test_a_missing_docker_library_is_reported(served: ServedImage) -> None:
    """With the command that installs it."""
    (served.tmp / "docker.py").write_text("raise ModuleNotFoundError('as if there were none')\n")
    served.configure("localhost/gusset-test:root")
    served.start(PYTHONPATH=str(served.tmp)).fails(2, "need the library docker", "gusset[containers]")
