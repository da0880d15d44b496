"""What the audit log of an older version of gusset says about rows: its records have no HMACs of them.

Each fact is a column of a row with what the records left in it. Of some columns they tell
only whether there is a value, and of some nothing at all: `NOT_COMPARED`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gusset.secrets.info import DEFAULT_TEAM
from gusset.secrets.name import fold_name
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditRecord
from gusset.vault.audit.log_state import CHANGES
from gusset.vault.storage.tables import (
    ACCESS_KEYS,
    DEPLOYMENTS,
    MEMBERS,
    SECRET_VERSIONS,
    SECRETS,
    TEAMS,
    USERS,
)

# The columns of which the log does not know the value. Of `password`, `sealed` and the times when
# something ended, it knows whether there is one.
NOT_COMPARED: Mapping[str, tuple[str, ...]] = {
    TEAMS.name: ("created_at",),
    USERS.name: ("id", "name", "password", "created_at", "disabled_at"),
    MEMBERS.name: (),
    DEPLOYMENTS.name: ("id", "created_at", "updated_at", "deleted_at"),
    ACCESS_KEYS.name: ("hash", "created_at", "revoked_at"),
    SECRETS.name: ("note", "expires_at", "created_at", "updated_at", "deleted_at", "revision"),
    SECRET_VERSIONS.name: ("sealed", "created_at", "destroyed_at"),
}
_FIRST_KEY_ALLOWS = ("secrets:read", "secrets:write", "deployments", "admin")
_MAKER = re.compile(r"(.*) \(key ([a-z2-7]{8})\)")  # an actor who used a key: their address, the key's prefix
_SET, _EMPTY = "set", "empty"


def presence(value: object) -> str:
    """What the log knows of a column of which it knows only whether it has a value."""
    return _EMPTY if value is None else _SET


@dataclass(slots=True)
class Known:
    """What the records say about a row's columns; `seq` is the last record about the row."""

    seq: int
    facts: dict[str, Any]

    def change(self, seq: int, **facts: Any) -> None:
        self.seq = seq
        self.facts |= facts


class OlderLog:
    """The rows that the log knows. Follows it from its start; its records are verified by others.

    Rows are found by what records call them: people by their address, memberships by team and
    address, deployments by the prefix of their first token, all others by their primary keys.
    """

    def __init__(self) -> None:
        self.teams: dict[str, Known] = {}
        self.people: dict[str, Known] = {}
        self.members: dict[tuple[str, str], Known] = {}
        self.deployments: dict[str, Known] = {}
        self.keys: dict[str, Known] = {}
        self.secrets: dict[str, Known] = {}
        self.versions: dict[tuple[str, int], Known] = {}
        self._other_teams: dict[str, None] = {}  # that no record created: the default one
        self._first_people: dict[str, Known] = {}  # memberships in the default team, by address
        self._live: dict[tuple[str, str], str] = {}  # deployments by team and name
        self._created: AuditRecord | None = None  # the newest record of a new person
        self._follow: dict[str, Callable[[AuditRecord, Any], None]] = {
            **dict.fromkeys(CHANGES, self._follow_secret),
            Action.TEAM_CREATE: self._create_team,
            Action.TEAM_ADD_MEMBER: self._add_member,
            Action.TEAM_REMOVE_MEMBER: self._remove_member,
            Action.PERSON_CREATE: self._create_person,
            Action.PERSON_ROLE: lambda record, details: self.people[record.target].change(
                record.seq, role=details["role"]
            ),
            Action.PERSON_PASSWORD: lambda record, _: self.people[record.target].change(
                record.seq, password=_SET
            ),
            Action.PERSON_ENABLE: lambda record, _: self.people[record.target].change(
                record.seq, disabled_at=_EMPTY
            ),
            Action.PERSON_DISABLE: self._disable_person,
            Action.API_KEY_CREATE: self._create_key,
            Action.API_KEY_REVOKE: self._revoke_key,
            Action.TOKEN_REVOKE: self._revoke_key,
            Action.DEPLOYMENT_REGISTER: self._register,
            Action.DEPLOYMENT_REMOVE: self._remove_deployment,
        }

    def follow(self, record: AuditRecord) -> None:
        """Take in the next record. One that tells less than it should leaves rows unknown."""
        follow = self._follow.get(record.action)
        if follow is not None and record.outcome == "ok":
            with suppress(KeyError, TypeError, ValueError, AttributeError):
                follow(record, json.loads(record.details))

    def end(self, default_team: str | None) -> None:
        """Call it after the last record. `default_team` is the team that has the default one's name.

        The first record made that team, but does not have its id; others name it.
        """
        team = next(iter(self._other_teams), default_team)
        if team is not None:
            self.teams[team] = Known(1, {"id": team, "name": DEFAULT_TEAM})
            for email, known in self._first_people.items():
                self.members[team, email] = known

    def _use_team(self, team: str) -> str:
        if team not in self.teams:
            self._other_teams[team] = None
        return team

    def _create_team(self, record: AuditRecord, details: Any) -> None:
        self.teams[details["team"]] = Known(record.seq, {"id": details["team"], "name": record.target})

    def _add_member(self, record: AuditRecord, details: Any) -> None:
        self.members[self._use_team(details["team"]), details["person"]] = Known(record.seq, {})

    def _remove_member(self, record: AuditRecord, details: Any) -> None:
        team, email = self._use_team(details["team"]), details["person"]
        self.members.pop((team, email), None)
        if team not in self.teams:
            self._first_people.pop(email, None)

    def _create_person(self, record: AuditRecord, details: Any) -> None:
        email, invited = record.target, "teams" in details
        self._created = record
        facts = {
            "email": email,
            "role": details["role"],
            "password": _EMPTY if invited else _SET,
            "disabled_at": _EMPTY,
        }
        self.people[email] = Known(record.seq, facts)
        if not invited:
            self._first_people[email] = Known(record.seq, {})
        for team in details.get("teams", ()):
            self.members[self._use_team(team), email] = Known(record.seq, {})

    def _disable_person(self, record: AuditRecord, details: Any) -> None:
        email = record.target
        self.people[email].change(record.seq, disabled_at=_SET)
        own = [prefix for prefix, key in self.keys.items() if key.facts.get("user_id") == email]
        self._revoke([*own, *details.get("keys", ())], record.seq)
        if "keys" not in details:  # it may be older than that detail: others may have been revoked, too
            for key in self.keys.values():
                maker = _MAKER.fullmatch(key.facts["created_by"])
                by_them = maker is not None and maker[2] in own
                if (by_them or "user_id" not in key.facts) and key.facts.get("revoked_at") == _EMPTY:
                    del key.facts["revoked_at"]

    def _create_key(self, record: AuditRecord, details: Any) -> None:
        facts = self._key_facts(record, "key", details.get("name", "first key"))
        allows = details.get("scopes", _FIRST_KEY_ALLOWS)
        facts |= {"allows": json.dumps(allows), "gives": '["*"]', "deployment_id": None}
        facts["expires_at"] = details.get("expires_at")
        maker = _MAKER.fullmatch(record.actor)
        owner = maker[1] if maker else record.actor
        if "scopes" not in details and self._created is not None:  # made together with the first person
            owner = self._created.target
        if owner in self.people:
            facts["user_id"] = owner
        self.keys[record.target] = Known(record.seq, facts)

    def _key_facts(self, record: AuditRecord, kind: str, name: str) -> dict[str, Any]:
        return {"kind": kind, "name": name, "created_by": record.actor, "revoked_at": _EMPTY}

    def _revoke_key(self, record: AuditRecord, details: Any) -> None:
        self._revoke([record.target, *details.get("made by it", ())], record.seq)

    def _revoke(self, prefixes: Iterable[str], seq: int) -> None:
        for prefix in prefixes:
            if (key := self.keys.get(prefix)) is not None and key.facts.get("revoked_at") != _SET:
                key.change(seq, revoked_at=_SET)

    def _register(self, record: AuditRecord, details: Any) -> None:
        team, prefix, secrets = self._use_team(details["team"]), details["token"], details["secrets"]
        declared = json.dumps(secrets)
        first = self._live.setdefault((team, record.target), prefix)
        if first == prefix:
            made = {"team_id": team, "name": record.target, "created_by": record.actor, "deleted_at": _EMPTY}
            self.deployments[first] = Known(record.seq, made)
        self.deployments[first].change(record.seq, secrets=declared)
        facts = self._key_facts(record, "token", record.target)
        facts |= {"allows": declared, "gives": None, "user_id": None, "deployment_id": first}
        self.keys[prefix] = Known(record.seq, {**facts, "expires_at": details["expires_at"]})

    def _remove_deployment(self, record: AuditRecord, details: Any) -> None:
        first = self._live.pop((details["team"], record.target))
        self.deployments[first].change(record.seq, deleted_at=_SET)
        tokens = [prefix for prefix, key in self.keys.items() if key.facts.get("deployment_id") == first]
        self._revoke(tokens, record.seq)

    def _follow_secret(self, record: AuditRecord, details: Any) -> None:
        secret_id, version = details["id"], details["version"]
        if secret_id not in self.secrets:
            name = {"name": record.target, "folded": fold_name(record.target)}
            team = self._use_team(details["team"])
            self.secrets[secret_id] = Known(record.seq, {"id": secret_id, "team_id": team, **name})
        deleted = _SET if details["deleted"] else _EMPTY
        self.secrets[secret_id].change(record.seq, current_version=version, deleted_at=deleted)
        if record.action in (Action.SECRET_CREATE, Action.SECRET_WRITE, Action.SECRET_ROLLBACK):
            self.secrets[secret_id].change(record.seq, last_version=version)
            facts = {"created_by": record.actor, "sealed": _SET, "destroyed_at": _EMPTY}
            self.versions[secret_id, version] = Known(record.seq, facts)
        for destroyed in details.get("destroyed", ()):
            self.versions[secret_id, destroyed].change(record.seq, sealed=_EMPTY, destroyed_at=_SET)
