"""What models and custom images both show to Prometheus, in its text format.

No label value needs escaping: names of secrets have neither quotes nor backslashes.
"""

from __future__ import annotations

from collections.abc import Mapping

from gusset.runtime.caller_auth import CallerAuth
from gusset.secrets.hits import Hit

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


def head(name: str, kind: str, text: str) -> tuple[str, str]:
    """The two lines before a metric's samples."""
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def masked_metrics(hits: Mapping[Hit, int]) -> list[str]:
    """How often which secret was masked."""
    return [
        *head("gusset_masked_total", "counter", "How often values were masked, of the whole deployment."),
        *(
            f'gusset_masked_total{{name="{hit.secret}",form="{hit.form}",channel="{hit.channel}"}} {times}'
            for hit, times in sorted(hits.items())
            if hit.secret
        ),
    ]


def caller_metrics(auth: CallerAuth | None) -> list[str]:
    """The requests of each caller; nothing for a deployment without callers."""
    if auth is None:
        return []
    return [
        *head("gusset_caller_requests_total", "counter", "Requests by caller, also those that failed."),
        *(
            f'gusset_caller_requests_total{{caller="{name}"}} {count}'
            for name, count in sorted(auth.requests.items())
        ),
        *head("gusset_caller_refused_total", "counter", "Requests without the key of a caller."),
        f"gusset_caller_refused_total {auth.refused}",
    ]
