"""What of our environment goes on to processes that we start."""

from __future__ import annotations

import os

from gusset.secrets.sources.source import ENVIRONMENT_PREFIX


def child_environment() -> dict[str, str]:
    """All but the secrets that came to us in it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
