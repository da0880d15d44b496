"""The `trt_llm` section: types, bounds and the combinations that Truss refuses.

Imported only for files that have the section. gusset does not run such engines. It
checks the section so that it accepts the same files as Truss.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
    model_validator,
)

from gusset.package.base_model import Section, rule_error
from gusset.package.problems import ProblemCollector
from gusset.package.schema import Accelerator, parse_accelerator

AtLeastOne = Annotated[StrictInt, Field(ge=1)]
SeqLen = Annotated[StrictInt, Field(ge=1, le=1_048_576)]
BatchSize = Annotated[StrictInt, Field(ge=1, le=2048)]
CalibrationSize = Annotated[StrictInt, Field(ge=64, le=16_384, multiple_of=64)]
Fraction = Annotated[float, Field(gt=0, le=1)]


def _digit_first(text: str) -> str:
    if not text[:1].isdigit():
        raise rule_error("not a version", "start with a digit")
    return text


Version = Annotated[str, AfterValidator(_digit_first)]


class VersionOverrides(Section):
    engine_builder_version: Version | None = None
    briton_version: Version | None = None
    bei_version: Version | None = None
    bei_bert_version: Version | None = None
    v2_llm_version: str | None = None


_REPO_PART = r"[A-Za-z0-9_](?:(?!--|\.\.)[A-Za-z0-9_.-])*"
_REPO_ID = re.compile(rf"(?:{_REPO_PART}/)?{_REPO_PART}")


class CheckpointRepository(Section):
    source: Literal["HF", "GCS", "S3", "AZURE", "LOCAL", "REMOTE_URL", "BASETEN_TRAINING"]
    repo: str
    revision: str | None = None
    runtime_secret_name: str = "hf_access_token"  # noqa: S105 - the name of a secret

    @model_validator(mode="after")
    def _repo_of_the_hub(self) -> CheckpointRepository:
        repo = self.repo
        valid = (
            _REPO_ID.fullmatch(repo)
            and len(repo) <= 96
            and repo[-1] not in ".-"
            and not repo.endswith(".git")
        )
        if self.source == "HF" and not valid:
            raise rule_error("not a repository of the Hugging Face Hub", "write OWNER/NAME", at=("repo",))
        return self


Quantization = Literal[
    "no_quant",
    "weights_int8",
    "weights_kv_int8",
    "weights_int4",
    "weights_int4_kv_int8",
    "smooth_quant",
    "fp8",
    "fp8_kv",
    "fp8_mlp_only",
    "fp4",
    "fp4_kv",
    "fp4_mlp_only",
]


class QuantizationConfig(Section):
    calib_size: CalibrationSize = 1024
    calib_dataset: str = "abisee/cnn_dailymail"
    calib_max_seq_length: CalibrationSize = 1536


class PluginConfiguration(Section):
    paged_kv_cache: bool = True
    use_paged_context_fmha: bool = True
    use_fp8_context_fmha: bool = False

    @model_validator(mode="after")
    def _fp8_needs_paged(self) -> PluginConfiguration:
        if self.use_fp8_context_fmha and not self.use_paged_context_fmha:
            raise rule_error(
                "use_fp8_context_fmha needs use_paged_context_fmha",
                "set it to true",
                at=("use_fp8_context_fmha",),
            )
        return self


class LoraConfiguration(Section):
    max_lora_rank: int = 64
    lora_target_modules: list[str] = Field(default_factory=list)


LoraName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]+$")]
MAX_DRAFTS = 2048
_LORA_RUNTIME = re.compile("lora_cache_")


class Speculator(Section):
    speculative_decoding_mode: Literal["DRAFT_TOKENS_EXTERNAL", "LOOKAHEAD_DECODING"]
    num_draft_tokens: AtLeastOne | None = None
    checkpoint_repository: CheckpointRepository | None = None
    runtime: Runtime = Field(default_factory=lambda: Runtime())
    build: Build | None = None
    lookahead_windows_size: AtLeastOne | None = None
    lookahead_ngram_size: AtLeastOne | None = None
    lookahead_verification_set_size: AtLeastOne | None = None
    enable_b10_lookahead: bool | None = False

    @model_validator(mode="after")
    def _lookahead(self) -> Speculator:
        if self.speculative_decoding_mode == "DRAFT_TOKENS_EXTERNAL":
            raise rule_error(
                "DRAFT_TOKENS_EXTERNAL is refused",
                "write LOOKAHEAD_DECODING",
                at=("speculative_decoding_mode",),
            )
        w, n, v = self.lookahead_windows_size, self.lookahead_ngram_size, self.lookahead_verification_set_size
        if w is None or n is None or v is None:
            keys = "lookahead_windows_size, lookahead_ngram_size and lookahead_verification_set_size"
            raise rule_error("lookahead decoding needs all its sizes", f"set {keys}")
        least = (0 if n == 1 else n - 2) + (w - 1 + v) * (n - 1)  # what the engine drafts in a step
        drafts = least if self.num_draft_tokens is None else self.num_draft_tokens
        if not max(least, 1) <= drafts <= MAX_DRAFTS:
            hint = f"with these lookahead sizes, write {max(least, 1)} to {MAX_DRAFTS}"
            raise rule_error("not a valid number of draft tokens", hint, at=("num_draft_tokens",))
        self.num_draft_tokens = drafts
        return self


class Build(Section):
    base_model: Literal["encoder", "encoder_bert", "decoder"] = "decoder"
    max_seq_len: SeqLen | None = None
    max_batch_size: BatchSize = 256
    max_num_tokens: Annotated[StrictInt, Field(ge=65, le=1_048_576)] = 8192
    max_beam_width: Annotated[StrictInt, Field(ge=1, le=1)] = 1
    max_prompt_embedding_table_size: int = 0
    checkpoint_repository: CheckpointRepository | None = None
    gather_all_token_logits: bool = False
    strongly_typed: bool = False
    quantization_type: Quantization = "no_quant"
    quantization_config: QuantizationConfig = Field(default_factory=QuantizationConfig)
    tensor_parallel_count: AtLeastOne = 1
    pipeline_parallel_count: int = 1
    moe_expert_parallel_option: int = -1
    sequence_parallel_count: int = 1
    plugin_configuration: PluginConfiguration = Field(default_factory=PluginConfiguration)
    num_builder_gpus: AtLeastOne | None = None
    speculator: Speculator | None = None
    lora_adapters: dict[LoraName, CheckpointRepository] | None = None
    lora_configuration: LoraConfiguration | None = None
    skip_build_result: bool = False

    @model_validator(mode="before")
    @classmethod
    def _caches_are_of_the_runtime(cls, data: Any) -> Any:
        for key in data if isinstance(data, dict) else ():
            if isinstance(key, str) and _LORA_RUNTIME.match(key):
                raise rule_error("the lora_cache keys are not keys of build", "move them to trt_llm.runtime")
        return data

    @model_validator(mode="after")
    def _by_kind(self) -> Build:
        if self.base_model == "decoder":
            option = self.moe_expert_parallel_option
            if option < -1 or option == 0 or option > self.tensor_parallel_count:
                hint = "write -1, or 1 up to tensor_parallel_count"
                raise rule_error(
                    "outside the range that the parallel counts allow",
                    hint,
                    at=("moe_expert_parallel_option",),
                )
        else:
            self.tensor_parallel_count = self.pipeline_parallel_count = self.sequence_parallel_count = 1
        if self.base_model == "encoder":
            self._as_encoder()
        return self

    def _as_encoder(self) -> None:
        if "max_num_tokens" not in self.model_fields_set:
            self.max_num_tokens = 16_384
        self.plugin_configuration.paged_kv_cache = False
        self.plugin_configuration.use_paged_context_fmha = False


class Runtime(Section):
    kv_cache_free_gpu_mem_fraction: float = 0.9
    kv_cache_host_memory_bytes: AtLeastOne | None = None
    enable_chunked_context: bool = True
    batch_scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] = "guaranteed_no_evict"
    request_default_max_tokens: AtLeastOne | None = None
    total_token_limit: int = 500_000
    served_model_name: str | None = None
    webserver_default_route: (
        Literal["/v1/embeddings", "/v1/systemone", "/rerank", "/predict", "/predict_tokens"] | None
    ) = None
    lora_cache_max_adapter_size: AtLeastOne | None = None
    lora_cache_optimal_adapter_size: AtLeastOne | None = None
    lora_cache_gpu_memory_fraction: Fraction | None = None
    lora_cache_host_memory_bytes: AtLeastOne | None = None

    @model_validator(mode="after")
    def _adapter_sizes(self) -> Runtime:
        most, usual = self.lora_cache_max_adapter_size, self.lora_cache_optimal_adapter_size
        if most is not None and usual is not None and usual > most:
            message = "greater than lora_cache_max_adapter_size"
            raise rule_error(message, "write at most its value", at=("lora_cache_optimal_adapter_size",))
        return self


class EngineV1(Section):
    """The section for the first inference stack."""

    inference_stack: Literal["v1"] = "v1"
    build: Build
    runtime: Runtime = Field(default_factory=Runtime)
    version_overrides: VersionOverrides = Field(default_factory=VersionOverrides)

    @model_validator(mode="after")
    def _sound(self) -> EngineV1:
        build, plugins = self.build, self.build.plugin_configuration
        if build.checkpoint_repository is None:
            raise rule_error("checkpoint_repository is missing", "add it with source and repo", at=("build",))
        paged = plugins.paged_kv_cache and plugins.use_paged_context_fmha
        if build.base_model == "decoder" and self.runtime.enable_chunked_context and not paged:
            message = "enable_chunked_context needs paged_kv_cache and use_paged_context_fmha"
            raise rule_error(
                message, "set both to true, or this to false", at=("runtime", "enable_chunked_context")
            )
        return self


_BUILD_KEYS_V2 = frozenset(
    {
        "checkpoint_repository",
        "quantization_type",
        "quantization_config",
        "skip_build_result",
        "num_builder_gpus",
    }
)


class BuildV2(Build):
    """The same keys, but most must have their default."""

    @model_validator(mode="before")
    @classmethod
    def _others_stay_at_their_default(cls, data: Any) -> Any:
        for key in data if isinstance(data, dict) else ():
            known = Build.model_fields.get(key) if isinstance(key, str) else None
            if known is None or key in _BUILD_KEYS_V2:
                continue
            if data[key] != known.get_default(call_default_factory=True):
                raise rule_error("not a key of inference stack v2", "remove it", at=(key,))
        return data


class RuntimeV2(Section):
    model_config = ConfigDict(validate_by_alias=True)

    max_seq_len: SeqLen | None = None
    max_batch_size: BatchSize = 256
    max_num_tokens: Annotated[StrictInt, Field(ge=65, le=131_072)] = 8192
    tensor_parallel_size: AtLeastOne = 1
    enable_chunked_prefill: bool = True
    served_model_name: str | None = None
    patch_kwargs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _old_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and "gated_features" in data and "patch_kwargs" not in data:
            data = dict(data)
            data["patch_kwargs"] = data.pop("gated_features")
        return data


class EngineV2(Section):
    """The section for the second inference stack."""

    inference_stack: Literal["v2"]
    build: BuildV2
    runtime: RuntimeV2
    version_overrides: VersionOverrides = Field(default_factory=VersionOverrides)

    @model_validator(mode="after")
    def _sound(self) -> EngineV2:
        if self.build.checkpoint_repository is None and not self.build.skip_build_result:
            raise rule_error("checkpoint_repository is missing", "add it with source and repo", at=("build",))
        return self


Speculator.model_rebuild()


def check_trt_llm(data: dict[Any, Any], problems: ProblemCollector) -> dict[str, Any] | None:
    """The section with its defaults; None when it is invalid, with the reasons in `problems`."""
    section = data["trt_llm"]
    stack = section.get("inference_stack", "v1")
    if stack not in ("v1", "v2"):
        problems.add(("trt_llm", "inference_stack"), "not one of the values of this key", "write v1 or v2")
        return None
    try:
        engine = (EngineV1 if stack == "v1" else EngineV2).model_validate(section)
    except ValidationError as error:
        problems.add_validation(error, ("trt_llm",))
        return None
    _with_accelerator(engine, data, problems)
    _with_tags(engine, data, problems)
    return engine.model_dump(mode="json")


_OLD_GPUS = ("T4", "V100")
_NO_FP8 = ("A10G", "A100", "A100_40GB")
_NO_FP4 = (*_NO_FP8, "H100", "H100_40GB", "H200", "L4", "L40S")


def _with_accelerator(engine: EngineV1 | EngineV2, data: dict[Any, Any], problems: ProblemCollector) -> None:
    """The rules between the section and `resources.accelerator`."""
    gpu = _accelerator_of(data)
    path = ("resources", "accelerator")
    bert = isinstance(engine, EngineV1) and engine.build.base_model == "encoder_bert"
    quantization = engine.build.quantization_type
    if gpu.accelerator in _OLD_GPUS:
        if not bert:
            problems.add(path, "this GPU is too old for trt_llm", "only base_model: encoder_bert runs on it")
    elif (quantization.startswith("fp8") and gpu.accelerator in _NO_FP8) or (
        quantization.startswith("fp4") and gpu.accelerator in _NO_FP4
    ):
        problems.add(
            ("trt_llm", "build", "quantization_type"),
            "the accelerator does not support this quantization",
            "choose another",
        )
    if isinstance(engine, EngineV1) and engine.build.base_model == "decoder":
        build = engine.build
        wanted = build.tensor_parallel_count * build.pipeline_parallel_count * build.sequence_parallel_count
        if wanted != max(gpu.count, 1):
            problems.add(
                path,
                "the number of accelerators differs from the product of the parallel counts in trt_llm.build",
                "make them equal",
            )


def _accelerator_of(data: dict[Any, Any]) -> Accelerator:
    """The accelerator in `resources`; none if it is invalid, which is reported elsewhere."""
    resources = data.get("resources")
    try:
        value = parse_accelerator(resources.get("accelerator") if isinstance(resources, dict) else None)
        return Accelerator.model_validate(value or {})
    except (ValidationError, ValueError):
        return Accelerator()


_OPENAI, _LEGACY = "openai-compatible", "force-legacy-api-non-openai-compatible"


def _with_tags(engine: EngineV1 | EngineV2, data: dict[Any, Any], problems: ProblemCollector) -> None:
    metadata = data.get("model_metadata")
    tags = metadata.get("tags", []) if isinstance(metadata, dict) else []
    if not isinstance(engine, EngineV1) or engine.build.base_model != "decoder" or not isinstance(tags, list):
        return
    if _OPENAI in tags and _LEGACY in tags:
        problems.add(
            ("model_metadata", "tags"),
            f"the tags {_OPENAI} and {_LEGACY} cannot be used together",
            "keep one",
        )


__all__ = ["EngineV1", "EngineV2", "check_trt_llm"]
