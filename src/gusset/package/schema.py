"""The keys of Truss's `config.yaml`: types, defaults and rules.

Nothing here opens a file. Unknown keys are kept. A broken rule raises
`rule_error(...)`, whose text never contains the value; `gusset.package.problems`
replaces pydantic's own messages. Rules between sections are in
`gusset.package.rules`, so that they are reported together with the others.
"""

from __future__ import annotations

import re
from enum import Enum
from ipaddress import IPv4Network
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictInt,
    Tag,
    computed_field,
    field_validator,
    model_serializer,
    model_validator,
)

from gusset.errors import InvalidName
from gusset.package.base_model import Auth, Section, rule_error, upper
from gusset.package.quantity import MEMORY_UNITS, parse_cpu, parse_memory
from gusset.package.storage import (
    Bdn,
    BisLlm,
    CachedRepo,
    ExternalData,
    ModelRepo,
    TrainingCheckpoints,
    Weights,
    unique_mounts,
)
from gusset.secrets.name import check_name

# resources

ACCELERATORS = (
    "B10 T4 L4 A10G V100 A100 A100_40GB H100 H200 H100_40GB B200 L40S RTX_PRO_6000 B300 GB300".split()  # noqa: SIM905
)


def names_accelerator(instance_type: str) -> bool:
    """Whether a type of machine, such as `L4:4x16` or `RTX-PRO-6000`, has a GPU by its name."""
    return instance_type.partition(":")[0].upper().replace("-", "_") in ACCELERATORS


def _cpu(text: str) -> str:
    try:
        parse_cpu(text)
    except ValueError:
        raise rule_error(
            "not an amount of CPU", 'write a number of cores or milli-cores, as "2" or "500m"'
        ) from None
    return text


def _memory(text: str) -> str:
    try:
        parse_memory(text)
    except ValueError:
        units = " ".join(MEMORY_UNITS)
        raise rule_error("not an amount of memory", f'write a number and one of {units}, as "2Gi"') from None
    return text


class Accelerator(Section):
    """A kind of GPU and how many, as in `L4:2`."""

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
        raise rule_error("expected a string or a map", _ACCELERATOR_HINT)
    name, *counts = value.strip().split(":")
    if name not in ACCELERATORS:
        raise rule_error("not a known accelerator", _ACCELERATOR_HINT)
    if len(counts) != 1:  # Truss ignores the count where there is more than one colon
        return {"accelerator": name}
    if not counts[0].isdecimal() or int(counts[0]) == 0:
        raise rule_error("the number of accelerators must be 1 or more", _ACCELERATOR_HINT)
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
        """Computed; the value in the file is ignored, as in Truss."""
        return self.accelerator is not None and self.accelerator.accelerator is not None

    @field_validator("instance_type")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return value or None


def _without(data: Any, *names: str) -> Any:
    return {key: value for key, value in data.items() if key not in names} if isinstance(data, dict) else data


# runtime


class Transport(Section):
    """Unlike elsewhere, Truss drops unknown keys here, and the ping keys without a websocket."""

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
        raise rule_error(
            "not an IPv4 address or range", "write 10.0.0.1, 10.0.0.0/8 or 10.0.0.0/255.0.0.0"
        ) from None
    return text


_LABEL = r"[A-Za-z0-9*]([A-Za-z0-9*-]{0,61}[A-Za-z0-9*])?"
_FQDN = re.compile(rf"{_LABEL}(\.{_LABEL})*")


def _fqdn(text: str) -> str:
    if not _FQDN.fullmatch(text.removesuffix("\n")):  # a block scalar ends in one, and Truss accepts it
        raise rule_error("not a host name", "write only the name, as in huggingface.co or *.example.com")
    return text


class EgressRestrictions(Section):
    ip_allow_list: list[Annotated[str, AfterValidator(_ip_range)]] | None = None
    fqdn_allow_list: list[Annotated[str, AfterValidator(_fqdn)]] | None = None


# A short form of the expression in PEP 440, appendix B.
_VERSION = re.compile(
    r"\s*v?([0-9]+!)?[0-9]+(\.[0-9]+)*([-_.]?(alpha|beta|preview|pre|a|b|c|rc)[-_.]?[0-9]*)?"
    r"(-[0-9]+|[-_.]?(post|rev|r)[-_.]?[0-9]*)?([-_.]?dev[-_.]?[0-9]*)?(\+[a-z0-9]+([-_.][a-z0-9]+)*)?\s*",
    re.IGNORECASE,
)


def _version(text: str) -> str:
    if not _VERSION.fullmatch(text):
        raise rule_error("not a version", 'write a version, as "0.9.0"')
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
            raise rule_error("the only possible value is 1", "remove the key", at=("num_workers",))
        if data.get("transport") is None and data.get("is_websocket_endpoint"):
            return data | {"transport": {"kind": "websocket"}}
        return data | {"transport": {"kind": "http"}} if data.get("transport", 0) == {} else data

    @model_validator(mode="after")
    def _one_transport(self) -> Runtime:
        """`is_websocket_endpoint: true` overrides `transport`; false never does."""
        if self.is_websocket_endpoint and self.transport.kind != "websocket":
            self.transport = WebsocketTransport()
        self.is_websocket_endpoint = self.transport.kind == "websocket"
        return self


# base_image, docker_server, auth


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
        BeforeValidator(upper),
    ]
    registry: str | None = ""
    aws_access_key_id_secret_name: str = "aws_access_key_id"  # noqa: S105 - the name of a secret
    aws_secret_access_key_secret_name: str = "aws_secret_access_key"  # noqa: S105 - the name of a secret
    secret_name: str | None = None


def _absolute_or_empty(text: str) -> str:
    if text and not PurePosixPath(text).is_absolute():
        raise rule_error("not an absolute path", "start the path with /, as in /usr/bin/python3")
    return text


class BaseImage(Section):
    image: str = ""
    python_executable_path: Annotated[str, AfterValidator(_absolute_or_empty)] = ""
    docker_auth: DockerAuth | None = None


def _user_id(number: int) -> int:
    if number in (0, 60000):
        raise rule_error(
            "the users 0 (root) and 60000 (the platform's) are refused", "choose another user, as 1000"
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


# build


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
                    raise rule_error("a key that is not a valid name for a secret", error.hint) from None
        return mapping


# the whole file

PythonVersion = Literal["py39", "py310", "py311", "py312", "py313", "py314"]


class TrussConfig(Section):
    """A valid `config.yaml`. `secrets` has only names: any text after them was dropped."""

    model_config = ConfigDict(title="config.yaml")
    hidden_when_none = frozenset({"training"})

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
    weights: Annotated[list[Weights], AfterValidator(unique_mounts)] = Field(default_factory=list)
    bdn: Bdn = Field(default_factory=Bdn)
    trt_llm: dict[str, Any] | None = None
    # `gusset.package.trt_llm` checks trt_llm; it is imported only for the few files that have the section.
    training_checkpoints: TrainingCheckpoints | None = None
    training: Any = None
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
