"""What is left of a custom image's run when its helpers or its memory fail, or it ends in a bad moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.containers.conftest import Ship
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
    eventually(lambda: "Secrets could not be handed on" in ship.output, "it is told")
    assert ship.content("hf_access_token") == TOKEN
    (home / "next").rmdir()
    eventually(lambda: ship.content("hf_access_token") == TOKEN + b"-next", "the new value")
