"""The page of people and teams, for administrators."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from gusset.errors import Conflict, GussetError, TokensLeft, UsageError, outcome_of
from gusset.manager.pages.page_types import Notice, Page, PageRequest, Redirect, error_text
from gusset.vault.services.person import Person, Role, TeamInfo

PEOPLE = "/settings/people"

# --- people


def list_page(request: PageRequest) -> Page:
    """All people, and the members of each team."""
    return _page(request)


def _page(
    request: PageRequest,
    *,
    link: str | None = None,
    link_email: str = "",
    error: GussetError | None = None,
    disabling: Person | None = None,
    tokens_left: TokensLeft | None = None,
) -> Page:
    """`disabling` is a person who made tokens or identities: somebody must decide about `tokens_left`."""
    people, form = request.vault.people.all(), request.form
    context = {
        "people": people,
        "all_teams": [_team(team, people) for team in request.vault.teams.all()],
        "new_link": f"{request.base_url}/setup/{link}" if link else None,
        "link_email": link_email,
        "disabling": disabling,
        "tokens_left": tokens_left.tokens if tokens_left else (),
        "identities_left": tokens_left.identities if tokens_left else (),
        "form": {
            "email": form.text("email") if error else "",
            "name": form.text("name") if error else "",
            "error": error_text(error) if error else None,
        },
    }
    refusal = error or tokens_left
    status = outcome_of(refusal).http if refusal else 200
    return Page(template="people.html", title="People", context=context, status=status)


def _team(team: TeamInfo, people: list[Person]) -> dict[str, Any]:
    """A team with its members and the people who can be added to it."""
    members = [person for person in people if any(each.id == team.id for each in person.teams)]
    others = [person for person in people if person not in members and person.disabled_at is None]
    return {
        "id": team.id,
        "name": team.name,
        "default": team.default,
        "members": members,
        "others": others,
    }


def invite(request: PageRequest) -> Page:
    """Invite a person. Only this response shows the link for choosing a password."""
    form = request.form
    try:
        person, link = request.vault.invitations.invite(
            form.text("email"),
            name=form.text("name")[:120],
            role=_role(form.raw("role")),
            team_ids=form.all("team"),
            actor=request.caller.actor,
        )
    except (UsageError, Conflict) as error:
        return _page(request, error=error)
    return _page(request, link=link.reveal().decode(), link_email=person.email)


def create_link(request: PageRequest) -> Page:
    """Create a new link for a person who lost their link or password."""
    person = request.vault.people.get(request.path["id"])
    link = request.vault.invitations.new_link(person.id, actor=request.caller.actor)
    return _page(request, link=link.reveal().decode(), link_email=person.email)


def set_role(request: PageRequest) -> Redirect:
    """Make a person an administrator or a member."""
    role = _role(request.form.raw("role"))
    return _change(request, partial(request.vault.people.update, role=role), "{} is now " + role + ".")


def _role(text: str) -> Role:
    return "admin" if text == "admin" else "member"


def disable(request: PageRequest) -> Page | Redirect:
    """Disable a person's account. If they made tokens or identities, ask first what happens to those."""
    text = "{} is disabled. Their sessions have ended and their API keys are revoked."
    chosen: Literal["revoke", "pass"] | None = None
    if (choice := request.form.raw("tokens")) in ("revoke", "pass"):
        chosen = "revoke" if choice == "revoke" else "pass"
    try:
        return _change(request, partial(request.vault.people.update, disabled=True, tokens=chosen), text)
    except TokensLeft as error:
        person = request.vault.people.get(request.path["id"])
        return _page(request, disabling=person, tokens_left=error)


def enable(request: PageRequest) -> Redirect:
    """Enable a disabled account."""
    text = "{} is enabled and can sign in. API keys that were revoked stay revoked."
    return _change(request, partial(request.vault.people.update, disabled=False), text)


def _change(request: PageRequest, change: Callable[..., Person], text: str) -> Redirect:
    try:
        person = change(request.path["id"], actor=request.caller.actor)
    except TokensLeft:
        raise
    except Conflict as error:
        return Redirect(PEOPLE, Notice("error", error_text(error)))
    return Redirect(PEOPLE, Notice("ok", text.format(person.email)))


# --- teams


def create_team(request: PageRequest) -> Redirect:
    """Create a team."""
    try:
        team = request.vault.teams.create(request.form.text("name"), actor=request.caller.actor)
    except (UsageError, Conflict) as error:
        return Redirect(PEOPLE, Notice("error", error_text(error)))
    return Redirect(PEOPLE, Notice("ok", f"Team {team.name} was created. Now add people to it."))


def add_member(request: PageRequest) -> Redirect:
    """Add a person to a team."""
    person_id, teams = request.form.raw("person"), request.vault.teams
    teams.add_member(request.path["id"], person_id, actor=request.caller.actor)
    return Redirect(PEOPLE, Notice("ok", "The person was added, and now sees the team's secrets."))


def remove_member(request: PageRequest) -> Redirect:
    """Remove a person from a team."""
    teams = request.vault.teams
    teams.remove_member(request.path["id"], request.path["person"], actor=request.caller.actor)
    return Redirect(PEOPLE, Notice("ok", "The person was removed, and no longer sees the team's secrets."))
