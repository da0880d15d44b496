"""The page of the caller's API keys."""

from __future__ import annotations

import re

from gusset.errors import GussetError, UsageError, outcome_of
from gusset.manager.api.serializers import api_key_model
from gusset.manager.pages.page_types import Notice, Page, PageRequest, Redirect, error_text
from gusset.vault.services.access_keys import ALL_SECRETS, SCOPES, KeyInfo, Scope

API_KEYS = "/settings/api-keys"


def list_page(request: PageRequest) -> Page:
    """The caller's API keys."""
    return _page(request)


def _page(request: PageRequest, *, new_key: str | None = None, error: GussetError | None = None) -> Page:
    form = {
        "name": request.form.text("name") if error else "",
        "gives": request.form.text("gives") if error else ALL_SECRETS,
        "error": error_text(error) if error else None,
    }
    context = {
        "keys": [api_key_model(key) for key in request.vault.access_keys.of_user(request.caller.person.id)],
        "new_key": new_key,
        "form": form,
    }
    status = outcome_of(error).http if error else 200
    return Page(template="api_keys.html", title="API keys", context=context, status=status)


def create(request: PageRequest) -> Page:
    """Create an API key. Only this response shows it."""
    form, caller = request.form, request.caller
    try:
        scopes: list[Scope] = [scope for scope in SCOPES if scope in form.all("scope")]
        for scope in scopes:
            caller.require_scope(scope)
        _, key = request.vault.access_keys.create(
            caller.person.id,
            form.text("name"),
            scopes=scopes,
            gives=[name for name in re.split(r"[,\s]+", form.text("gives")) if name],
            actor=caller.actor,
            expires_at=form.date("expires"),
        )
    except UsageError as error:
        return _page(request, error=error)
    return _page(request, new_key=key.reveal().decode())


def revoke(request: PageRequest) -> Redirect:
    """Revoke one of the caller's API keys."""

    def allowed(info: KeyInfo) -> bool:
        return info.kind == "key" and info.user_id == request.caller.person.id

    info = request.vault.access_keys.revoke(
        request.path["prefix"], actor=request.caller.actor, allowed=allowed
    )
    return Redirect(API_KEYS, Notice("ok", f"API key {info.name} ({info.prefix}) was revoked."))
