"""Evidence that models leak values: how often maskers have found which in whose output."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, update

from gusset.secrets.hits import Hit
from gusset.secrets.name import fold_name
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.storage.database import translate_db_errors
from gusset.vault.storage.tables import masked_values, secrets_table

MAX_TIMES = 2**53  # what JSON can represent; a count stays there

_m, _s = masked_values.c, secrets_table.c


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

    def __init__(self, engine: Engine, writer: Writer, clock: Clock) -> None:
        self._engine = engine
        self._writer = writer
        self._clock = clock

    def record(self, team_id: str, hits: Mapping[Hit, int], *, actor: str, deployment: str) -> None:
        """Add to the sums, with one audit record. Secrets that the team does not have are ignored."""
        by_name: dict[str, dict[Hit, int]] = defaultdict(dict)
        for hit, times in hits.items():
            by_name[fold_name(hit.secret)][hit] = times
        if not by_name:
            return

        def write(connection: Connection) -> WriteResult[None]:
            query = select(_s.id, _s.name, _s.folded, _s.current_version).where(
                _s.team_id == team_id, _s.folded.in_(by_name), _s.deleted_at.is_(None)
            )
            sums: dict[str, dict[str, int]] = {}
            for row in connection.execute(query.order_by(_s.name)).all():
                found = by_name[row.folded]
                for hit, times in found.items():
                    self._add(connection, row, deployment, hit, times)
                sums[row.name] = {f"{hit.form}, {hit.channel}": times for hit, times in found.items()}
            details = {"team": team_id, "times": sums}
            event = AuditEvent(actor, Action.SECRET_MASKED, deployment, details=details)
            return WriteResult(None, [event] if sums else [])

        self._writer.run(AuditEvent(actor, Action.SECRET_MASKED, deployment), write)

    def _add(self, connection: Connection, secret: Any, deployment: str, hit: Hit, times: int) -> None:
        key = {
            "secret_id": secret.id,
            "deployment": deployment,
            "form": hit.form,
            "channel": hit.channel,
        }
        this_one = [_m[name] == value for name, value in key.items()]
        known = connection.execute(select(_m.times).where(*this_one)).scalar_one_or_none()
        now = {
            "times": min((known or 0) + times, MAX_TIMES),
            "version": secret.current_version,
            "last_at": timestamp(self._clock()),
        }
        if known is None:
            connection.execute(insert(masked_values), {**key, **now})
        else:
            connection.execute(update(masked_values).where(*this_one).values(**now))

    def of_secret(self, secret_id: str) -> Sequence[MaskedValue]:
        """What was found of one secret, newest first."""
        query = select(masked_values).where(_m.secret_id == secret_id).order_by(_m.last_at.desc())
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            return [
                MaskedValue(
                    deployment=row.deployment,
                    form=row.form,
                    channel=row.channel,
                    times=row.times,
                    version=row.version,
                    last_at=row.last_at,
                )
                for row in connection.execute(query)
            ]

    def leaked(self, team_id: str) -> frozenset[str]:
        """The ids of the team's secrets of which the current version was found."""
        query = (
            select(_m.secret_id)
            .join(secrets_table, _s.id == _m.secret_id)
            .where(_s.team_id == team_id, _s.current_version == _m.version)
            .distinct()
        )
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            return frozenset(connection.execute(query).scalars())
