"""Prints what the value doctor finds about a new value."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

from datetime import UTC, datetime

from gusset.cli.app import App
from gusset.secrets.value import SecretValue


def warn_about(app: App, name: str, value: SecretValue) -> None:
    """Print what the value doctor finds about a value."""
    from gusset.secrets.value_doctor import examine

    for finding in examine(value.reveal(), name=name, now=datetime.now(UTC)):
        app.output.warn(f"{name}: {finding.message}")
        if finding.hint:
            app.output.note(f"  {finding.hint}")
