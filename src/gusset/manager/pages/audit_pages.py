"""Pages of the audit log: filter, verify and export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from gusset.manager.api.serializers import audit_lines
from gusset.manager.pages.page_types import Download, Page, PageRequest
from gusset.vault import deadline
from gusset.vault.audit.events import AuditRecord
from gusset.vault.audit.log import VerificationReport

AUDIT = "/settings/audit"
ROWS = 50  # per page
_FILTERS = ("actor", "action", "target", "outcome")


def list_page(request: PageRequest) -> Page:
    """The records that match the filters, newest first."""
    return _page(request)


def verify(request: PageRequest) -> Page:
    """Verify the whole log, and show the result."""
    deadline.remove()
    return _page(request, report=request.vault.audit.verify())


def export(request: PageRequest) -> Download:
    """Download the whole log as JSON Lines."""
    return Download("gusset-audit.jsonl", "application/x-ndjson", audit_lines(request.vault))


def _page(request: PageRequest, *, report: VerificationReport | None = None) -> Page:
    filters = {key: request.query.get(key, "").replace("\0", "").strip() for key in _FILTERS}
    wanted = {key: text for key, text in filters.items() if text}
    before = _before(request)
    found = request.vault.audit.show(
        actor=filters["actor"] or None,
        action=filters["action"] or None,
        target=filters["target"] or None,
        outcome=filters["outcome"] or None,
        before=before,
        limit=ROWS + 1,
        substring=True,
    )[::-1]
    records, more = found[:ROWS], len(found) > ROWS
    older_url = AUDIT + "?" + urlencode({**wanted, "before": records[-1].seq}) if more else None
    newest_url = AUDIT + ("?" + urlencode(wanted) if wanted else "") if before else None
    context = {
        "records": [_row(record) for record in records],
        "filters": filters,
        "report": _report(report) if report else None,
        "older_url": older_url,
        "newest_url": newest_url,
    }
    return Page(template="audit.html", title="Audit log", context=context, part="_records.html")


def _before(request: PageRequest) -> int | None:
    text = request.query.get("before", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _row(record: AuditRecord) -> dict[str, Any]:
    shown = record.shown()
    details = shown["details"]
    return {**shown, "address": details.pop("from", None), "details": details_text(details)}


def details_text(details: Mapping[str, Any]) -> str:
    """Details as one line, such as `version: 3, names: a b`. Ids and empty details are only in the export."""
    return ", ".join(
        f"{key}: {_detail_text(value)}"
        for key, value in details.items()
        if key not in ("id", "ids", "team") and value not in (None, False)
    )


def _detail_text(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(
            f"{key} v{each}" if isinstance(each, int) else f"{key}={each}" for key, each in value.items()
        )
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "yes" if value is True else str(value)


def _report(report: VerificationReport) -> dict[str, Any]:
    intact = not report.problems
    text = (
        f"The audit log is intact: none of its {report.records:,} records was edited, removed or reordered, "
        f"and all {report.checkpoints:,} signed checkpoints match."
        if intact
        else "The audit log was tampered with or is damaged. Keep this database and its witness file "
        "unchanged, and investigate:"
    )
    return {"intact": intact, "text": text, "problems": list(report.problems)}
