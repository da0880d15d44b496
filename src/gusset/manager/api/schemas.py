"""The shapes of requests and answers, as the OpenAPI document gives them. No rule lives here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, Field(description="1 to 253 of A-Z a-z 0-9 - _ .", examples=["hf_access_token"])]
ShortText = Annotated[str, StringConstraints(max_length=253)]


class Body(BaseModel):
    """What a request may say; keys that are not known are passed over, and no input is ever repeated."""

    model_config = ConfigDict(hide_input_in_errors=True, extra="ignore", strict=False)


class NewSecret(Body):
    """A secret's name and value. `encoding` says that the value is base64 of the exact bytes."""

    name: Name
    value: str = Field(json_schema_extra={"writeOnly": True})
    encoding: Literal["base64"] | None = None


class SetSecret(NewSecret):
    """With what is said beside it."""

    note: str | None = None
    expires_at: AwareDatetime | None = None


class SecretBatch(Body):
    """Several secrets, all or none."""

    secrets: list[NewSecret] = Field(max_length=1000)


class Annotation(Body):
    """What is said beside a secret; null clears it, what is left out stays."""

    note: str | None = None
    expires_at: AwareDatetime | None = None


class Rollback(Body):
    version: int = Field(ge=1, le=2**31 - 1)


class Destroy(Body):
    """The versions to destroy; null, or nothing: all."""

    versions: list[Annotated[int, Field(ge=1, le=2**31 - 1)]] | None = Field(None, max_length=10_000)


class ValueWarning(BaseModel):
    message: str
    hint: str | None


class Secret(BaseModel):
    """A secret as everybody sees it: without its value."""

    id: str
    name: str
    team_name: str
    created_at: str
    updated_at: str
    version: int | None
    deleted_at: str | None
    note: str | None
    expires_at: str | None
    last_read_at: str | None
    used_by: list[str]
    warnings: list[ValueWarning]


class SecretList(BaseModel):
    secrets: list[Secret]


class Deleted(BaseModel):
    name: str


class Version(BaseModel):
    version: int
    created_at: str
    created_by: str
    state: Literal["current", "older", "destroyed"]


class VersionList(BaseModel):
    versions: list[Version]


class Team(BaseModel):
    id: str
    name: str
    default: bool
    created_at: str


class TeamList(BaseModel):
    teams: list[Team]


class NewTeam(Body):
    name: ShortText


class Me(BaseModel):
    user_id: str
    email: str
    name: str
    workspace_name: str


class PersonOut(BaseModel):
    id: str
    email: str
    name: str
    role: Literal["admin", "member"]
    teams: list[Team]
    created_at: str
    disabled_at: str | None
    invited: bool


class PersonList(BaseModel):
    people: list[PersonOut]


class NewPerson(Body):
    email: ShortText
    name: ShortText | None = None
    role: Literal["admin", "member"] = "member"
    team_ids: list[ShortText] = Field(default_factory=list, max_length=1000)


class Invited(BaseModel):
    """A new person, and the link by which they choose a password, once. It is not shown again."""

    person: PersonOut
    link: str


class Link(BaseModel):
    link: str


class PersonChange(Body):
    role: Literal["admin", "member"] | None = None
    disabled: bool | None = None


class NewKey(Body):
    """`type` is what other systems' clients send; it is passed over. A `team_id` is refused, not passed over:
    the key would open more than was asked for."""

    name: ShortText = "key"
    team_id: ShortText | None = None
    scopes: list[Literal["secrets:read", "secrets:write", "deployments", "admin"]] | None = None
    expires_at: AwareDatetime | None = None


class Key(BaseModel):
    prefix: str
    name: str
    scopes: list[str]
    created_at: str
    expires_at: str | None
    last_used_at: str | None
    revoked_at: str | None


class KeyList(BaseModel):
    api_keys: list[Key]


class FreshKey(BaseModel):
    """A new key, shown this once."""

    api_key: str
    prefix: str


class Prefix(BaseModel):
    prefix: str


class NewDeployment(Body):
    """What a deployment declares; its token reads just these names."""

    name: ShortText
    secrets: list[Name] = Field(max_length=1000)
    team_id: ShortText | None = None
    expires_at: AwareDatetime | None = None


class Replica(BaseModel):
    id: str
    host: str
    versions: dict[str, int]
    started_at: str
    seen_at: str
    live: bool


class Deployment(BaseModel):
    id: str
    name: str
    team_id: str
    team_name: str
    secrets: list[str]
    created_at: str
    created_by: str
    updated_at: str
    seen_at: str | None
    replicas: list[Replica]


class DeploymentList(BaseModel):
    deployments: list[Deployment]


class Registered(BaseModel):
    """A deployment and a token of it, shown this once."""

    deployment: Deployment
    token: str
    prefix: str


class Token(BaseModel):
    prefix: str
    name: str
    secrets: list[str]
    created_at: str
    created_by: str
    expires_at: str | None
    last_used_at: str | None
    revoked_at: str | None


class TokenList(BaseModel):
    tokens: list[Token]


class Self(BaseModel):
    """What a token is for."""

    name: str
    team_name: str
    secrets: list[str]


class Fetch(Body):
    """The names that are wanted; null, or nothing: all that the token allows."""

    names: list[Name] | None = Field(None, max_length=1000)


class Value(BaseModel):
    value: str = Field(description="base64 of the exact bytes")
    version: int


class Values(BaseModel):
    secrets: dict[str, Value]
    missing: list[str]
    revision: str


class Report(Body):
    """What a replica holds."""

    host: ShortText = ""
    versions: dict[Name, Annotated[int, Field(ge=1, le=2**31 - 1)]] = Field(
        default_factory=dict, max_length=1000
    )
    stopped: bool = False


class Empty(BaseModel):
    pass


class AuditRecord(BaseModel):
    seq: int
    at: str
    actor: str
    action: str
    target: str
    outcome: str
    details: dict[str, object]
    hash: str
    mac: str


class AuditRecords(BaseModel):
    records: list[AuditRecord]


class Verified(BaseModel):
    records: int
    checkpoints: int
    head: str
    problems: list[str]


class Rotated(BaseModel):
    kek: int
    rewrapped: int


class Error(BaseModel):
    """Every error."""

    message: str
    code: str
    hint: str | None
