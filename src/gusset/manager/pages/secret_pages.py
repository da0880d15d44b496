"""The pages of secrets. A value comes in by a form and never goes out: no handler here can read one."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from gusset.errors import Conflict, GussetError, InvalidName, NotFound, UsageError, outcome_of
from gusset.manager.api.serializers import secret_model
from gusset.manager.pages.page_types import Form, Notice, Page, PageRequest, Redirect, told
from gusset.secrets.credentials import KNOWN_PREFIXES
from gusset.secrets.info import WARN_BEFORE, SecretInfo
from gusset.secrets.name import check_name, fold_name
from gusset.secrets.value import SecretValue
from gusset.secrets.value_doctor import examine
from gusset.vault.services.deployments import DeploymentInfo
from gusset.vault.services.people import TeamInfo
from gusset.vault.services.secret_store import SecretStore

ROWS = 25
VERSIONS = 100  # of a secret, the newest


def list_page(visit: PageRequest) -> Page:
    """The secrets of a team: filtered, page by page; or those that were deleted."""
    return _listed(visit, visit.caller.team(visit.query.get("team")))


def _listed(visit: PageRequest, team: TeamInfo, *, name: str = "", fault: GussetError | None = None) -> Page:
    store, query = _store(visit, team), "" if fault else visit.query.get("q", "").strip()
    deleted, page = visit.query.get("deleted") == "1" and not fault, _page_number(visit)
    found, total = store.page(containing=query, limit=ROWS, offset=(page - 1) * ROWS, deleted=deleted)
    used = visit.vault.deployments.declaring(team.id)
    context = {
        "team": team,
        "secrets": [_row(info, used.get(fold_name(info.name), ()), visit.now) for info in found],
        "q": query,
        "page": page,
        "pages": max(1, -(-total // ROWS)),
        "total": total,
        "deleted": deleted,
        "form": {"name": name, "error": told(fault)},
    }
    status = outcome_of(fault).http if fault else 200
    return Page("secrets.html", "Secrets", context, status=status, part="_secrets_list.html")


def add(visit: PageRequest) -> Page | Redirect:
    """A new secret, or a new version of one that there is."""
    team, name = visit.caller.team(visit.form.text("team") or None), visit.form.raw("name")
    try:
        value = visit.form.value()
        info = _store(visit, team).set(
            _meant(name),
            value,
            actor=visit.caller.actor,
            note=visit.form.text("note") or None,
            expires_at=visit.form.date("expires"),
        )
    except (UsageError, Conflict) as error:
        # What stands where a name should be is now and then a value: only a name is shown again.
        again = "" if isinstance(error, InvalidName) else name
        return _listed(visit, team, name=again, fault=error)
    return Redirect(f"/settings/secrets?team={team.id}", _stored(info, value, visit.now))


def _meant(name: str) -> str:
    """`name`, when it is one. Raises InvalidName, also for a name that must be a value in the wrong field."""
    kind = next((token.kind for token in KNOWN_PREFIXES if token.fits(name)), None)
    if kind:
        raise InvalidName(f"what stands under Name looks like {kind}: is it the value? Nothing was stored")
    return check_name(name)


def one_page(visit: PageRequest) -> Page:
    """All that is known of one secret."""
    return _one(visit, *_find(visit))


def _one(
    visit: PageRequest, store: SecretStore, info: SecretInfo, *, fault: GussetError | None = None
) -> Page:
    team = next(team for team in visit.teams() if team.id == info.team_id)
    users = [
        each
        for each in visit.vault.deployments.of_teams([team.id])
        if fold_name(info.name) in map(fold_name, each.secrets)
    ]
    versions = list(store.history(info.name))[::-1]
    context = {
        "team": team,
        "secret": _row(info, [each.name for each in users], visit.now),
        "versions": versions[:VERSIONS],
        "more_versions": max(0, len(versions) - VERSIONS),
        "usage": [_usage(each, info.name) for each in users],
        "form": {"error": told(fault)},
    }
    return Page("secret.html", info.name, context, status=outcome_of(fault).http if fault else 200)


def replace(visit: PageRequest) -> Page | Redirect:
    """A new version, if nobody else made one since the page was loaded."""
    store, info = _find(visit)
    try:
        value = visit.form.value()
        seen = _number(visit.form, "version")
        made = store.set(info.name, value, actor=visit.caller.actor, expect_version=seen)
    except (UsageError, Conflict) as error:
        return _one(visit, store, store.by_id(info.id) or info, fault=error)
    return Redirect(_url(info), _stored(made, value, visit.now))


def annotate(visit: PageRequest) -> Redirect:
    """Note and expiry."""
    store, info = _find(visit)
    note = visit.form.text("note").replace("\r\n", "\n")
    store.annotate(
        info.name, actor=visit.caller.actor, note=note, expires_at=visit.form.date("expires") or "never"
    )
    return Redirect(_url(info), Notice("ok", "Saved."))


def roll_back(visit: PageRequest) -> Redirect:
    """An older version's value, as a new version."""
    store, info = _find(visit)
    wanted = int(visit.path["number"])
    made = store.rollback(info.name, wanted, actor=visit.caller.actor)
    text = f"Version {wanted} is current again, as version {made.version}."
    return Redirect(_url(info), Notice("ok", text))


def destroy(visit: PageRequest) -> Redirect:
    """The stored bytes of one version, for good."""
    store, info = _find(visit)
    wanted = int(visit.path["number"])
    left = store.destroy(info.name, [wanted], actor=visit.caller.actor)
    if left.version is None:
        notice = Notice("warning", f"Version {wanted} is destroyed, and with it the last of {info.name}.")
    elif info.version == wanted:
        notice = Notice("warning", f"Version {wanted} is destroyed; version {left.version} is current now.")
    else:
        notice = Notice("ok", f"Version {wanted} is destroyed.")
    return Redirect(_url(info), notice)


def delete(visit: PageRequest) -> Redirect:
    """Take it away, with an undo; one that is in use only when that is said to be meant."""
    store, info = _find(visit)
    force = visit.form.raw("force") == "yes"
    try:
        store.delete(info.name, actor=visit.caller.actor, force=force)
    except Conflict as error:
        text = f"{error.message[:1].upper()}{error.message[1:]}: it would lose the value at once."
        return Redirect(_list_url(info), Notice("warning", text, force_url=_url(info) + "/delete"))
    return Redirect(
        _list_url(info), Notice("ok", f"{info.name} is deleted.", undo_url=_url(info) + "/restore")
    )


def restore(visit: PageRequest) -> Redirect:
    """Undo a deletion."""
    store, info = _find(visit, deleted=True)
    try:
        store.restore(info.id, actor=visit.caller.actor)
    except Conflict as error:
        return Redirect(_list_url(info), Notice("error", told(error) or ""))
    return Redirect(_list_url(info), Notice("ok", f"{info.name} is back."))


# --- what handlers share


def _stored(info: SecretInfo, value: SecretValue, now: datetime) -> Notice:
    findings = examine(value.reveal(), name=info.name, now=now)
    what = "is stored" if info.version == 1 else f"is replaced: version {info.version} is current now"
    details = tuple(f"{finding.message}: {finding.hint}" for finding in findings)
    ending = " It was kept exactly as it came; but have a look:" if details else ""
    return Notice("warning" if details else "ok", f"{info.name} {what}.{ending}", details=details)


def _find(visit: PageRequest, *, deleted: bool = False) -> tuple[SecretStore, SecretInfo]:
    """The secret that the address names, where the caller's teams have it. Raises NotFound."""
    for team in visit.teams():
        store = _store(visit, team)
        info = store.by_id(visit.path["id"])
        if info is not None and (info.deleted_at is not None) == deleted:
            return store, info
    raise NotFound(
        "there is no such secret" if not deleted else "no such secret is deleted",
        hint="It may have been deleted, or brought back, meanwhile.",
    )


def _store(visit: PageRequest, team: TeamInfo) -> SecretStore:
    return visit.vault.team(team.id, team.name)


def _row(info: SecretInfo, used: Iterable[str], now: datetime) -> dict[str, Any]:
    expiring = info.expires_at is not None and datetime.fromisoformat(info.expires_at) <= now + WARN_BEFORE
    return {**vars(secret_model(info, used)), "expiring": expiring}


def _usage(deployment: DeploymentInfo, name: str) -> dict[str, Any]:
    live = [replica for replica in deployment.replicas if replica.live]
    folded = fold_name(name)
    held = {version for r in live for key, version in r.versions.items() if fold_name(key) == folded}
    return {"id": deployment.id, "name": deployment.name, "live": len(live), "versions": sorted(held)}


def _page_number(visit: PageRequest) -> int:
    text = visit.query.get("page", "1")
    return min(max(int(text), 1), 1_000_000) if text.isascii() and text.isdigit() and len(text) < 9 else 1


def _number(form: Form, name: str) -> int:
    text = form.raw(name)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _url(info: SecretInfo) -> str:
    return f"/settings/secrets/{info.id}"


def _list_url(info: SecretInfo) -> str:
    return f"/settings/secrets?team={info.team_id}"
