"""The vault: keeps secrets sealed, versioned and audited.

Nothing here knows of HTTP or of printing. All it knows of the caller is the actor:
a name, and perhaps an address. `open_vault` is imported on first use, since commands that open no
vault use the other names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gusset.secrets.info import SecretInfo, VersionInfo

if TYPE_CHECKING:
    from gusset.vault.wiring import Vault, open_vault

__all__ = ["SecretInfo", "Vault", "VersionInfo", "open_vault"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gusset.vault import wiring

    return getattr(wiring, name)
