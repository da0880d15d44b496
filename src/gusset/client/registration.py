"""Registers a deployment at a manager, with the API key of a person."""

from __future__ import annotations

import logging
from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from gusset.client.manager_client import ManagerClient
from gusset.errors import ResponseLost
from gusset.secrets.value import SecretValue

log = logging.getLogger("gusset.client")

TOKEN_PREFIX = b"gusset_tok_"
# A process revokes its token when it stops; this ends the tokens of those that were killed.
TOKEN_LIFETIME = timedelta(days=365)


def is_token(key: SecretValue) -> bool:
    """Whether a key is a deployment's token, not a person's API key."""
    return key.reveal().startswith(TOKEN_PREFIX)


def register(client: ManagerClient, deployment: str, names: Collection[str]) -> SecretValue:
    """Register the deployment; returns a token that reads just these secrets.

    Raises:
        Denied, NotSignedIn: the person may not register deployments, or the key is not valid.
        Unreachable: the manager does not respond.
    """
    expires_at = (datetime.now(UTC) + TOKEN_LIFETIME).isoformat()
    body = {"name": deployment, "secrets": sorted(names), "expires_at": expires_at}
    try:
        made = client.request("POST", "/v1/deployments", body)
    except ResponseLost as error:  # the previous manager created a token that nobody received
        log.warning(
            "%s. A new token is created: revoke the lost one, see `gusset token list --deployment %s`",
            error.message,
            deployment,
        )
        made = client.request("POST", "/v1/deployments", body)
    return SecretValue(made["token"].encode())
