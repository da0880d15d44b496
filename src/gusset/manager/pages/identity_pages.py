"""The page of identities, and of the issuers of their tokens for administrators."""

from __future__ import annotations

from gusset.errors import Conflict, GussetError, NotFound, UsageError, outcome_of
from gusset.manager.pages.page_types import Notice, Page, PageRequest, Redirect, error_text
from gusset.vault.services.deployments import DeploymentInfo
from gusset.vault.services.identity_rules import DEFAULT_AUDIENCE, IdentityRule
from gusset.vault.services.issuers import new_issuer

IDENTITIES = "/settings/identities"
_FIELDS = ("name", "deployment", "issuer", "subject", "audience", "claims")


def list_page(request: PageRequest) -> Page:
    """The identities of the caller's teams; for administrators, the issuers."""
    return _page(request)


def _page(
    request: PageRequest, *, error: GussetError | None = None, issuer_error: GussetError | None = None
) -> Page:
    """`error` is that of the form for an identity, `issuer_error` that of the form for an issuer."""
    form, refused = request.form, error or issuer_error
    shown = {name: form.text(name) if error else "" for name in _FIELDS}
    is_admin = request.caller.person.admin
    context = {
        "identities": request.vault.identities.of_teams([team.id for team in request.teams()]),
        "deployments": _deployments(request),
        "issuers": request.vault.issuers.all() if is_admin else [],
        "default_audience": DEFAULT_AUDIENCE,
        "form": {**shown, "error": error_text(error) if error else None},
        "issuer_form": {
            "url": form.text("url") if issuer_error else "",
            "error": error_text(issuer_error) if issuer_error else None,
        },
    }
    status = outcome_of(refused).http if refused else 200
    return Page(template="identities.html", title="Identities", context=context, status=status)


def add(request: PageRequest) -> Page | Redirect:
    """Let tokens of an issuer stand for a deployment."""
    form, caller = request.form, request.caller
    try:
        deployment = _deployment(request)
        caller.require_gives(deployment.secrets)
        rule = IdentityRule(
            issuer=form.text("issuer"),
            audience=form.text("audience") or DEFAULT_AUDIENCE,
            subject=form.text("subject"),
            claims=_claims(form.text("claims")),
        )
        info = request.vault.identities.add(
            form.text("name"),
            rule,
            deployment=deployment.id,
            new_issuer=new_issuer(form.text("issuer")),
            may_add_issuer=caller.person.admin,
            actor=caller.actor,
        )
    except (UsageError, Conflict, NotFound) as error:
        return _page(request, error=error)
    text = f"{info.name} was added: tokens that it matches stand for {info.deployment}."
    return Redirect(IDENTITIES, Notice("ok", text))


def remove(request: PageRequest) -> Redirect:
    """Remove an identity."""
    for info in request.vault.identities.of_teams([team.id for team in request.teams()]):
        if info.id == request.path["id"]:
            request.vault.identities.remove(info.team_id, info.name, actor=request.caller.actor)
            return Redirect(IDENTITIES, Notice("ok", f"{info.name} was removed, and its tokens have ended."))
    raise NotFound("there is no such identity", hint="It may have been removed.")


def add_issuer(request: PageRequest) -> Page | Redirect:
    """Trust an issuer."""
    form = request.form
    try:
        new = new_issuer(
            form.text("url"), form.text("jwks") or None, allow_private=form.raw("allow_private") == "yes"
        )
        replace = form.raw("replace") == "yes"
        request.vault.issuers.add(new, replace=replace, actor=request.caller.actor)
    except (UsageError, Conflict) as error:
        return _page(request, issuer_error=error)
    return Redirect(IDENTITIES, Notice("ok", f"The issuer {new.url} was added."))


def remove_issuer(request: PageRequest) -> Redirect:
    """Stop trusting an issuer."""
    url = request.form.text("url")
    try:
        request.vault.issuers.remove(url, actor=request.caller.actor)
    except Conflict as error:
        return Redirect(IDENTITIES, Notice("error", error_text(error)))
    return Redirect(IDENTITIES, Notice("ok", f"The issuer {url} was removed."))


def _claims(text: str) -> dict[str, str]:
    """The claims that are typed as lines POINTER=TEXT. Raises UsageError."""
    claims = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        pointer, separator, value = line.partition("=")
        if not separator:
            raise UsageError("a claim is a line such as /kubernetes.io/namespace=prod")
        if pointer in claims:
            raise UsageError(f"the claim {pointer} occurs twice")
        claims[pointer] = value
    return claims


def _deployments(request: PageRequest) -> list[DeploymentInfo]:
    return request.vault.deployments.of_teams([team.id for team in request.teams()])


def _deployment(request: PageRequest) -> DeploymentInfo:
    for each in _deployments(request):
        if each.id == request.form.raw("deployment"):
            return each
    raise NotFound("choose a deployment", hint="It may have been removed.")
