"""The short path of a replica that renews its lease and has nothing to report.

Nearly all requests to an idle manager are such: each replica sends one every few seconds.
"""

from __future__ import annotations

from gusset.manager.api import schemas
from gusset.manager.api.json_responses import json_response
from gusset.manager.auth.authenticator import Authenticator
from gusset.manager.live.delivery import REPLICAS, SESSION_HEADER
from gusset.runtime.exchange import Exchange
from gusset.vault.services.leases import Leases

RENEWED = json_response(200, schemas.Empty())

_PREFIX = REPLICAS.removesuffix("{id}").encode()


class Renewals:
    """Renews leases from what is in memory. Other requests take the path of every operation."""

    def __init__(self, authenticator: Authenticator, leases: Leases) -> None:
        self._authenticator = authenticator
        self._leases = leases

    def renew(self, exchange: Exchange) -> bool:
        """Whether the request has renewed a lease, so that the response is `RENEWED`.

        False: the request reports something, is not valid, or its validity cannot be determined
        without reading the database.
        """
        if exchange.method != b"PUT" or exchange.body not in (b"", b"{}"):
            return False
        path, session = exchange.path, exchange.header(SESSION_HEADER)
        if session is None or not path.startswith(_PREFIX):
            return False
        grant = self._authenticator.known_grant(exchange.header(b"authorization") or b"")
        lease = path[len(_PREFIX) :].decode("latin-1")
        return grant is not None and self._leases.renew_again(grant, lease, session)
