"""Evidence that models leak values: how often each was masked, and in the output of which deployment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gusset.secrets.hits import Hit
from gusset.secrets.name import fold_name
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.services.secret_rows import FIND_MANY
from gusset.vault.storage.connection import Store, Transaction
from gusset.vault.storage.sql import Statement

MAX_TIMES = 2**53  # what JSON can represent; a count stays there

_ADD = Statement(
    "INSERT INTO masked_values (secret_id, deployment, form, channel, times, version, last_at) "
    "VALUES (:secret_id, :deployment, :form, :channel, :times, :version, :last_at) "
    "ON CONFLICT (secret_id, deployment, form, channel) DO UPDATE SET version = excluded.version, "
    "last_at = excluded.last_at, times = CASE WHEN masked_values.times > :limit - excluded.times "
    "THEN :limit ELSE masked_values.times + excluded.times END"
)
_OF_SECRET = Statement(
    "SELECT deployment, form, channel, times, version, last_at FROM masked_values "
    "WHERE secret_id = :secret ORDER BY last_at DESC"
)
_LEAKED = Statement(
    "SELECT DISTINCT m.secret_id FROM masked_values m JOIN secrets s ON s.id = m.secret_id "
    "WHERE s.team_id = :team AND s.current_version = m.version"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedValue:
    """How often a deployment printed a secret in one form on one channel. `version` was current then."""

    deployment: str
    form: str
    channel: str
    times: int
    version: int | None
    last_at: str


class MaskedValues:
    """Records what deployments report, in sums."""

    def __init__(self, store: Store, writer: Writer, clock: Clock) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock

    def record(self, team_id: str, hits: Mapping[Hit, int], *, actor: str, deployment: str) -> None:
        """Add to the sums, with one audit record. Secrets that the team does not have are ignored."""
        by_name: dict[str, dict[Hit, int]] = defaultdict(dict)
        for hit, times in hits.items():
            by_name[fold_name(hit.secret)][hit] = times
        if not by_name:
            return

        def write(transaction: Transaction) -> WriteResult[None]:
            sums: dict[str, dict[str, int]] = {}
            rows = transaction.all(FIND_MANY, {"team": team_id, "folded": list(by_name)})
            for row in sorted(rows, key=lambda each: each.name):
                found = by_name[row.folded]
                for hit, times in found.items():
                    self._add(transaction, row, deployment, hit, times)
                sums[row.name] = {f"{hit.form}, {hit.channel}": times for hit, times in found.items()}
            details = {"team": team_id, "times": sums}
            event = AuditEvent(actor, Action.SECRET_MASKED, deployment, details=details)
            return WriteResult(None, [event] if sums else [])

        self._writer.run(AuditEvent(actor, Action.SECRET_MASKED, deployment), write)

    def _add(self, transaction: Transaction, secret: Any, deployment: str, hit: Hit, times: int) -> None:
        row = {
            "secret_id": secret.id,
            "deployment": deployment,
            "form": hit.form,
            "channel": hit.channel,
            "times": min(times, MAX_TIMES),
            "version": secret.current_version,
            "last_at": timestamp(self._clock()),
        }
        transaction.run(_ADD, row | {"limit": MAX_TIMES})

    def of_secret(self, secret_id: str) -> Sequence[MaskedValue]:
        """What was found of one secret, newest first."""
        with self._store.read() as connection:
            return [
                MaskedValue(
                    deployment=row.deployment,
                    form=row.form,
                    channel=row.channel,
                    times=row.times,
                    version=row.version,
                    last_at=row.last_at,
                )
                for row in connection.all(_OF_SECRET, {"secret": secret_id})
            ]

    def leaked(self, team_id: str) -> frozenset[str]:
        """The ids of the team's secrets whose current version was masked in output."""
        with self._store.read() as connection:
            return frozenset(row.secret_id for row in connection.all(_LEAKED, {"team": team_id}))
