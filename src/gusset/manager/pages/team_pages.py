"""The pages of API keys, and of people and their teams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gusset.errors import Conflict, GussetError, UsageError, outcome_of
from gusset.manager.api.serializers import api_key_model
from gusset.manager.pages.page_types import Notice, Page, PageRequest, Redirect, told
from gusset.vault.services.access_keys import SCOPES, KeyInfo, Scope
from gusset.vault.services.people import Person, Role

KEYS, PEOPLE = "/settings/api-keys", "/settings/people"

# --- API keys


def keys_page(visit: PageRequest) -> Page:
    """One's own keys."""
    return _keys(visit)


def _keys(visit: PageRequest, *, fresh: str | None = None, fault: GussetError | None = None) -> Page:
    context = {
        "keys": [api_key_model(key) for key in visit.vault.access.of_user(visit.caller.person.id)],
        "fresh_key": fresh,
        "form": {"name": visit.form.text("name") if fault else "", "error": told(fault)},
    }
    return Page("api_keys.html", "API keys", context, status=outcome_of(fault).http if fault else 200)


def make_key(visit: PageRequest) -> Page:
    """A new key. The answer shows it, and nothing does again."""
    try:
        scopes: list[Scope] = [scope for scope in SCOPES if scope in visit.form.all("scope")]
        for scope in scopes:
            visit.caller.require_scope(scope)
        _, key = visit.vault.access.create(
            visit.caller.person.id,
            _key_name(visit.form.text("name")),
            scopes=scopes,
            actor=visit.caller.actor,
            expires_at=visit.form.date("expires"),
        )
    except UsageError as error:
        return _keys(visit, fault=error)
    return _keys(visit, fresh=key.reveal().decode())


def _key_name(text: str) -> str:
    if not 1 <= len(text) <= 120 or not text.isprintable():
        raise UsageError("a key's name has 1 to 120 printable characters")
    return text


def revoke_key(visit: PageRequest) -> Redirect:
    """A key of one's own, for good."""

    def allowed(info: KeyInfo) -> bool:
        return info.kind == "key" and info.user_id == visit.caller.person.id

    info = visit.vault.access.revoke(visit.path["prefix"], actor=visit.caller.actor, allowed=allowed)
    return Redirect(KEYS, Notice("ok", f"The key {info.name} ({info.prefix}) is revoked."))


# --- people


def people_page(visit: PageRequest) -> Page:
    """Everybody, and the teams that they are in."""
    return _people(visit)


def _people(
    visit: PageRequest, *, link: str | None = None, whose: str = "", fault: GussetError | None = None
) -> Page:
    everybody, teams = visit.vault.people.everybody(), visit.vault.people.teams()
    all_teams: list[dict[str, Any]] = []
    for team in teams:
        members = [p for p in everybody if any(each.id == team.id for each in p.teams)]
        others = [p for p in everybody if p not in members and p.disabled_at is None]
        all_teams.append(
            {"id": team.id, "name": team.name, "default": team.default, "members": members, "others": others}
        )
    form = visit.form
    context = {
        "people": everybody,
        "all_teams": all_teams,
        "fresh_link": f"{visit.here}/setup/{link}" if link else None,
        "fresh_email": whose,
        "form": {
            "email": form.text("email") if fault else "",
            "name": form.text("name") if fault else "",
            "error": told(fault),
        },
    }
    return Page("people.html", "People", context, status=outcome_of(fault).http if fault else 200)


def invite(visit: PageRequest) -> Page:
    """A new person. The answer shows the link with which they choose a password, and nothing does again."""
    form = visit.form
    try:
        person, link = visit.vault.people.invite(
            form.text("email"),
            name=form.text("name")[:120],
            role=_role(form.raw("role")),
            team_ids=form.all("team"),
            actor=visit.caller.actor,
        )
    except (UsageError, Conflict) as error:
        return _people(visit, fault=error)
    return _people(visit, link=link.reveal().decode(), whose=person.email)


def new_link(visit: PageRequest) -> Page:
    """Another link for who lost theirs, or their password."""
    person = visit.vault.people.get(visit.path["id"])
    link = visit.vault.people.new_link(person.id, actor=visit.caller.actor)
    return _people(visit, link=link.reveal().decode(), whose=person.email)


def set_role(visit: PageRequest) -> Redirect:
    """Admin or member."""
    role = _role(visit.form.raw("role"))
    return _changed(visit, visit.vault.people.set_role, "{} is now " + role + ".", role)


def _role(text: str) -> Role:
    return "admin" if text == "admin" else "member"


def disable(visit: PageRequest) -> Redirect:
    """Let somebody in no more."""
    text = "{} is let in no more; their sessions and keys ended."
    return _changed(visit, visit.vault.people.disable, text)


def enable(visit: PageRequest) -> Redirect:
    """Let somebody in again."""
    text = "{} may sign in again. Keys that were revoked stay so."
    return _changed(visit, visit.vault.people.enable, text)


def _changed(visit: PageRequest, change: Callable[..., Person], text: str, *args: str) -> Redirect:
    try:
        person = change(visit.path["id"], *args, actor=visit.caller.actor)
    except Conflict as error:
        return Redirect(PEOPLE, Notice("error", told(error) or ""))
    return Redirect(PEOPLE, Notice("ok", text.format(person.email)))


# --- teams


def create_team(visit: PageRequest) -> Redirect:
    """A new team."""
    try:
        team = visit.vault.people.create_team(visit.form.text("name"), actor=visit.caller.actor)
    except (UsageError, Conflict) as error:
        return Redirect(PEOPLE, Notice("error", told(error) or ""))
    return Redirect(PEOPLE, Notice("ok", f"There is a team {team.name} now. Put people into it."))


def put_in(visit: PageRequest) -> Redirect:
    """Somebody into a team."""
    visit.vault.people.add_member(visit.path["id"], visit.form.raw("person"), actor=visit.caller.actor)
    return Redirect(PEOPLE, Notice("ok", "They see that team's secrets from now on."))


def take_out(visit: PageRequest) -> Redirect:
    """Somebody out of a team."""
    visit.vault.people.remove_member(visit.path["id"], visit.path["person"], actor=visit.caller.actor)
    return Redirect(PEOPLE, Notice("ok", "They no longer see that team's secrets."))
