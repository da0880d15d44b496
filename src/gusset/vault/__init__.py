"""The vault: keeps secrets sealed, versioned and audited.

Nothing here knows of HTTP, of printing, or of who is asking beyond a name.
The parts are imported when they are first asked for: SQLAlchemy alone takes
longer than a command that only lists names should.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gusset.vault.audit import Record, Report
    from gusset.vault.info import SecretInfo, VersionInfo
    from gusset.vault.keys import Rotated
    from gusset.vault.opening import Vault, open_vault
    from gusset.vault.source import VaultSource

__all__ = [
    "Record",
    "Report",
    "Rotated",
    "SecretInfo",
    "Vault",
    "VaultSource",
    "VersionInfo",
    "open_vault",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gusset.vault import opening

    return getattr(opening, name)
