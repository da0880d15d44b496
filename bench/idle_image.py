"""What a custom image costs that gets no requests, on Podman, as root: python bench/idle_image.py [ROUNDS [SECONDS]]

Measured is the processor time of `gusset serve` and of the Podman service that it starts, without the container's own.
Beside it the same with one more client, which waits for the container's end by the engine's request for that, as
gusset itself did before: Podman polls for it, without a pause before 4.6.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import docker
import psutil
from measure import interleave, table

IMAGE = "localhost/gusset-bench-idle"
CONFIG = f"""\
model_name: idle
base_image: {{image: {IMAGE}}}
docker_server:
  start_command: /bin/busybox httpd -f -p 8000 -h /www
  server_port: 8000
  predict_endpoint: /
  readiness_endpoint: /
  liveness_endpoint: /
"""
RECIPE = "FROM scratch\nCOPY busybox /bin/busybox\nCOPY index.html /www/index.html\n"


@contextmanager
def served(folder: Path) -> Iterator[psutil.Process]:
    """`gusset serve` of a small web server, when it is ready."""
    shutil.copy(shutil.which("busybox") or "", folder)  # of the package busybox-static
    (folder / "index.html").write_text("ready")
    subprocess.run(
        ["podman", "build", "-q", "-t", IMAGE, "-f", "-", folder], input=RECIPE, text=True, check=True
    )
    model = folder / "model"
    model.mkdir()
    (model / "config.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "gusset", "serve", str(model), "--port", "0", "--output", "json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout and process.stdout.readline(), "it did not start"
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()
        subprocess.run(["podman", "rmi", "-f", IMAGE], capture_output=True, check=False)


def processor_ms(process: psutil.Process) -> float:
    """Of it and of what it has started on this machine."""
    times = [each.cpu_times() for each in [process, *process.children(recursive=True)]]
    return sum(each.user + each.system for each in times) * 1000


def during(process: psutil.Process, seconds: float) -> float:
    """Milliseconds of processor time per second."""
    before = processor_ms(process)
    time.sleep(seconds)
    return (processor_ms(process) - before) / seconds


def with_a_request(process: psutil.Process, seconds: float) -> float:
    """The same while a client waits for the container's end."""
    (service,) = [each for each in process.children() if "service" in each.cmdline()]
    with docker.APIClient(base_url=service.cmdline()[-1]) as api:
        (container,) = api.containers(filters={"label": "gusset.owner"})

        def wait() -> None:
            with suppress(OSError):  # after that time
                api.wait(container["Id"], timeout=seconds + 1)

        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.5)  # until the request has arrived
        used = during(process, seconds)
        waiting.join()
    return used


def main(rounds: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as process:
        time.sleep(5)  # what follows the start
        waited, idle = "with a request that waits for its end", "as gusset serves it"
        parts = {idle: lambda: during(process, seconds), waited: lambda: with_a_request(process, seconds)}
        table("A custom image without requests, on Podman", "ms/s", interleave(parts, rounds), idle, 1)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, float(sys.argv[2]) if len(sys.argv) > 2 else 10.0)
