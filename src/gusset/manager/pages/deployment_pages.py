"""Pages of deployments: their replicas, the secrets they declare, and their tokens."""

from __future__ import annotations

from gusset.errors import NotFound
from gusset.manager.pages.page_types import Notice, Page, PageRequest, Redirect
from gusset.vault.services.access_keys import KeyInfo
from gusset.vault.services.deployments import DeploymentInfo

DEPLOYMENTS = "/settings/deployments"
MAX_TOKENS = 50  # shown, the newest


def list_page(request: PageRequest) -> Page:
    """The deployments of the caller's teams."""
    context = {"deployments": _deployments(request)}
    return Page(template="deployments.html", title="Deployments", context=context)


def detail_page(request: PageRequest) -> Page:
    """One deployment: its replicas and the versions they hold, the secrets it declares, its tokens."""
    info = _deployment(request)
    known = request.vault.secrets_of(info.team_id, info.team).reader.find_many(
        {*info.secrets, *(name for replica in info.replicas for name in replica.versions)}
    )
    context = {
        "deployment": info,
        "current": {name: secret.version for name, secret in known.items()},
        "ids": {name: secret.id for name, secret in known.items()},
        "tokens": request.vault.access_keys.of_deployment(info.id)[:MAX_TOKENS],
    }
    return Page(template="deployment.html", title=info.name, context=context)


def remove(request: PageRequest) -> Redirect:
    """Remove a deployment and revoke its tokens."""
    info = _deployment(request)
    request.vault.deployments.remove(info.team_id, info.name, actor=request.caller.actor)
    return Redirect(DEPLOYMENTS, Notice("ok", f"{info.name} was removed and its tokens were revoked."))


def revoke_token(request: PageRequest) -> Redirect:
    """Revoke one of a deployment's tokens."""
    info = _deployment(request)

    def allowed(key: KeyInfo) -> bool:
        return key.kind == "token" and key.deployment_id == info.id

    key = request.vault.access_keys.revoke(
        request.path["prefix"], actor=request.caller.actor, allowed=allowed
    )
    return Redirect(f"{DEPLOYMENTS}/{info.id}", Notice("ok", f"Token {key.prefix} was revoked."))


def _deployments(request: PageRequest) -> list[DeploymentInfo]:
    return request.vault.deployments.of_teams([team.id for team in request.teams()])


def _deployment(request: PageRequest) -> DeploymentInfo:
    """The deployment with the id in the path, if it belongs to one of the caller's teams.

    Raises:
        NotFound: there is none.
        IntegrityError: it may belong to a team that was altered in the database.
    """
    for info in _deployments(request):
        if info.id == request.path["id"]:
            return info
    request.caller.check_teams()
    if request.caller.sees_all:
        request.vault.teams.check()
    raise NotFound("there is no such deployment", hint="It may have been removed.")
