"""The keys of Truss's `config.yaml`: types, defaults and rules.

Pure data: nothing here opens a file. Unknown keys are kept. A broken rule is
raised as `broken(...)`, whose text never holds the value; pydantic's own texts
are replaced in `gusset.package.problems`. Rules between sections are in
`gusset.package.rules`, so that they are reported together with all else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from ipaddress import IPv4Network
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    StrictInt,
    Tag,
    computed_field,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gusset.errors import InvalidName
from gusset.secrets.name import check_name


def broken(message: str, hint: str | None = None, *, at: tuple[Any, ...] = ()) -> PydanticCustomError:
    """A broken rule; `at` is the key that it is about, from where it is raised."""
    return PydanticCustomError("rule", "{message}", {"message": message, "hint": hint, "at": at})


class Section(BaseModel):
    """A map of the file. Unknown keys stay; no error holds its input."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True, protected_namespaces=())

    hidden_when_none: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _unknown_keys_last(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data = handler(self)
        extra = self.model_extra or {}
        known = {name: value for name, value in data.items() if name not in extra}
        for name in self.hidden_when_none:
            if known.get(name) is None:
                known.pop(name, None)
        return known | {name: data[name] for name in extra if name in data}


NonEmpty = Annotated[str, Field(min_length=1)]


# resources

ACCELERATORS = (
    "B10 T4 L4 A10G V100 A100 A100_40GB H100 H200 H100_40GB B200 L40S RTX_PRO_6000 B300 GB300".split()  # noqa: SIM905
)
_UNITS = "k M G T P E Ki Mi Gi Ti Pi Ei"


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cpu(text: str) -> str:
    if not _is_float(text) and not re.fullmatch(r"[0-9.]*m", text):
        raise broken("not an amount of CPU", 'write a number of cores or milli-cores, as "2" or "500m"')
    return text


def _memory(text: str) -> str:
    if not _is_float(text) and not re.fullmatch(rf"[0-9.]*({_UNITS.replace(' ', '|')})", text):
        raise broken("not an amount of memory", f'write a number and one of {_UNITS}, as "2Gi"')
    return text


class Accelerator(Section):
    """What `L4:2` says: a kind of GPU, and how many."""

    model_config = ConfigDict(extra="ignore")

    accelerator: Literal[*ACCELERATORS] | None = None  # type: ignore[valid-type]
    count: Annotated[int, Field(ge=0)] = 1

    @model_serializer(mode="plain")
    def text(self) -> str | None:
        """`NAME`, `NAME:N`, or None for none."""
        if self.accelerator is None or self.count == 0:
            return None
        return self.accelerator if self.count == 1 else f"{self.accelerator}:{self.count}"


_ACCELERATOR_HINT = f"write NAME or NAME:COUNT with one of {', '.join(ACCELERATORS)}"


def parse_accelerator(value: Any) -> Any:
    if value is None or isinstance(value, dict | Accelerator):
        return value
    if not isinstance(value, str):
        raise broken("neither a text nor a map", _ACCELERATOR_HINT)
    name, *counts = value.strip().split(":")
    if name not in ACCELERATORS:
        raise broken("not a known accelerator", _ACCELERATOR_HINT)
    if len(counts) != 1:  # Truss ignores the count where there is more than one colon
        return {"accelerator": name}
    if not counts[0].isdecimal() or int(counts[0]) == 0:
        raise broken("the count of accelerators is not a number above 0", _ACCELERATOR_HINT)
    return {"accelerator": name, "count": int(counts[0])}


class Fabric(Section):
    hidden_when_none = frozenset({"use_rdma", "preferences"})

    use_rdma: bool | None = None
    preferences: list[str] | None = None


class Resources(Section):
    hidden_when_none = frozenset({"node_count", "instance_type", "fabric"})

    cpu: Annotated[str, AfterValidator(_cpu)] = "1"
    memory: Annotated[str, AfterValidator(_memory)] = "2Gi"
    accelerator: Annotated[Accelerator | None, BeforeValidator(parse_accelerator)] = None
    instance_type: str | None = None
    node_count: Annotated[StrictInt, Field(ge=1)] | None = None
    fabric: Fabric | None = None

    @model_validator(mode="before")
    @classmethod
    def _computed(cls, data: Any) -> Any:
        return _without(data, "use_gpu")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def use_gpu(self) -> bool:
        """Always computed; what the file says is ignored, as Truss does."""
        return self.accelerator is not None and self.accelerator.accelerator is not None

    @field_validator("instance_type")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return value or None


def _without(data: Any, *names: str) -> Any:
    return {key: value for key, value in data.items() if key not in names} if isinstance(data, dict) else data


# runtime


class Transport(Section):
    """Truss drops unknown keys here, and the pings of what is no websocket."""

    model_config = ConfigDict(extra="ignore")


class HttpTransport(Transport):
    kind: Literal["http"] = "http"


class WebsocketTransport(Transport):
    kind: Literal["websocket"] = "websocket"
    ping_interval_seconds: float | None = None
    ping_timeout_seconds: float | None = None


class GrpcTransport(Transport):
    kind: Literal["grpc"] = "grpc"


def _transport_kind(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) else None


AnyTransport = Annotated[
    Annotated[HttpTransport, Tag("http")]
    | Annotated[WebsocketTransport, Tag("websocket")]
    | Annotated[GrpcTransport, Tag("grpc")],
    Discriminator(_transport_kind),
]


class HealthChecks(Section):
    restart_check_delay_seconds: int | None = None
    restart_threshold_seconds: int | None = None
    stop_traffic_threshold_seconds: int | None = None
    startup_threshold_seconds: int | None = None


class Oidc(Section):
    enabled: bool | None = None


class RemoteSsh(Section):
    enabled: bool = False


def _ip_range(text: str) -> str:
    try:
        IPv4Network(text, strict=False)
    except ValueError:
        raise broken(
            "not an IPv4 address or range", "write 10.0.0.1, 10.0.0.0/8 or 10.0.0.0/255.0.0.0"
        ) from None
    return text


_LABEL = r"[A-Za-z0-9*]([A-Za-z0-9*-]{0,61}[A-Za-z0-9*])?"
_FQDN = re.compile(rf"{_LABEL}(\.{_LABEL})*")


def _fqdn(text: str) -> str:
    if not _FQDN.fullmatch(text):
        raise broken("not a host name", "write only the name, as in huggingface.co or *.example.com")
    return text


class EgressRestrictions(Section):
    ip_allow_list: list[Annotated[str, AfterValidator(_ip_range)]] | None = None
    fqdn_allow_list: list[Annotated[str, AfterValidator(_fqdn)]] | None = None


# PEP 440, appendix B, in short.
_VERSION = re.compile(
    r"\s*v?([0-9]+!)?[0-9]+(\.[0-9]+)*([-_.]?(alpha|beta|preview|pre|a|b|c|rc)[-_.]?[0-9]*)?"
    r"(-[0-9]+|[-_.]?(post|rev|r)[-_.]?[0-9]*)?([-_.]?dev[-_.]?[0-9]*)?(\+[a-z0-9]+([-_.][a-z0-9]+)*)?\s*",
    re.IGNORECASE,
)


def _version(text: str) -> str:
    if not _VERSION.fullmatch(text):
        raise broken("not a version", 'write one, as "0.9.0"')
    return text


class Runtime(Section):
    predict_concurrency: int = 1
    streaming_read_timeout: int = 60
    enable_tracing_data: bool = False
    enable_debug_logs: bool = False
    transport: AnyTransport = Field(default_factory=HttpTransport)
    is_websocket_endpoint: bool | None = None
    health_checks: HealthChecks = Field(default_factory=HealthChecks)
    oidc: Oidc = Field(default_factory=Oidc)
    remote_ssh: RemoteSsh = Field(default_factory=RemoteSsh)
    egress_restrictions: EgressRestrictions | None = None
    truss_server_version_override: Annotated[str, AfterValidator(_version)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _legacy(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if "num_workers" in data and not (
            isinstance(data["num_workers"], int | float) and data["num_workers"] == 1
        ):
            raise broken("only 1 is possible", "remove it", at=("num_workers",))
        if data.get("transport") is None and data.get("is_websocket_endpoint"):
            return data | {"transport": {"kind": "websocket"}}
        return data | {"transport": {"kind": "http"}} if data.get("transport", 0) == {} else data

    @model_validator(mode="after")
    def _one_transport(self) -> Runtime:
        """`is_websocket_endpoint: true` wins over `transport`; false never does."""
        if self.is_websocket_endpoint and self.transport.kind != "websocket":
            self.transport = WebsocketTransport()
        self.is_websocket_endpoint = self.transport.kind == "websocket"
        return self


# base_image, docker_server, auth

_OIDC_GROUPS = {
    "AWS_OIDC": ("aws_oidc_role_arn", "aws_oidc_region"),
    "GCP_OIDC": ("gcp_oidc_service_account", "gcp_oidc_workload_id_provider"),
    "AWS_ASSUME_ROLE": ("aws_assume_role_arn", "aws_assume_role_region"),
}


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


class Auth(Section):
    """What both places of credentials share: a method, and the keys that it needs and refuses."""

    secret_key: ClassVar[str]
    secret_method: ClassVar[str]

    aws_oidc_role_arn: str | None = None
    aws_oidc_region: str | None = None
    gcp_oidc_service_account: str | None = None
    gcp_oidc_workload_id_provider: str | None = None
    aws_assume_role_arn: str | None = None
    aws_assume_role_region: str | None = None

    @model_validator(mode="after")
    def _keys_fit_method(self) -> Auth:
        method = getattr(self, "auth_method")  # noqa: B009 - each place has its own methods
        groups = [key for keys in _OIDC_GROUPS.values() for key in keys]
        if method == self.secret_method:
            self._require(method, required=[self.secret_key], refused=groups)
        elif own := _OIDC_GROUPS.get(method):
            others = [key for key in groups if key not in own]
            self._require(method, required=list(own), refused=[self.secret_key, *others])
        return self

    def _require(self, method: str, *, required: Iterable[str], refused: Iterable[str]) -> None:
        missing = [key for key in required if not getattr(self, key)]
        beside = [key for key in refused if getattr(self, key)]
        if missing:
            raise broken(f"{method} needs {', '.join(missing)}", f"add {' and '.join(missing)}")
        if beside:
            raise broken(
                f"{method} does not go with {', '.join(beside)}", "remove what the method does not use"
            )


class DockerAuth(Auth):
    secret_key = "secret_name"  # noqa: S105 - a key of the file
    secret_method = "GCP_SERVICE_ACCOUNT_JSON"  # noqa: S105 - a method

    auth_method: Annotated[
        Literal[
            "GCP_SERVICE_ACCOUNT_JSON",
            "AWS_IAM",
            "AWS_OIDC",
            "GCP_OIDC",
            "REGISTRY_SECRET",
            "AWS_ASSUME_ROLE",
        ],
        BeforeValidator(_upper),
    ]
    registry: str | None = ""
    aws_access_key_id_secret_name: str = "aws_access_key_id"  # noqa: S105 - the name of a secret
    aws_secret_access_key_secret_name: str = "aws_secret_access_key"  # noqa: S105 - the name of a secret
    secret_name: str | None = None


def _absolute_or_empty(text: str) -> str:
    if text and not PurePosixPath(text).is_absolute():
        raise broken("not an absolute path", "write the path from the root, as in /usr/bin/python3")
    return text


class BaseImage(Section):
    image: str = ""
    python_executable_path: Annotated[str, AfterValidator(_absolute_or_empty)] = ""
    docker_auth: DockerAuth | None = None


def _user_id(number: int) -> int:
    if number in (0, 60000):
        raise broken(
            "root and the platform's own user (0 and 60000) are refused", "name another user, as 1000"
        )
    return number


class DockerServer(Section):
    start_command: str | None = None
    server_port: int
    predict_endpoint: str
    readiness_endpoint: str
    liveness_endpoint: str
    run_as_user_id: Annotated[int, AfterValidator(_user_id)] | None = None
    no_build: bool | None = None


# build, weights, caches


class ModelServer(Enum):
    TRUSS = "TrussServer"
    TRT_LLM = "TRT_LLM"


_REGISTRY_PREFIX = "DOCKER_REGISTRY_"


class Build(Section):
    model_server: ModelServer = ModelServer.TRUSS
    arguments: dict[str, Any] = Field(default_factory=dict)
    secret_to_path_mapping: dict[str, str] = Field(default_factory=dict)
    no_cache: bool = False

    @field_validator("secret_to_path_mapping")
    @classmethod
    def _names(cls, mapping: dict[str, str]) -> dict[str, str]:
        for name in mapping:
            if not name.startswith(_REGISTRY_PREFIX):
                try:
                    check_name(name)
                except InvalidName as error:
                    raise broken("a key that is not a secret's name", error.hint) from None
        return mapping


class ExternalData(Section):
    url: NonEmpty
    local_data_path: NonEmpty
    backend: str = "http_public"
    name: str | None = None


def _revision(text: str) -> str:
    if len(text) == 1:
        raise broken("one character is not a revision", "write a branch, a tag or a commit")
    return text


class CachedRepo(Section):
    """An entry of `cache_internal`, and the base of one of `model_cache`."""

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
        """With a volume, a folder is needed, and a revision for the hub; judged unconverted, as by Truss."""
        if not isinstance(data, dict) or not data.get("use_volume"):
            return data
        if data.get("kind", "hf") == "hf" and not data.get("revision"):
            raise broken("use_volume needs a revision", "add revision: a branch, a tag or a commit")
        if not data.get("volume_folder"):
            raise broken("use_volume needs a volume_folder", "add volume_folder: a name for the folder")
        return data


class ModelRepo(CachedRepo):
    use_volume: bool


class WeightsAuth(Auth):
    secret_key = "auth_secret_name"  # noqa: S105 - a key of the file
    secret_method = "CUSTOM_SECRET"  # noqa: S105 - a method

    auth_method: Annotated[
        Literal["CUSTOM_SECRET", "AWS_OIDC", "GCP_OIDC", "AWS_ASSUME_ROLE"], BeforeValidator(_upper)
    ]
    auth_secret_name: str | None = None


_SCHEMES = "hf:// s3:// gs:// azure:// r2:// cw:// https://"


def _source(text: str) -> str:
    found = re.match(r"(hf|s3|gs|azure|r2|cw|https)://[^/]", text)
    if not found:
        raise broken("not the address of weights", f"begin with one of {_SCHEMES}, then a name")
    if found[1] not in ("hf", "https") and "@" in text:
        raise broken("`@` in the address of a bucket", "write the address without credentials or revision")
    return text


def _rooted(text: str) -> str:
    if not text.startswith("/"):
        raise broken("not an absolute path", "begin with /")
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
            raise broken(
                "auth_secret_name stands here and in auth", "keep one of them", at=("auth_secret_name",)
            )
        return self


def _unique_mounts(entries: list[Weights]) -> list[Weights]:
    _unique([entry.mount_location for entry in entries], "mount_location")
    return entries


def _unique(texts: list[str], key: str) -> None:
    for position, text in enumerate(texts):
        if text in texts[:position]:
            first = texts.index(text)
            raise broken(f"the same {key} as entry {first}", "give each its own", at=(position, key))


# bdn

_PART = r"(?!\.\.)(?:(?!\.\.)[^/:@]){1,256}"
_BDN_SOURCE = re.compile(rf"bdn:{_PART}/{_PART}(:{_PART}|@b3:[0-9a-fA-F]{{12,64}})?")


def _bdn_source(text: str) -> str:
    if not _BDN_SOURCE.fullmatch(text):
        raise broken(
            "not a volume's address", "write bdn:NAMESPACE/VOLUME, with :TAG or @b3:DIGEST if wanted"
        )
    return text


def _bdn_path(text: str) -> str:
    path = str(PurePosixPath(text))
    if not text.startswith("/") or path == "/" or ".." in text.split("/") or "\0" in text:
        raise broken("not a folder's absolute path", "begin with /, name a folder, leave out `..`")
    return path


def _glob(text: str) -> str:
    parts = text.removesuffix("/").split("/")
    if text != text.strip() or {"", ".", ".."} & set(parts) or "\\" in text or "\0" in text:
        raise broken("not a relative glob", "write a pattern below the mount, as in *.safetensors")
    return text


class BdnMount(Section):
    source: Annotated[str, AfterValidator(_bdn_source)]
    path: Annotated[str, AfterValidator(_bdn_path)]
    include: list[Annotated[str, AfterValidator(_glob)]] = Field(default_factory=list)
    exclude: list[Annotated[str, AfterValidator(_glob)]] = Field(default_factory=list)


def _namespace(text: str) -> str:
    if not 1 <= len(text) <= 256 or "/" in text or ".." in text:
        raise broken("not a namespace", "write 1 to 256 characters without / and ..")
    return text


class BdnAccess(Section):
    namespace: Annotated[str, AfterValidator(_namespace)]
    grants: Annotated[list[Literal["pull", "push", "tag", "inspect", "delete"]], Field(min_length=1)]

    @field_validator("grants")
    @classmethod
    def _no_repeats(cls, grants: list[str]) -> list[str]:
        if len(set(grants)) < len(grants):
            raise broken("a grant is named twice", "name each once")
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


# training_checkpoints, bis_llm


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
            raise broken(
                "artifact_references and loops_checkpoint_ids do not go together", "keep one of them"
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


# the whole file

PythonVersion = Literal["py39", "py310", "py311", "py312", "py313", "py314"]


class TrussConfig(Section):
    """A sound `config.yaml`. `secrets` holds names alone: what stood beside them is gone."""

    model_config = ConfigDict(title="config.yaml")

    model_name: str | None = None
    model_metadata: dict[str, Any] = Field(default_factory=dict)
    description: str | None = None
    examples_filename: str = "examples.yaml"
    data_dir: str = "data"
    external_data: list[ExternalData] | None = None
    external_package_dirs: list[str] = Field(default_factory=list)
    python_version: PythonVersion = "py313"
    base_image: BaseImage | None = None
    requirements_file: str | None = None
    requirements: list[str] = Field(default_factory=list)
    system_packages: list[str] = Field(default_factory=list)
    environment_variables: dict[str, str] = Field(default_factory=dict)
    secrets: dict[str, None] = Field(default_factory=dict)
    resources: Resources = Field(default_factory=Resources)
    runtime: Runtime = Field(default_factory=Runtime)
    build: Build = Field(default_factory=Build)
    build_commands: list[str] = Field(default_factory=list)
    docker_server: DockerServer | None = None
    model_cache: list[ModelRepo] = Field(default_factory=list)
    weights: Annotated[list[Weights], AfterValidator(_unique_mounts)] = Field(default_factory=list)
    bdn: Bdn = Field(default_factory=Bdn)
    trt_llm: dict[str, Any] | None = None
    # trt_llm is checked apart, by `gusset.package.trt_llm`, since few files have it.
    training_checkpoints: TrainingCheckpoints | None = None
    bis_llm: BisLlm | None = None
    input_type: str = "Any"
    model_framework: str = "custom"
    model_type: str = "Model"
    model_module_dir: str = "model"
    model_class_filename: str = "model.py"
    model_class_name: str = "Model"
    bundled_packages_dir: str = "packages"
    use_local_src: bool = False
    cache_internal: Annotated[
        list[CachedRepo], BeforeValidator(lambda value: [] if value is None else value)
    ] = Field(default_factory=list)
    live_reload: bool = False
    apply_library_patches: bool = True
    spec_version: str = "2.0"
