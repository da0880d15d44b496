"""The same folders on Truss's own server: it behaves the same, except where `behaviour.yaml` says otherwise.

Deselected by default. Install the server with `python bench/peers.py --only truss`, then run `pytest -m truss`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conformance.behaviours import Behaviour, behaviours, check_call

BENCH = Path(__file__).parents[2] / "bench"
CACHE = Path(os.environ.get("BENCH_CACHE") or Path(tempfile.gettempdir()) / "gusset-bench")
# These need what only an image of Truss has.
SKIPPED = {"imports-bundled-packages", "imports-external-packages", "files-environment-variables"}
PATIENCE = 20.0

pytestmark = [
    pytest.mark.truss,
    pytest.mark.skipif(
        not list(CACHE.glob("venvs/truss-*/.done")),
        reason="Truss's own server is not installed: `python bench/peers.py --only truss` does that",
    ),
]


@contextmanager
def truss(behaviour: Behaviour, tmp_path: Path) -> Iterator[str | None]:
    """The address of Truss's server of a folder; None when it does not become ready."""
    sys.path.insert(0, str(BENCH))
    import peers

    sys.path.remove(str(BENCH))
    python, templates = peers.truss_templates()
    app = tmp_path / "app"
    shutil.copytree(templates / "server", app)
    shutil.copytree(templates / "shared", app / "_truss_shared")
    to_full_config = (
        "import sys, yaml, pathlib; from truss.base.truss_config import TrussConfig as C; "
        "print(yaml.dump(C.from_yaml(pathlib.Path(sys.argv[1])).to_dict(verbose=True)))"
    )
    config = subprocess.run(
        [str(python), "-c", to_full_config, str(behaviour.folder / "config.yaml")],
        capture_output=True,
        text=True,
    )
    if config.returncode:
        yield None
        return
    (app / "config.yaml").write_text(config.stdout)
    for name in ("model", "data", "src"):
        if (behaviour.folder / name).is_dir():
            shutil.copytree(behaviour.folder / name, app / name)
    port = peers.free_port()
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environ |= {f"TRUSS_SECRET_{name}": value for name, value in behaviour.secrets.items()}
    environ |= {"INFERENCE_SERVER_PORT": str(port), "HOME": str(tmp_path)}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [str(peers.truss_server_python()), "main.py"], cwd=app, env=environ, stdout=log, stderr=log
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + PATIENCE
        while server.poll() is None and time.monotonic() < deadline:
            try:
                if httpx.get(f"{address}/v1/models/model/loaded", trust_env=False).status_code == 200:
                    yield address
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
        yield None
    finally:
        server.kill()
        server.wait()


def difference(behaviour: Behaviour, tmp_path: Path) -> str | None:
    """How Truss's server differs from the expected responses; None if it does not."""
    with truss(behaviour, tmp_path) as address:
        if address is None:
            return "it does not become ready"
        try:
            for call in behaviour.calls:
                check_call(address, call)
        except (AssertionError, httpx.HTTPError, ValueError) as error:
            return str(error)
    return None


COMPARED = [each for each in behaviours() if not each.fails and each.name not in SKIPPED]


@pytest.mark.parametrize(
    "behaviour", [each for each in COMPARED if not each.truss], ids=lambda each: each.name
)
def test_truss_behaves_the_same(behaviour: Behaviour, tmp_path: Path) -> None:
    assert difference(behaviour, tmp_path) is None


@pytest.mark.parametrize("behaviour", [each for each in COMPARED if each.truss], ids=lambda each: each.name)
def test_truss_differs_where_the_document_says_so(behaviour: Behaviour, tmp_path: Path) -> None:
    assert difference(behaviour, tmp_path) is not None
