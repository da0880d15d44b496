"""The cluster, and the images that its node has, since it reaches no registry."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.test_serve import write_model
from tests.conftest import Cli, clean_environ
from tests.containers.conftest import BASE, REPO, images, podman  # noqa: F401  # images: a fixture
from tests.containers.test_build import Builder, build_model
from tests.containers.test_build import wheels as build_wheels  # noqa: F401  # a fixture
from tests.containers.test_own_image import image, wheels  # noqa: F401  # fixtures
from tests.kubernetes.cluster import PAUSE, Cluster, running_cluster, why_unavailable
from tests.postgres_server import wheel

HERE = Path(__file__).parent
# Not `latest`: the node would look for it in a registry.
TAG = "cluster-test"
MODEL, SERVER, GUSSET, POSTGRES = (
    f"localhost/gusset-{name}:{TAG}" for name in ("model", "server", "own", "postgres")
)


@dataclass(frozen=True)
class Folders:
    """A Python model and a custom image, as `gusset deploy` gets them."""

    model: Path
    server: Path


@pytest.fixture(scope="session")
def available() -> None:
    """Skips where no cluster can be started, before images are built for it."""
    if reason := why_unavailable():
        pytest.skip(reason)


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
