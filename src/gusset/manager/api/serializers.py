"""Response models from what the vault returns. Each model is built in one place, by keyword."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice

import orjson

from gusset.manager.api import schemas
from gusset.rotation.state import ProviderRotation, RotationPlan
from gusset.secrets.info import SecretInfo, VersionInfo, expiry_warning
from gusset.vault.audit.events import AuditRecord
from gusset.vault.audit.log import VerificationReport
from gusset.vault.services.access_keys import KeyInfo
from gusset.vault.services.deployments import DeploymentInfo, ReplicaInfo
from gusset.vault.services.person import Person, TeamInfo
from gusset.vault.services.rotations import RotatingReplica, Rotation
from gusset.vault.wiring import Vault


def secret_model(
    info: SecretInfo, used_by: Iterable[str] = (), warnings: Sequence[schemas.SecretWarning] = ()
) -> schemas.Secret:
    """A secret without its value. A warning about its expiry date comes before `warnings`."""
    expiry = expiry_warning(info.expires_at, datetime.now(UTC)) if info.expires_at else None
    if expiry:
        warnings = [schemas.SecretWarning(message=f"{info.name} {expiry}", hint=None), *warnings]
    return schemas.Secret(
        id=info.id,
        created_at=info.created_at,
        name=info.name,
        team_name=info.team,
        version=info.version,
        updated_at=info.updated_at,
        deleted_at=info.deleted_at,
        note=info.note,
        expires_at=info.expires_at,
        last_read_at=info.last_read_at,
        used_by=list(used_by),
        warnings=warnings,
    )


def version_model(version: VersionInfo) -> schemas.Version:
    return schemas.Version(
        version=version.version,
        created_at=version.created_at,
        created_by=version.created_by,
        state=version.state,
    )


def rotation_model(rotation: Rotation) -> schemas.Rotation:
    overlap = rotation.overlap
    return schemas.Rotation(
        secret_id=rotation.secret_id,
        name=rotation.name,
        version=rotation.version,
        started_at=rotation.started_at,
        current_version=rotation.current_version,
        overlap=schemas.Overlap(version=overlap.version, ends_at=overlap.ends_at) if overlap else None,
        acknowledged=sum(replica.has_acknowledged for replica in rotation.replicas),
        replicas=list(map(_rotating_replica_model, rotation.replicas)),
        lost_before=list(map(_rotating_replica_model, rotation.lost_before)),
    )


def _rotating_replica_model(replica: RotatingReplica) -> schemas.RotatingReplica:
    return schemas.RotatingReplica(
        id=replica.id,
        deployment=replica.deployment,
        host=replica.host,
        state=replica.state,
        version=replica.version,
        used=replica.used,
        seen_at=replica.seen_at,
    )


def provider_rotation_model(rotation: ProviderRotation) -> schemas.ProviderRotation:
    return schemas.ProviderRotation(
        id=rotation.id,
        secret_id=rotation.secret_id,
        name=rotation.name,
        team_name=rotation.team,
        step=rotation.step,
        version=rotation.version,
        handle=rotation.handle,
        current=rotation.current,
        revoke=rotation.revoke,
        started_at=rotation.started_at,
        started_by=rotation.started_by,
    )


def rotation_plan_model(plan: RotationPlan) -> schemas.RotationPlan:
    return schemas.RotationPlan(
        name=plan.name,
        version=plan.version,
        rotate_every=plan.rotate_every,
        rotate_at=plan.rotate_at,
        expires_at=plan.expires_at,
        step=plan.step,
    )


def team_model(team: TeamInfo) -> schemas.Team:
    return schemas.Team(id=team.id, name=team.name, default=team.default, created_at=team.created_at)


def person_model(person: Person) -> schemas.Person:
    return schemas.Person(
        id=person.id,
        email=person.email,
        name=person.name,
        role=person.role,
        teams=[team_model(team) for team in person.teams],
        created_at=person.created_at,
        disabled_at=person.disabled_at,
        invited=person.invited,
    )


def api_key_model(key: KeyInfo) -> schemas.ApiKey:
    """A person's key: `allows` holds scopes."""
    return schemas.ApiKey(
        prefix=key.prefix,
        name=key.name,
        scopes=key.allows,
        gives=key.gives,
        created_at=key.created_at,
        expires_at=key.expires_at,
        last_used_at=key.last_used_at,
        revoked_at=key.revoked_at,
    )


def token_model(key: KeyInfo) -> schemas.Token:
    """A deployment's token: `allows` holds names of secrets."""
    return schemas.Token(
        prefix=key.prefix,
        name=key.name,
        created_at=key.created_at,
        expires_at=key.expires_at,
        last_used_at=key.last_used_at,
        revoked_at=key.revoked_at,
        secrets=key.allows,
        created_by=key.created_by,
    )


def deployment_model(info: DeploymentInfo) -> schemas.Deployment:
    return schemas.Deployment(
        id=info.id,
        name=info.name,
        team_id=info.team_id,
        team_name=info.team,
        secrets=info.secrets,
        created_at=info.created_at,
        created_by=info.created_by,
        updated_at=info.updated_at,
        seen_at=info.seen_at,
        replicas=[_replica_model(replica) for replica in info.replicas],
    )


def _replica_model(replica: ReplicaInfo) -> schemas.Replica:
    return schemas.Replica(
        id=replica.id,
        host=replica.host,
        versions=dict(replica.versions),
        used=dict(replica.used),
        started_at=replica.started_at,
        seen_at=replica.seen_at,
        live=replica.live,
    )


def audit_record_model(record: AuditRecord) -> schemas.AuditRecord:
    return schemas.AuditRecord(**record.shown())


def audit_verification_model(report: VerificationReport) -> schemas.AuditVerification:
    return schemas.AuditVerification(
        records=report.records,
        checkpoints=report.checkpoints,
        head=report.head,
        problems=report.problems,
    )


def audit_lines(vault: Vault) -> Iterator[bytes]:
    """The whole audit log as JSON Lines, oldest record first, in chunks of 500 records."""
    found = vault.audit.export()
    while records := list(islice(found, 500)):
        yield b"".join(orjson.dumps(record.data()) + b"\n" for record in records)
