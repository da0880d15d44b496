"""The sections of `config.yaml` about where weights and data come from."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from gusset.package.base_model import Auth, NonEmpty, Section, rule_error, upper


class ExternalData(Section):
    url: NonEmpty
    local_data_path: NonEmpty
    backend: str = "http_public"
    name: str | None = None


def _revision(text: str) -> str:
    if len(text) == 1:
        raise rule_error("a revision has more than one character", "write a branch, a tag or a commit")
    return text


class CachedRepo(Section):
    """An entry of `cache_internal`; the base class of an entry of `model_cache`."""

    repo_id: NonEmpty
    revision: Annotated[str, AfterValidator(_revision)] = ""
    allow_patterns: list[str] | None = None
    ignore_patterns: list[str] | None = None
    volume_folder: NonEmpty | None = None
    use_volume: bool = False
    kind: Literal["hf", "gcs", "s3", "azure"] = "hf"
    runtime_secret_name: str = "hf_access_token"  # noqa: S105 - the name of a secret

    @model_validator(mode="before")
    @classmethod
    def _volume(cls, data: Any) -> Any:
        """A volume needs a folder, and for the hub a revision. Like Truss, this checks the raw values."""
        if not isinstance(data, dict) or not data.get("use_volume"):
            return data
        if data.get("kind", "hf") == "hf" and not data.get("revision"):
            raise rule_error("use_volume needs a revision", "add revision: a branch, a tag or a commit")
        if not data.get("volume_folder"):
            raise rule_error("use_volume needs a volume_folder", "add volume_folder: a name for the folder")
        return data


class ModelRepo(CachedRepo):
    use_volume: bool


class WeightsAuth(Auth):
    secret_key = "auth_secret_name"  # noqa: S105 - a key of the file
    secret_method = "CUSTOM_SECRET"  # noqa: S105 - a method

    auth_method: Annotated[
        Literal["CUSTOM_SECRET", "AWS_OIDC", "GCP_OIDC", "AWS_ASSUME_ROLE"], BeforeValidator(upper)
    ]
    auth_secret_name: str | None = None


_SCHEMES = "hf:// s3:// gs:// azure:// r2:// cw:// https://"


def _source(text: str) -> str:
    found = re.match(r"(hf|s3|gs|azure|r2|cw|https)://[^/]", text)
    if not found:
        raise rule_error("not the address of weights", f"start with one of {_SCHEMES} and a name")
    if found[1] not in ("hf", "https") and "@" in text:
        raise rule_error(
            "`@` in the address of a bucket", "write the address without credentials or revision"
        )
    return text


def _rooted(text: str) -> str:
    if not text.startswith("/"):
        raise rule_error("not an absolute path", "start with /")
    return text


class Weights(Section):
    source: Annotated[str, AfterValidator(_source)]
    mount_location: Annotated[str, AfterValidator(_rooted)]
    auth: WeightsAuth | None = None
    auth_secret_name: str | None = None
    allow_patterns: list[str] | None = None
    ignore_patterns: list[str] | None = None

    @model_validator(mode="after")
    def _one_secret(self) -> Weights:
        if self.auth_secret_name and self.auth and self.auth.auth_secret_name:
            raise rule_error(
                "auth_secret_name is set here and in auth", "keep one of them", at=("auth_secret_name",)
            )
        return self


def unique_mounts(entries: list[Weights]) -> list[Weights]:
    _unique([entry.mount_location for entry in entries], "mount_location")
    return entries


def _unique(texts: list[str], key: str) -> None:
    for position, text in enumerate(texts):
        if text in texts[:position]:
            first = texts.index(text)
            message = f"the same {key} as entry {first}"
            raise rule_error(message, "give each entry its own", at=(position, key))


_PART = r"(?!\.\.)(?:(?!\.\.)[^/:@]){1,256}"
_BDN_SOURCE = re.compile(rf"bdn:{_PART}/{_PART}(:{_PART}|@b3:[0-9a-fA-F]{{12,64}})?")


def _bdn_source(text: str) -> str:
    if not _BDN_SOURCE.fullmatch(text):
        raise rule_error(
            "not a volume's address", "write bdn:NAMESPACE/VOLUME, optionally with :TAG or @b3:DIGEST"
        )
    return text


def _bdn_path(text: str) -> str:
    path = str(PurePosixPath(text))
    if not text.startswith("/") or path == "/" or ".." in text.split("/") or "\0" in text:
        raise rule_error(
            "not the absolute path of a folder", "start with /, name a folder, and do not use `..`"
        )
    return path


def _glob(text: str) -> str:
    parts = text.removesuffix("/").split("/")
    if text != text.strip() or {"", ".", ".."} & set(parts) or "\\" in text or "\0" in text:
        raise rule_error("not a relative glob", "write a pattern below the mount, as in *.safetensors")
    return text


class BdnMount(Section):
    source: Annotated[str, AfterValidator(_bdn_source)]
    path: Annotated[str, AfterValidator(_bdn_path)]
    include: list[Annotated[str, AfterValidator(_glob)]] = Field(default_factory=list)
    exclude: list[Annotated[str, AfterValidator(_glob)]] = Field(default_factory=list)


def _namespace(text: str) -> str:
    if not 1 <= len(text) <= 256 or "/" in text or ".." in text:
        raise rule_error("not a namespace", "write 1 to 256 characters without / and ..")
    return text


class BdnAccess(Section):
    namespace: Annotated[str, AfterValidator(_namespace)]
    grants: Annotated[list[Literal["pull", "push", "tag", "inspect", "delete"]], Field(min_length=1)]

    @field_validator("grants")
    @classmethod
    def _no_repeats(cls, grants: list[str]) -> list[str]:
        if len(set(grants)) < len(grants):
            raise rule_error("a grant is repeated", "write each once")
        return grants


class BdnHotload(Section):
    enabled: bool = False


class Bdn(Section):
    mounts: list[BdnMount] = Field(default_factory=list)
    access: list[BdnAccess] = Field(default_factory=list)
    hotload: BdnHotload = Field(default_factory=BdnHotload)

    @field_validator("mounts")
    @classmethod
    def _paths(cls, mounts: list[BdnMount]) -> list[BdnMount]:
        _unique([mount.path for mount in mounts], "path")
        return mounts

    @field_validator("access")
    @classmethod
    def _namespaces(cls, access: list[BdnAccess]) -> list[BdnAccess]:
        _unique([entry.namespace for entry in access], "namespace")
        return access


class CheckpointArtifact(Section):
    training_job_id: str
    paths: list[str] = Field(default_factory=list)


class TrainingCheckpoints(Section):
    download_folder: str = "/tmp/training_checkpoints"  # noqa: S108 - Truss's default
    artifact_references: list[CheckpointArtifact] = Field(default_factory=list)
    loops_checkpoint_ids: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_kind(self) -> TrainingCheckpoints:
        if self.artifact_references and self.loops_checkpoint_ids:
            raise rule_error(
                "artifact_references and loops_checkpoint_ids cannot be used together", "keep one of them"
            )
        return self


class AutoscalingMetric(Section):
    model_config = ConfigDict(extra="ignore")

    name: str
    target: float


class AdditionalAutoscaling(Section):
    model_config = ConfigDict(extra="ignore")

    metrics: list[AutoscalingMetric]


class BisLlm(Section):
    config: dict[str, Any] | None = None
    version: str = ""
    additional_autoscaling_config: AdditionalAutoscaling | None = None
