"""Signs the rows of a vault that an older gusset wrote, once, while it is migrated.

Nothing is signed that contradicts the audit log: such rows stay unsigned, so they
are refused wherever they are used. Older records tell the state of secrets only;
other rows are signed as they are. One audit record has the HMACs of all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from gusset.secrets.name import fold_name
from gusset.vault.audit.actions import Action
from gusset.vault.audit.chain_walk import ALL_RECORDS, record_of
from gusset.vault.audit.consistency import LogState
from gusset.vault.audit.events import AuditEvent
from gusset.vault.storage.connection import Transaction, iterate, unverified_rows
from gusset.vault.storage.tables import SECRETS, SIGNED_TABLES

log = logging.getLogger("gusset.vault")


def sign_existing_rows(transaction: Transaction, vault: str) -> AuditEvent:
    """Sign every row that does not contradict the log. The event and the log say which do, and in what."""
    state, names = LogState(), dict[str, str]()
    for record in map(record_of, iterate(transaction, ALL_RECORDS)):
        state.follow(record)
        names |= dict.fromkeys(state.secrets.keys() - names.keys(), record.target)
    differences = dict(_differences(transaction, state, names))
    for difference in sorted(differences.values()):
        log.warning("the audit log contradicts a secret, which cannot be read any more: %s", difference)
    for table in SIGNED_TABLES:
        for row in list(unverified_rows(transaction, table)):  # all, since they are changed
            if (table.name, row[0]) not in differences:
                transaction.update(table, row)
    details = {"differences": sorted(differences.values())} if differences else {}
    return AuditEvent("gusset", Action.VAULT_SIGN, vault, details=details)


def _differences(
    transaction: Transaction, state: LogState, names: Mapping[str, str]
) -> Iterator[tuple[tuple[str, str], str]]:
    """Table, key and description of rows that contradict the log."""
    for row in unverified_rows(transaction, SECRETS):
        known = state.secrets.get(row.id)
        if known is None:
            yield (SECRETS.name, row.id), f"{row.name}: no record says that it was created"
        elif row.folded != fold_name(row.name) or fold_name(names[row.id]) != row.folded:
            yield (SECRETS.name, row.id), f"{row.name}: record {known.seq} names it {names[row.id]}"
        elif (row.current_version, row.deleted_at is not None) != (known.version, known.deleted):
            yield (
                (SECRETS.name, row.id),
                f"{row.name}: record {known.seq} left it {_text(known.version, known.deleted)}, "
                f"but it is {_text(row.current_version, row.deleted_at is not None)}",
            )


def _text(version: int | None, deleted: bool) -> str:
    text = "without a version" if version is None else f"at version {version}"
    return f"{text}, deleted" if deleted else text
