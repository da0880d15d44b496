"""Where packages cannot be had, the reason is kept for those who skip."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.environments import PipEnvironment, Unavailable


@pytest.mark.slow
def test_a_skipped_test_prints_why_its_environment_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an index pip finds nothing; the skipped tests print its output."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("no-such-package==1.0\n")
    environment = PipEnvironment("absent", requirements, imports="absent", home=tmp_path)
    assert "make examples" in environment.reason

    with pytest.raises(Unavailable, match="no-such-package"):
        environment.make()

    assert not environment.ready
    assert "no-such-package" in environment.reason
