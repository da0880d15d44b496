"""Pages of secrets. Forms submit values, but no page shows one: no handler here can read a value."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from gusset.errors import Conflict, GussetError, InvalidName, NotFound, UsageError, outcome_of
from gusset.manager.api.serializers import secret_model
from gusset.manager.pages.page_types import Form, Notice, Page, PageRequest, Redirect, error_text
from gusset.secrets.credentials import token_shape
from gusset.secrets.info import WARN_BEFORE, SecretInfo
from gusset.secrets.name import check_name, fold_name
from gusset.secrets.value import SecretValue
from gusset.secrets.value_doctor import examine
from gusset.vault.services.deployments import DeploymentInfo
from gusset.vault.services.person import TeamInfo
from gusset.vault.wiring import TeamSecrets

ROWS = 25  # per page
MAX_MASKED = 100  # sums of masked values, the newest
MAX_VERSIONS = 100  # shown, the newest
OVERLAPS = (
    (0, "not at all"),
    (600, "for 10 minutes"),
    (3600, "for an hour"),
    (86_400, "for a day"),
    (604_800, "for a week"),
)


def list_page(request: PageRequest) -> Page:
    """A team's secrets, filtered and paginated; or its deleted secrets."""
    return _list(request, request.caller.team(request.query.get("team")))


def _list(request: PageRequest, team: TeamInfo, *, name: str = "", error: GussetError | None = None) -> Page:
    secrets, query = (
        _secrets(request, team),
        "" if error else request.query.get("q", "").replace("\0", "").strip(),
    )
    deleted, page = request.query.get("deleted") == "1" and not error, _page_number(request)
    found, total = secrets.reader.page(
        containing=query, limit=ROWS, offset=(page - 1) * ROWS, deleted=deleted
    )
    used_by = request.vault.deployments.by_declared_secret(team.id)
    context = {
        "team": team,
        "secrets": [_row(info, used_by.get(fold_name(info.name), ()), request.now) for info in found],
        "leaked": request.vault.masked_values.leaked(team.id),
        "q": query,
        "page": page,
        "pages": max(1, -(-total // ROWS)),
        "total": total,
        "deleted": deleted,
        "form": {"name": name, "error": error_text(error) if error else None},
    }
    return Page(
        template="secrets.html",
        title="Secrets",
        context=context,
        status=_status(error),
        part="_secrets_list.html",
    )


def add(request: PageRequest) -> Page | Redirect:
    """Create a secret, or add a new version to an existing one."""
    form = request.form
    team, name = request.caller.team(form.text("team") or None), form.raw("name")
    try:
        value = form.value()
        info = _secrets(request, team).writer.set(
            _checked_name(name),
            value,
            actor=request.caller.actor,
            note=form.text("note") or None,
            expires_at=form.date("expires"),
        )
    except (UsageError, Conflict) as error:
        # An invalid name may be a value in the wrong field: do not repeat it.
        repeated = "" if isinstance(error, InvalidName) else name
        return _list(request, team, name=repeated, error=error)
    return Redirect(f"/settings/secrets?team={team.id}", _stored_notice(info, value, request.now))


def _checked_name(name: str) -> str:
    """`name` if it is valid. Raises InvalidName, also for what looks like a value in the wrong field."""
    if shape := token_shape(name):
        raise InvalidName(
            f"the name looks like {shape.kind}; did you enter the value as the name? Nothing was stored"
        )
    return check_name(name)


def detail_page(request: PageRequest) -> Page:
    """One secret: its metadata, versions, and the deployments that use it."""
    return _detail(request, *_find(request))


def _detail(
    request: PageRequest, secrets: TeamSecrets, info: SecretInfo, *, error: GussetError | None = None
) -> Page:
    team = next(team for team in request.teams() if team.id == info.team_id)
    used_by = [
        each
        for each in request.vault.deployments.of_teams([team.id])
        if fold_name(info.name) in map(fold_name, each.secrets)
    ]
    versions = list(secrets.reader.history(info.name))[::-1]
    context = {
        "team": team,
        "secret": _row(info, [each.name for each in used_by], request.now),
        "versions": versions[:MAX_VERSIONS],
        "more_versions": max(0, len(versions) - MAX_VERSIONS),
        "masked": request.vault.masked_values.of_secret(info.id)[:MAX_MASKED],
        "rotation": _rotation(request, team, info),
        "overlaps": OVERLAPS,
        "usage": [_usage(each, info.name) for each in used_by],
        "form": {"error": error_text(error) if error else None},
    }
    return Page(
        template="secret.html",
        title=info.name,
        context=context,
        status=_status(error),
        part="_rotation.html",
    )


def replace(request: PageRequest) -> Page | Redirect:
    """Add a new version, unless somebody else added one since the page was loaded."""
    secrets, info = _find(request)
    try:
        value = request.form.value()
        stored = secrets.writer.set(
            info.name,
            value,
            actor=request.caller.actor,
            expect_version=_number(request.form, "version"),
            overlap=timedelta(seconds=_number(request.form, "overlap")) or None,
        )
    except (UsageError, Conflict) as error:
        return _detail(request, secrets, secrets.reader.by_id(info.id) or info, error=error)
    return Redirect(_url(info), _stored_notice(stored, value, request.now))


def annotate(request: PageRequest) -> Redirect:
    """Change the note and the expiry date."""
    secrets, info = _find(request)
    note = request.form.text("note").replace("\r\n", "\n")
    secrets.writer.annotate(
        info.name, actor=request.caller.actor, note=note, expires_at=request.form.date("expires") or "never"
    )
    return Redirect(_url(info), Notice("ok", "The note and expiry date were saved."))


def roll_back(request: PageRequest) -> Redirect:
    """Make an older version's value current again, as a new version."""
    secrets, info = _find(request)
    number = _version(request)
    stored = secrets.writer.rollback(info.name, number, actor=request.caller.actor)
    text = f"Version {number} is current again, as version {stored.version}."
    return Redirect(_url(info), Notice("ok", text))


def destroy(request: PageRequest) -> Redirect:
    """Permanently destroy the stored bytes of one version."""
    secrets, info = _find(request)
    number = _version(request)
    remaining = secrets.writer.destroy(info.name, [number], actor=request.caller.actor)
    if remaining.version is None:
        notice = Notice("warning", f"Version {number} was destroyed. {info.name} has no version left.")
    elif info.version == number:
        notice = Notice(
            "warning", f"Version {number} was destroyed. Version {remaining.version} is current now."
        )
    else:
        notice = Notice("ok", f"Version {number} was destroyed.")
    return Redirect(_url(info), notice)


def delete(request: PageRequest) -> Redirect:
    """Delete a secret, with an undo. One that is in use needs a confirmation."""
    secrets, info = _find(request)
    force = request.form.raw("force") == "yes"
    try:
        secrets.writer.delete(info.name, actor=request.caller.actor, force=force)
    except Conflict as error:
        text = f"{error.message[:1].upper()}{error.message[1:]}, which would lose the value at once."
        return Redirect(_list_url(info), Notice("warning", text, force_url=_url(info) + "/delete"))
    return Redirect(
        _list_url(info), Notice("ok", f"{info.name} was deleted.", undo_url=_url(info) + "/restore")
    )


def restore(request: PageRequest) -> Redirect:
    """Undo a deletion."""
    secrets, info = _find(request, deleted=True)
    try:
        secrets.writer.restore(info.id, actor=request.caller.actor)
    except Conflict as error:
        return Redirect(_list_url(info), Notice("error", error_text(error)))
    return Redirect(_list_url(info), Notice("ok", f"{info.name} was restored."))


# --- what handlers share


def _status(error: GussetError | None) -> int:
    return outcome_of(error).http if error else 200


def _stored_notice(info: SecretInfo, value: SecretValue, now: datetime) -> Notice:
    """A confirmation, with what the value doctor found."""
    findings = examine(value.reveal(), name=info.name, now=now)
    details = tuple(f"{finding.message}: {finding.hint}" for finding in findings)
    text = (
        f"{info.name} was stored."
        if info.version == 1
        else f"{info.name} was replaced. Version {info.version} is current now."
    )
    if details:
        text += " The value was stored unchanged, but please check it:"
    return Notice("warning" if details else "ok", text, details=details)


def _find(request: PageRequest, *, deleted: bool = False) -> tuple[TeamSecrets, SecretInfo]:
    """The secret with the id in the path, if it belongs to one of the caller's teams. Raises NotFound."""
    for team in request.teams():
        secrets = _secrets(request, team)
        info = secrets.reader.by_id(request.path["id"])
        if info is not None and (info.deleted_at is not None) == deleted:
            return secrets, info
    raise NotFound(
        "there is no such deleted secret" if deleted else "there is no such secret",
        hint="It may have been deleted or restored in the meantime.",
    )


def _secrets(request: PageRequest, team: TeamInfo) -> TeamSecrets:
    return request.vault.secrets_of(team.id, team.name)


def _row(info: SecretInfo, used_by: Iterable[str], now: datetime) -> dict[str, Any]:
    expiring = info.expires_at is not None and datetime.fromisoformat(info.expires_at) <= now + WARN_BEFORE
    return {**vars(secret_model(info, used_by)), "expiring": expiring}


def _rotation(request: PageRequest, team: TeamInfo, info: SecretInfo) -> dict[str, Any] | None:
    """How far the current version has replaced the ones before it; None if nothing is to be shown."""
    if info.version is None:
        return None
    rotation = request.vault.rotations_of(team.id, team.name).get(info.name, info.version)
    if not rotation.replicas and rotation.overlap is None:
        return None
    left = [each for each in rotation.replicas if not each.has_acknowledged]
    return {
        "version": rotation.version,
        "started_at": rotation.started_at,
        "overlap": rotation.overlap,
        "replicas": rotation.replicas,
        "acknowledged": len(rotation.replicas) - len(left),
        "left": left,
        "waiting": any(each.state == "waiting" for each in left),
    }


def _usage(deployment: DeploymentInfo, name: str) -> dict[str, Any]:
    """How many replicas of a deployment are running, and which versions of the secret they hold."""
    live = [replica for replica in deployment.replicas if replica.live]
    folded = fold_name(name)
    held = {version for r in live for key, version in r.versions.items() if fold_name(key) == folded}
    return {"id": deployment.id, "name": deployment.name, "live": len(live), "versions": sorted(held)}


def _page_number(request: PageRequest) -> int:
    text = request.query.get("page", "1")
    return min(max(int(text), 1), 1_000_000) if text.isascii() and text.isdigit() and len(text) < 9 else 1


def _number(form: Form, name: str) -> int:
    text = form.raw(name)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _version(request: PageRequest) -> int:
    """The version in the path. Raises NotFound for a number that no version can have."""
    text = request.path["number"]
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise NotFound("there is no such version")
    return int(text)


def _url(info: SecretInfo) -> str:
    return f"/settings/secrets/{info.id}"


def _list_url(info: SecretInfo) -> str:
    return f"/settings/secrets?team={info.team_id}"
