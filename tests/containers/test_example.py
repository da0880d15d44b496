"""examples/custom-image, as its README says."""

from __future__ import annotations

import hashlib
import hmac
import shutil
from pathlib import Path

import httpx
import pytest

from tests.conftest import leaks_in
from tests.containers.conftest import BASE, Ship, podman
from tests.serving.conftest import eventually

pytestmark = pytest.mark.xdist_group("containers")

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom-image"
KEY, NEXT = b"a-key-to-sign-with", b"another-key-to-sign-with"


def signature(key: bytes) -> dict[str, str]:
    return {"signature": hmac.new(key, b"hello", hashlib.sha256).hexdigest()}


@pytest.mark.parametrize("way", ["by-file", "by-variable"])
def test_the_example(ship: Ship, way: str) -> None:
    """Both ways sign with the secret; what the server prints of it is masked; a new one reaches the file."""
    podman("build", "-q", "--build-arg", f"BASE={BASE}", "-t", "signer", str(EXAMPLE))
    shutil.copy(EXAMPLE / way / "config.yaml", ship.folder / "config.yaml")
    ship.secret("signing_key", KEY)
    ship.start().ready()

    def sign() -> object:
        return httpx.post(f"{ship.address}/v1/models/model:predict", content=b"hello", timeout=30).json()

    assert sign() == signature(KEY)
    eventually(lambda: "signing with ***" in ship.output, "it prints")
    ship.secret("signing_key", NEXT)
    if way == "by-file":
        eventually(lambda: sign() == signature(NEXT), "the new key")
    assert ship.stop() == 0
    assert not leaks_in(ship.output.encode(), KEY, NEXT)
    assert not ship.left_behind()
