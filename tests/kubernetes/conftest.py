"""The cluster, and the images that its node has, since it reaches no registry."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from gusset.containers.build.model_requirements import runtime_requirements
from gusset.environments.resources import TRUSS_FILE, list_text
from tests.cli.test_serve import write_model
from tests.conftest import Cli, clean_environ
from tests.containers.conftest import BASE, CACHE, REPO, images, podman, skip_if  # noqa: F401  # images: a fixture
from tests.containers.test_build import PYTHON, Builder, build_model
from tests.containers.test_build import wheels as build_wheels  # noqa: F401  # a fixture
from tests.containers.test_own_image import image, wheels  # noqa: F401  # fixtures
from tests.examples.conftest import make_token
from tests.examples.environments import Unavailable, tiny_bert
from tests.kubernetes.cluster import Cluster, running_cluster, why_unavailable
from tests.kubernetes.configuration import NODE_ADDRESS, PAUSE
from tests.postgres_server import wheel

HERE = Path(__file__).parent
# Not `latest`: the node would look for it in a registry.
TAG = "cluster-test"
MODEL, SERVER, FILL_MASK, GUSSET, POSTGRES = (
    f"localhost/gusset-{name}:{TAG}" for name in ("model", "server", "fill-mask", "own", "postgres")
)
EXAMPLE = REPO / "examples" / "fill-mask"


@dataclass(frozen=True)
class Folders:
    """A Python model and a custom image, as `gusset deploy` gets them."""

    model: Path
    server: Path


@pytest.fixture(scope="session")
def available() -> None:
    """Skips where no cluster can be started, before images are built for it. In CI it fails."""
    skip_if(why_unavailable())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    top = tmp_path_factory.mktemp("folders")
    config = f"secrets:\n  hf_access_token: null\nbase_image:\n  image: {BASE}\n"
    config += "resources:\n  cpu: 100m\n  memory: 256Mi\n"
    model = write_model(top / "pod-model", config)
    server = top / "pod-server"
    server.mkdir()
    (server / "config.yaml").write_text((HERE / "server-config.yaml").read_text())
    return Folders(model, server)


@pytest.fixture(scope="module")
def built_images(
    available: None,
    folders: Folders,
    image: str,  # noqa: F811
    build_wheels: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, ...]:
    """All images of the tests in Podman."""
    top = tmp_path_factory.mktemp("images")
    podman("tag", image, GUSSET)
    gusset = Cli(top / "home", clean_environ(top / "home", top / "settings.toml"))
    build_model(gusset, Builder(podman, {}, top), folders.model, build_wheels, MODEL)
    shutil.copy(HERE / "server.py", top)
    _build(SERVER, f"FROM {BASE}\nCOPY server.py /app/server.py\n", top)
    shutil.copy(shutil.which("busybox") or "", top / "busybox")
    pause = 'FROM scratch\nCOPY busybox /\nENTRYPOINT ["/busybox", "sleep", "2147483647"]\n'
    _build(PAUSE, pause, top)
    _build_postgres(top)
    return MODEL, SERVER, GUSSET, POSTGRES, PAUSE


def _build_postgres(top: Path) -> None:
    """PostgreSQL from the wheel of the tests, with the entrypoint that compose's test uses."""
    shutil.copytree(wheel() / "pginstall18", top / "postgres")
    shutil.copytree(wheel().with_suffix(".libs"), top / "libraries")
    shutil.copy(REPO / "tests" / "containers" / "compose" / "postgres-entrypoint", top)
    recipe = (
        f"FROM {BASE}\nCOPY postgres /opt/postgres\nCOPY libraries /opt/libraries\nCOPY postgres-entrypoint /\n"
        "ENV PATH=/opt/postgres/bin:$PATH PGHOST=/tmp LD_LIBRARY_PATH=/opt/libraries\n"
        'ENTRYPOINT ["/postgres-entrypoint"]\n'
    )
    _build(POSTGRES, recipe, top)


def _build(name: str, recipe: str, context: Path) -> None:
    podman("build", "-q", "-t", name, "-f", "-", str(context), input=recipe.encode())


@pytest.fixture(scope="module")
def cluster(built_images: tuple[str, ...]) -> Iterator[Cluster]:
    with running_cluster() as cluster:
        cluster.import_images(*built_images)
        yield cluster


@dataclass(frozen=True)
class FillMask:
    """The example of a model from a gated repository, with a hub on the node, which accepts `token` only."""

    folder: Path
    token: bytes


@pytest.fixture(scope="module")
def fill_mask(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FillMask]:
    """The example's folder as it is, but for the addresses of the base image and of the hub."""
    try:
        bert = tiny_bert()
    except Unavailable as error:
        pytest.skip(str(error))
    top = tmp_path_factory.mktemp("fill-mask")
    folder, token = top / "fill-mask", make_token()
    shutil.copytree(EXAMPLE, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    serve = [
        "env",
        f"PYTHONPATH={REPO}",
        sys.executable,
        "-c",
        HUB,
        config["model_metadata"]["repo_id"],
        str(bert),
        NODE_ADDRESS,
    ]
    with cluster.process(serve) as process:
        assert process.stdin and process.stdout
        process.stdin.write(token + b"\n")
        process.stdin.flush()
        config |= {"base_image": {"image": BASE}, "resources": {"cpu": "500m", "memory": "1500Mi"}}
        address = process.stdout.readline().decode().strip()
        assert address, "the hub did not start"
        config["environment_variables"] = {"HF_ENDPOINT": address}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        gusset = Cli(top / "home", clean_environ(top / "home", top / "settings.toml"))
        build_model(gusset, Builder(podman, {}, top), folder, fill_mask_wheels(), FILL_MASK)
        cluster.import_images(FILL_MASK)
        yield FillMask(folder, token)
        process.stdin.close()


HUB = """
import sys
from pathlib import Path
from tests.examples import hub
repo_id, folder, host = sys.argv[1:]
with hub.serving(hub.Hub(repo_id, Path(folder), sys.stdin.buffer.readline().strip()), host) as served:
    print(served.address, flush=True)
    sys.stdin.read()
"""


def fill_mask_wheels() -> Path:
    """A folder with what the example's image installs, torch among it."""
    lines = [*runtime_requirements(()), *list_text(TRUSS_FILE).splitlines()]
    lines += (EXAMPLE / "requirements.txt").read_text().splitlines()
    folder = CACHE / f"fill-mask-wheels-{hashlib.sha256(repr(lines).encode()).hexdigest()[:12]}"
    if not folder.exists():
        new = folder.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        (new / "requirements.txt").write_text("\n".join(lines))
        command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "-d", str(new)]
        command += ["--python-version", PYTHON, "-r", str(new / "requirements.txt")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        new.rename(folder)
    return folder
