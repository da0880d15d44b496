"""Gates of an HTTP server: they decide about a request when its head is complete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gusset.runtime.exchange import Exchange
from gusset.runtime.responses import Response

Gate = Callable[[Exchange], Response | None]
"""Returns None to let a request pass, or the response that refuses it."""


def all_gates(*gates: Gate | None) -> Gate | None:
    """A gate that passes a request through these in order; the first refusal counts. None is skipped.

    A refusal also has the headers that earlier gates have added to the response,
    such as those that let a web page read it.
    """
    left = [gate for gate in gates if gate is not None]
    if len(left) <= 1:
        return left[0] if left else None

    def gate(exchange: Exchange) -> Response | None:
        for each in left:
            if (refusal := each(exchange)) is not None:
                return replace(refusal, headers=(*refusal.headers, *exchange.response_headers))
        return None

    return gate
