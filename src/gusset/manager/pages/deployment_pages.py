"""The pages of what runs and of what was done: deployments, and the audit log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from gusset.errors import NotFound
from gusset.manager.api.serializers import audit_lines
from gusset.manager.pages.page_types import Download, Notice, Page, PageRequest, Redirect
from gusset.vault.audit.audit_log import Record, Report
from gusset.vault.services.access_keys import KeyInfo
from gusset.vault.services.deployments import DeploymentInfo

DEPLOYMENTS, AUDIT = "/settings/deployments", "/settings/audit"
RECORDS = 50
TOKENS = 50
_FILTERS = ("actor", "action", "target", "outcome")

# --- deployments


def deployments_page(visit: PageRequest) -> Page:
    """The deployments of one's teams."""
    return Page("deployments.html", "Deployments", {"deployments": _deployments(visit)})


def deployment_page(visit: PageRequest) -> Page:
    """One deployment: its replicas and what they hold, what it declares, its tokens."""
    info = _deployment(visit)
    known = visit.vault.team(info.team_id, info.team).known(
        {*info.secrets, *(name for replica in info.replicas for name in replica.versions)}
    )
    context = {
        "deployment": info,
        "current": {name: secret.version for name, secret in known.items()},
        "ids": {name: secret.id for name, secret in known.items()},
        "tokens": visit.vault.access.of_deployment(info.id)[:TOKENS],
    }
    return Page("deployment.html", info.name, context)


def remove_deployment(visit: PageRequest) -> Redirect:
    """Forget it, and revoke its tokens."""
    info = _deployment(visit)
    visit.vault.deployments.remove(info.team_id, info.name, actor=visit.caller.actor)
    return Redirect(DEPLOYMENTS, Notice("ok", f"{info.name} is removed, and its tokens are revoked."))


def revoke_token(visit: PageRequest) -> Redirect:
    """One token of a deployment, for good."""
    info = _deployment(visit)

    def allowed(key: KeyInfo) -> bool:
        return key.kind == "token" and key.deployment_id == info.id

    key = visit.vault.access.revoke(visit.path["prefix"], actor=visit.caller.actor, allowed=allowed)
    return Redirect(f"{DEPLOYMENTS}/{info.id}", Notice("ok", f"The token {key.prefix} is revoked."))


def _deployments(visit: PageRequest) -> list[DeploymentInfo]:
    return visit.vault.deployments.of_teams([team.id for team in visit.teams()])


def _deployment(visit: PageRequest) -> DeploymentInfo:
    """The deployment that the address names, where the caller's teams have it. Raises NotFound."""
    for info in _deployments(visit):
        if info.id == visit.path["id"]:
            return info
    raise NotFound("there is no such deployment", hint="It may have been removed meanwhile.")


# --- the audit log


def audit_page(visit: PageRequest) -> Page:
    """Records, newest first, those that fit."""
    return _audit(visit)


def verify(visit: PageRequest) -> Page:
    """Check the whole log, and say what was found."""
    return _audit(visit, report=visit.vault.audit.verify())


def export(visit: PageRequest) -> Download:
    """The whole log."""
    return Download("gusset-audit.jsonl", "application/x-ndjson", audit_lines(visit.vault))


def _audit(visit: PageRequest, *, report: Report | None = None) -> Page:
    filters = {key: visit.query.get(key, "").strip() for key in _FILTERS}
    wanted = {key: text for key, text in filters.items() if text}
    before = visit.query.get("before", "")
    since = int(before) if before.isascii() and before.isdigit() and len(before) < 19 else None
    found = visit.vault.audit.show(**wanted, before=since, limit=RECORDS + 1, parts=True)[::-1]
    records, more = found[:RECORDS], len(found) > RECORDS
    older = AUDIT + "?" + urlencode({**wanted, "before": records[-1].seq}) if more else None
    newer = AUDIT + ("?" + urlencode(wanted) if wanted else "") if since else None
    context = {
        "records": [_record(record) for record in records],
        "filters": filters,
        "report": _report(report) if report else None,
        "older_url": older,
        "newer_url": newer,
    }
    return Page("audit.html", "Audit log", context, part="_records.html")


def _record(record: Record) -> dict[str, Any]:
    details = json.loads(record.details)
    address = details.pop("from", None)
    shown = {"seq": record.seq, "at": record.at, "actor": record.actor, "action": record.action}
    shown |= {"target": record.target, "outcome": record.outcome, "address": address}
    return shown | {"details": spoken(details)}


def spoken(details: Mapping[str, Any]) -> str:
    """Details as a line: `version: 3, names: a b`. Ids, and what says nothing, are left to the export."""
    said = {key: value for key, value in details.items() if value not in (None, False)}
    return ", ".join(f"{key}: {_plain(value)}" for key, value in said.items() if key not in ("id", "team"))


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(
            f"{key} v{each}" if isinstance(each, int) else f"{key}={each}" for key, each in value.items()
        )
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "yes" if value is True else str(value)


def _report(report: Report) -> dict[str, Any]:
    good = not report.problems
    text = (
        f"The log holds: {report.records:,} records, none edited, removed or reordered, "
        f"held against {report.checkpoints:,} signed checkpoints."
        if good
        else "The log does not hold. Keep this database and its witness file as they are, and find out why:"
    )
    return {"ok": good, "text": text, "problems": list(report.problems)}
