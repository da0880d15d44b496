"""The types of the API: request bodies, and the models that handlers return.

Bodies are validated by pydantic. Response models are dataclasses, which orjson
writes as they are; without `__slots__`, since it reads those four times faster.
The OpenAPI document is made from the same types. Fields that hold a secret are
left out of `repr`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    StringConstraints,
)
from pydantic_core import PydanticCustomError

from gusset.rotation.state import Step
from gusset.secrets.info import State
from gusset.vault.services.access_keys import Scope
from gusset.vault.services.identity_rules import DEFAULT_AUDIENCE, MAX_CLAIMS, MAX_JWKS, MAX_TEXT
from gusset.vault.services.person import Role
from gusset.vault.services.rotations import ReplicaState

Name = Annotated[str, Field(description="1 to 253 of A-Z a-z 0-9 - _ .", examples=["hf_access_token"])]


def _without_nul(text: str) -> str:
    """What a database can store. Lone surrogates, which none can, are not even valid JSON here."""
    if "\0" in text:
        raise PydanticCustomError("nul", "a text cannot have the character NUL")
    return text


ShortText = Annotated[str, StringConstraints(max_length=253), AfterValidator(_without_nul)]
ShortUrl = Annotated[str, StringConstraints(max_length=MAX_TEXT), AfterValidator(_without_nul)]
Jwks = Annotated[str, StringConstraints(max_length=MAX_JWKS)]
# pydantic takes `true` for 1 and "5" for 5, unless an integer is strict.
VersionNumber = Annotated[StrictInt, Field(ge=1, le=2**31 - 1)]
OverlapSeconds = Annotated[StrictInt, Field(ge=1, le=31_536_000)]
T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
def response_model(cls: type[T]) -> type[T]:
    """A dataclass built by keyword. Only type checkers see it as frozen: at run time that costs double."""
    return dataclass(kw_only=True)(cls)


# --- request bodies


class Body(BaseModel):
    """A request's body. Unknown keys are ignored; errors never repeat the input.

    The validator of a body is built with the first request that has one, not at the start.
    """

    model_config = ConfigDict(hide_input_in_errors=True, extra="ignore", strict=False, defer_build=True)


class StrictBody(Body):
    """A body of what cannot be undone: unknown keys and other types are refused."""

    model_config = ConfigDict(hide_input_in_errors=True, extra="forbid", strict=True)


class NewSecret(Body):
    """A secret's name and value. With `encoding`, the value is base64 of the exact bytes."""

    name: Name
    value: str = Field(json_schema_extra={"writeOnly": True}, repr=False)
    encoding: Literal["base64"] | None = None


class SetSecret(NewSecret):
    """A secret's name and value, with an optional note and expiry date.

    For `overlap` seconds, deployments can read the previous version as well.
    """

    note: str | None = None
    expires_at: AwareDatetime | None = None
    overlap: OverlapSeconds | None = None


class SecretBatch(Body):
    """Several secrets, to be set all together or not at all."""

    secrets: list[NewSecret] = Field(max_length=1000)


class SecretUpdate(Body):
    """A secret's note, expiry date and interval of rotations, in seconds.

    null clears a field; an omitted field keeps its value.
    """

    note: str | None = None
    expires_at: AwareDatetime | None = None
    rotate_every: Annotated[StrictInt, Field(ge=1, le=315_360_000)] | None = None


class RotationHolder(Body):
    """The process that runs a rotation, by a random id that it has chosen."""

    holder: str = Field(pattern=r"^[A-Za-z0-9_-]{8,32}$")


class BeginRotation(RotationHolder):
    """`current_handle` names the current version's credential, where no rotation has made it."""

    current_handle: str | None = None


class SetRotatedVersion(RotationHolder):
    """A new credential. The previous version stays readable for `overlap` seconds.

    `handle` is the provider's name for the credential; it is not secret. The secret's expiry date
    becomes `expires_at`.
    """

    value: str = Field(json_schema_extra={"writeOnly": True}, repr=False)
    encoding: Literal["base64"] | None = None
    handle: str
    overlap: OverlapSeconds
    expires_at: AwareDatetime | None = None


class AdvanceRotation(RotationHolder):
    """The next step. `accepted` tells the audit log what was not waited for."""

    step: Literal["use", "revoke"]
    accepted: list[Annotated[str, StringConstraints(max_length=1000)]] = Field(
        default_factory=list, max_length=1000
    )


class RevokedCredential(RotationHolder):
    """The handle of a credential that the provider has revoked."""

    handle: str


class StopRotation(RotationHolder):
    """Why a rotation has paused: an error's code."""

    code: str = Field(pattern=r"^[a-z_]{1,64}$")


class Rollback(StrictBody):
    """The version whose value becomes current again."""

    version: VersionNumber


class Destroy(StrictBody):
    """The versions to destroy; all of them if null or omitted."""

    versions: list[VersionNumber] | None = Field(None, max_length=10_000)


class NewTeam(Body):
    """A team's name."""

    name: ShortText


class NewPerson(Body):
    """A person to invite."""

    email: ShortText
    name: ShortText | None = None
    role: Role = "member"
    team_ids: list[ShortText] = Field(default_factory=list, max_length=1000)


class PersonUpdate(Body):
    """A person's role, and whether their account is disabled. An omitted field keeps its value.

    `tokens` says what happens to tokens and identities that a disabled person made: they are revoked, or
    passed to the person who makes the request.
    """

    role: Role | None = None
    disabled: bool | None = None
    tokens: Literal["revoke", "pass"] | None = None


class NewApiKey(Body):
    """An API key to create. `scopes` defaults to all scopes of the key that makes the request.

    `gives` names the secrets that it may give to deployments; `["*"]` means all those of the
    person's teams; none if omitted. A `team_id` is refused rather than ignored: the key would
    allow more than was requested.
    """

    name: ShortText = "key"
    team_id: ShortText | None = None
    scopes: list[Scope] | None = None
    gives: list[ShortText] = Field(default_factory=list, max_length=1000)
    expires_at: AwareDatetime | None = None


class NewDeployment(Body):
    """A deployment and the secrets it declares; its token reads only these."""

    name: ShortText
    secrets: list[Name] = Field(max_length=1000)
    team_id: ShortText | None = None
    expires_at: AwareDatetime | None = None


class NewIssuer(Body):
    """An issuer of JSON Web Tokens to trust.

    `jwks` is a JSON Web Key Set, as text or as an object, or the URL of one; if omitted, the keys are where
    the issuer's discovery document says. `allow_private` lets them be fetched from a private address.
    `replace` changes all of this for an issuer that is already trusted.
    """

    url: ShortUrl
    jwks: Jwks | dict[str, Any] | None = None
    allow_private: bool = False
    replace: bool = False


class NewIdentity(Body):
    """Which tokens stand for a deployment; all must match exactly. `claims` are values by JSON Pointer.

    With `secrets` it also registers the deployment, or changes what that declares: all or nothing is done.
    An administrator's request adds the issuer if it is missing, with `jwks` as for an issuer.
    """

    name: ShortText
    deployment: ShortText
    secrets: list[Name] | None = Field(None, max_length=1000)
    team_id: ShortText | None = None
    issuer: ShortUrl
    jwks: Jwks | dict[str, Any] | None = None
    audience: ShortUrl = DEFAULT_AUDIENCE
    subject: ShortUrl
    claims: dict[str, StrictStr | StrictBool | StrictInt] = Field(default_factory=dict, max_length=MAX_CLAIMS)


class DeclaredSecrets(Body):
    """The secrets that a deployment declares. It gets no token: its identities read just these."""

    secrets: list[Name] = Field(max_length=1000)
    team_id: ShortText | None = None


class ReadSecrets(Body):
    """The secrets to read; all that the token allows if null or omitted."""

    names: list[Name] | None = Field(None, max_length=1000)


class ReplicaReport(Body):
    """The versions that a replica holds, and the newest that it has used; null or omitted if unchanged.

    `stopped` ends its lease.
    """

    host: ShortText | None = None
    versions: dict[Name, VersionNumber] | None = Field(None, max_length=1000)
    used: dict[Name, VersionNumber] | None = Field(None, max_length=1000)
    stopped: bool = False


class MaskedHit(Body):
    """How often a secret was masked, in one form of its value, on one channel of the deployment's output."""

    secret: Name
    form: str = Field(pattern=r"^[A-Za-z0-9 -]{1,32}$")
    channel: Literal["stdout", "stderr", "log", "response", "metrics"]
    times: Annotated[StrictInt, Field(ge=1, le=2**40)]


class MaskedReport(Body):
    """What a deployment's masker has found since its last report."""

    hits: list[MaskedHit] = Field(max_length=200)


# --- responses: secrets


@response_model
class SecretWarning:
    """A likely mistake in a secret, such as a trailing newline or an expiry date that is near."""

    message: str
    hint: str | None


@response_model
class Secret:
    """A secret without its value. `version` is null once every version is destroyed."""

    id: str
    created_at: str
    name: str
    team_name: str
    version: int | None
    updated_at: str
    deleted_at: str | None
    note: str | None
    expires_at: str | None
    last_read_at: str | None
    used_by: Sequence[str]
    warnings: Sequence[SecretWarning]


@response_model
class SecretList:
    """Secrets without their values."""

    secrets: Sequence[Secret]


@response_model
class Deleted:
    """The name of what was deleted."""

    name: str


@response_model
class Version:
    """One version of a secret, without its value."""

    version: int
    created_at: str
    created_by: str
    state: State


@response_model
class VersionList:
    """A secret's versions, oldest first."""

    versions: Sequence[Version]


@response_model
class Overlap:
    """The version before the current one, which deployments can still read until `ends_at`."""

    version: int
    ends_at: str


@response_model
class RotatingReplica:
    """A replica that held a lease when the version was stored, and may have held an older version.

    `acknowledged`: it uses no older version any more. `waiting`: it has not reported that yet. `stopped`:
    it has shut down cleanly. `unknown`: it is lost, and may still use an older version. `version` is the one
    that it reports to hold, `used` the newest that it has used; null if it reported none.
    """

    id: str
    deployment: str
    host: str
    state: ReplicaState
    version: int | None
    used: int | None
    seen_at: str


@response_model
class Rotation:
    """How far a version has replaced those before it.

    It is complete when every replica has the state `acknowledged` or `stopped`. `current_version` is less
    than `version`, or null, when it was destroyed. `acknowledged` counts the replicas in one of those states.
    `lost_before` are replicas that were lost already when the version was stored, and may still use an older
    one. `secret_id` tells the secret from others that have had its name.
    """

    secret_id: str
    name: str
    version: int
    started_at: str
    current_version: int | None
    overlap: Overlap | None
    acknowledged: int
    replicas: Sequence[RotatingReplica]
    lost_before: Sequence[RotatingReplica]


@response_model
class ProviderRotation:
    """An unfinished rotation by a provider's program, or one that was just ended.

    `version` and `handle` are those of the new credential, null before it is stored. `current` is the
    handle of the credential that the current version has, null if it is not known. `revoke` are the handles
    of all earlier credentials that are not revoked yet.
    """

    id: str
    secret_id: str
    name: str
    team_name: str
    step: Step
    version: int | None
    handle: str | None
    current: str | None
    revoke: Sequence[str]
    started_at: str
    started_by: str


@response_model
class RotationPlan:
    """When a secret is due for rotation: `rotate_every` seconds after its current version was stored.

    `step` is the step of an unfinished rotation.
    """

    name: str
    version: int | None
    rotate_every: int | None
    rotate_at: str | None
    expires_at: str | None
    step: Step | None


@response_model
class RotationPlanList:
    """The secrets that have an interval, an expiry date or an unfinished rotation."""

    rotations: Sequence[RotationPlan]


# --- responses: teams and people


@response_model
class Team:
    """A team, which owns secrets and deployments."""

    id: str
    name: str
    default: bool
    created_at: str


@response_model
class TeamList:
    """Teams, the default one first."""

    teams: Sequence[Team]


@response_model
class CurrentUser:
    """The person whose API key made the request."""

    user_id: str
    email: str
    name: str
    workspace_name: str


@response_model
class Person:
    """A person. `invited` means that they have not chosen a password yet."""

    id: str
    email: str
    name: str
    role: Role
    teams: Sequence[Team]
    created_at: str
    disabled_at: str | None
    invited: bool


@response_model
class PersonList:
    """People, sorted by email address."""

    people: Sequence[Person]


@response_model
class Invitation:
    """An invited person, and the one-time link for choosing a password. The link is returned only once."""

    person: Person
    link: str = field(repr=False)


@response_model
class SetupLink:
    """A one-time link for choosing a password. It is returned only once."""

    link: str = field(repr=False)


# --- responses: API keys


@response_model
class ApiKey:
    """An API key's metadata; the key itself is never returned again."""

    prefix: str
    name: str
    scopes: Sequence[str]
    gives: Sequence[str]
    created_at: str
    expires_at: str | None
    last_used_at: str | None
    revoked_at: str | None


@response_model
class ApiKeyList:
    """The caller's API keys, newest first."""

    api_keys: Sequence[ApiKey]


@response_model
class CreatedApiKey:
    """A new API key. It is returned only once."""

    api_key: str = field(repr=False)
    prefix: str


@response_model
class Revoked:
    """The prefix of the revoked key or token."""

    prefix: str


# --- responses: deployments, for people


@response_model
class Replica:
    """A running process or container, and the versions that it holds and has used by secret name."""

    id: str
    host: str
    versions: Mapping[str, int]
    used: Mapping[str, int]
    started_at: str
    seen_at: str
    live: bool


@response_model
class Deployment:
    """A deployment, the secrets it declares, and its replicas."""

    id: str
    name: str
    team_id: str
    team_name: str
    secrets: Sequence[str]
    created_at: str
    created_by: str
    updated_at: str
    seen_at: str | None
    replicas: Sequence[Replica]


@response_model
class DeploymentList:
    """Deployments of the caller's teams."""

    deployments: Sequence[Deployment]


@response_model
class RegisteredDeployment:
    """A deployment and its new token. The token is returned only once."""

    deployment: Deployment
    token: str = field(repr=False)
    prefix: str


@response_model
class Token:
    """A token's metadata; the token itself is never returned again. `secrets` is what it may read."""

    prefix: str
    name: str
    created_at: str
    expires_at: str | None
    last_used_at: str | None
    revoked_at: str | None
    secrets: Sequence[str]
    created_by: str


@response_model
class TokenList:
    """A deployment's tokens, newest first."""

    tokens: Sequence[Token]


@response_model
class Issuer:
    """An issuer that is trusted, and what this manager knows of its keys.

    `keys_from` is a URL, `content` for keys that were sent, or `discovery`. `problem` says why the
    last fetch of the keys failed, null if it did not.
    """

    url: str
    keys_from: str
    allow_private: bool
    created_at: str
    created_by: str
    keys: int
    fetched_at: str | None
    problem: str | None


@response_model
class IssuerList:
    """Issuers, by URL."""

    issuers: Sequence[Issuer]


@response_model
class Removed:
    """The URL of the issuer that was removed."""

    url: str


@response_model
class Identity:
    """Which tokens stand for a deployment. `last_used_at` is the time of the last exchange."""

    id: str
    name: str
    team_id: str
    team_name: str
    deployment: str
    issuer: str
    audience: str
    subject: str
    claims: Mapping[str, str | int | bool]
    created_at: str
    created_by: str
    last_used_at: str | None


@response_model
class IdentityList:
    """Identities of the caller's teams, by name."""

    identities: Sequence[Identity]


# --- responses: for deployments


@response_model
class CurrentDeployment:
    """The deployment whose token made the request, and the secrets it may read."""

    name: str
    team_name: str
    secrets: Sequence[str]


@response_model
class PreviousSecret:
    """The previous value, which stays valid for `ends_in` seconds."""

    value: Annotated[str, Field(description="base64 of the exact bytes")] = field(repr=False)
    version: int
    ends_in: float


@response_model
class DeliveredSecret:
    """A secret's value, and during an overlap the previous one."""

    value: Annotated[str, Field(description="base64 of the exact bytes")] = field(repr=False)
    version: int
    previous: PreviousSecret | None


@response_model
class DeliveredSecrets:
    """Values by name, the names that have no value, and the revision to watch for changes from.

    `replica` is the id of the replica's lease. `session_key`, sent in the header
    `Gusset-Session`, renews the lease; it is null if the request has sent that header.
    """

    secrets: Mapping[str, DeliveredSecret]
    missing: Sequence[str]
    revision: str
    replica: str
    session_key: str | None = field(repr=False)


@response_model
class Empty:
    """An empty object."""


@response_model
class IssuedToken:
    """A short-lived token of a deployment, as RFC 8693 has it. `expires_in` is in seconds."""

    access_token: str = field(repr=False)
    issued_token_type: str
    token_type: str
    expires_in: int


# --- responses: the audit log and the keyring


@response_model
class AuditRecord:
    """One record of the audit log. `hash` chains it to the previous record; `mac` authenticates it."""

    seq: int
    at: str
    actor: str
    action: str
    target: str
    outcome: str
    details: Mapping[str, object]
    hash: str
    mac: str


@response_model
class AuditRecordList:
    """Audit records, newest first."""

    records: Sequence[AuditRecord]


@response_model
class AuditVerification:
    """The result of verifying the audit log. `problems` is empty if the log is intact."""

    records: int
    checkpoints: int
    head: str
    problems: Sequence[str]


@response_model
class KeyRotation:
    """The number of the new key-encryption key, and how many versions were rewrapped with it."""

    kek: int
    rewrapped: int


@response_model
class Error:
    """The body of every error response."""

    message: str
    code: str
    hint: str | None


@response_model
class TokenError:
    """The body of the refusal of a token. `error` is an error code of OAuth 2.0."""

    error: Literal["invalid_request", "invalid_target", "temporarily_unavailable", "server_error"]
    message: str
    code: str
    hint: str | None


@response_model
class TokenLeft:
    """A token that a person made whose account is to be disabled."""

    prefix: str
    deployment: str


@response_model
class IdentityLeft:
    """An identity that a person made whose account is to be disabled."""

    name: str
    team_name: str
    deployment: str


@response_model
class TokensLeft:
    """The body of the refusal to disable a person who made tokens or identities."""

    message: str
    code: str
    hint: str | None
    tokens: Sequence[TokenLeft]
    identities: Sequence[IdentityLeft]
