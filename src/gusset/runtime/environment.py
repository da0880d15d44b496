"""The environment of child processes."""

from __future__ import annotations

import os

from gusset.secrets.sources.environment import ENVIRONMENT_PREFIX


def child_environment() -> dict[str, str]:
    """This process's environment without the secrets in it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
