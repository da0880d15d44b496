"""Callers: the authenticated party behind a request, and what it may do."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass

from gusset.errors import Denied, IntegrityError, NotFound
from gusset.secrets.name import fold_name
from gusset.vault.audit.actor import Actor
from gusset.vault.services.access_keys import ALL_SECRETS, Scope
from gusset.vault.services.deployments import Grant
from gusset.vault.services.person import Person, TeamInfo


@dataclass(slots=True)  # not frozen: making one would take nearly three times as long
class PersonCaller:
    """A person, with the scopes of the API key or session that they use.

    `teams` are those that they see: all of them for an administrator whose key has the scope `admin`.
    `prefix` is the key's, for a session the person's email address. `gives` are the secrets that
    they may give to deployments.
    """

    person: Person
    actor: Actor
    scopes: frozenset[str]
    _: KW_ONLY
    teams: Sequence[TeamInfo]
    prefix: str
    gives: Collection[str]

    @property
    def sees_all(self) -> bool:
        """Whether they see every team."""
        return self.person.admin and "admin" in self.scopes

    def require_gives(self, names: Iterable[str]) -> None:
        """Raises Denied if the key may not give these secrets to a deployment, or to another key."""
        if ALL_SECRETS in self.gives:
            return
        given = {fold_name(name) for name in self.gives}
        if refused := sorted(name for name in names if name == ALL_SECRETS or fold_name(name) not in given):
            raise Denied(
                f"this API key may not give {', '.join(refused)} to deployments",
                hint='create a key that may: its `gives` names the secrets, or is ["*"]',
            )

    def require_scope(self, scope: Scope) -> None:
        """Raises Denied if the key lacks the scope, or the person the role that it needs."""
        if scope not in self.scopes:
            raise Denied(f"this API key lacks the scope {scope}", hint="create a key that has it")
        if scope == "admin" and not self.person.admin:
            raise Denied("only an administrator may do this")

    def team(self, team_id: str | None) -> TeamInfo:
        """The team with this id; None gives the caller's first team, which is `default` if they are in it.

        Raises:
            NotFound: no such team, or the caller does not see it.
            IntegrityError: the first team is missing, or may be: it was altered in the database.
        """
        if team_id is None:
            return self._first_team()
        for team in self.teams:
            if team.id == team_id:
                return team
        raise NotFound("there is no such team")

    def _first_team(self) -> TeamInfo:
        if self.teams and self.teams[0].default:
            return self.teams[0]
        self.check_teams()
        if not self.teams:
            raise NotFound("you are not in any team", hint="ask an administrator to add you to one")
        return self.teams[0]

    def check_teams(self) -> None:
        """Raises IntegrityError if a team may be missing among `teams` since the database was altered.

        Whoever altered it would else have a request that names no team work on another one.
        """
        is_default_missing = not any(team.default for team in self.teams)
        if self.person.has_altered_teams or (self.sees_all and is_default_missing):
            raise IntegrityError(
                "a team or membership was altered in the database, so it is not known which team is meant",
                hint="name the team; `gusset audit verify` says what was altered",
            )


@dataclass(slots=True)  # not frozen, as above
class DeploymentCaller:
    """A deployment, and what its token allows it to read. `prefix` and `expires_at` are the token's."""

    grant: Grant
    actor: Actor
    prefix: str
    expires_at: str | None


Caller = PersonCaller | DeploymentCaller
