"""Authorization: whether the caller may make this request."""

from __future__ import annotations

from typing import overload

from gusset.errors import Denied
from gusset.manager.auth.authenticator import Authenticator, AuthRequest
from gusset.manager.auth.callers import Caller, DeploymentCaller, PersonCaller
from gusset.vault.services.access_keys import Scope


@overload
def authorize(authenticator: Authenticator, request: AuthRequest, scope: Scope) -> PersonCaller: ...
@overload
def authorize(authenticator: Authenticator, request: AuthRequest, scope: None) -> DeploymentCaller: ...
@overload
def authorize(authenticator: Authenticator, request: AuthRequest, scope: Scope | None) -> Caller: ...


def authorize(authenticator: Authenticator, request: AuthRequest, scope: Scope | None) -> Caller:
    """Authenticate the caller and check that they may make the request.

    With a scope the caller must be a person whose key has it; with None, a
    deployment. A refusal is recorded in the audit log.

    Raises:
        NotSignedIn, Denied, TooManyAttempts: see `Authenticator`.
    """
    if scope is None:
        return authenticator.authenticate_deployment(request)
    caller = authenticator.authenticate_person(request)
    try:
        caller.require_scope(scope)
    except Denied as error:
        authenticator.record_refusal(request, caller, error)
        raise
    return caller
