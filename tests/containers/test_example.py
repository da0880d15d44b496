"""examples/custom-image, used as its README describes."""

from __future__ import annotations

import hashlib
import hmac
import shutil
from pathlib import Path

import httpx
import pytest

from tests.conftest import leaks_in
from tests.containers.conftest import BASE, ServedImage, podman
from tests.serving.conftest import eventually

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom-image"
KEY, NEXT = b"a-key-to-sign-with", b"another-key-to-sign-with"


def signature(key: bytes) -> dict[str, str]:
    return {"signature": hmac.new(key, b"hello", hashlib.sha256).hexdigest()}


@pytest.mark.parametrize("way", ["by-file", "by-variable"])
def test_the_example_signs_with_its_secret(served: ServedImage, way: str) -> None:
    """Both variants sign with the secret, and prints of it are masked; a new value reaches the file."""
    podman("build", "-q", "--build-arg", f"BASE={BASE}", "-t", "signer", str(EXAMPLE))
    shutil.copy(EXAMPLE / way / "config.yaml", served.folder / "config.yaml")
    served.secret("signing_key", KEY)
    served.start().ready()

    def sign() -> object:
        return httpx.post(f"{served.address}/v1/models/model:predict", content=b"hello", timeout=30).json()

    assert sign() == signature(KEY)
    eventually(lambda: "signing with ***" in served.output, "it prints")
    served.secret("signing_key", NEXT)
    if way == "by-file":
        eventually(lambda: sign() == signature(NEXT), "the new key")
    assert served.stop() == 0
    assert not leaks_in(served.output.encode(), KEY, NEXT)
    assert not served.left_behind()
