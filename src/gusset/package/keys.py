"""What gusset does with each key of `config.yaml`, in one table.

`acted`: gusset does what the key says. `ignored`: accepted and checked, given
to the model as part of its `config`, without effect here. `images`: acted on
for a custom image, ignored for a Python model. `refused`: accepted and checked,
but `gusset serve` does not start with it, because the model would miss
something. docs/config.md shows this table; a test compares both, and the table
with the schema.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from gusset.package.problems import Reporter, show_key, show_path
from gusset.package.schema import TrussConfig

Status = Literal["acted", "ignored", "images", "refused"]


@dataclass(frozen=True, slots=True)
class Key:
    """A key by its path (`weights[].source`), what gusset does with it, and why or how."""

    path: str
    status: Status
    about: str
    instead: str | None = None


def _group(status: Status, parent: str, about: str, names: str) -> list[Key]:
    """Keys below `parent` that share one reason."""
    return [Key(f"{parent}.{name}" if parent else name, status, about) for name in names.split()]


def _acted(path: str, about: str) -> Key:
    return Key(path, "acted", about)


def _ignored(path: str, about: str) -> Key:
    return Key(path, "ignored", about)


def _of_images(path: str, about: str) -> Key:
    return Key(path, "images", about)


_PLATFORM = "for the hosted platform; the machine that gusset runs on is given"
_BUILD = "built into the image; for a Python model install it yourself where `gusset serve` runs"
_IDENTITY = "of methods that are refused"
_LIMIT = "a limit of the container; a Python model is given the whole machine"
_DOWNLOAD = "needs a download before the start"
_LOAD_IT = "download in the model's `load` instead, with a token from the secrets"
_TRT = "engines are built and run by the hosted platform alone"


def _trt_llm() -> list[Key]:
    """The keys of both inference stacks together."""
    repository = "source repo revision runtime_secret_name"
    sections = {
        "trt_llm": "inference_stack build runtime version_overrides",
        "trt_llm.version_overrides": (
            "engine_builder_version briton_version bei_version bei_bert_version v2_llm_version"
        ),
        "trt_llm.build": (
            "base_model max_seq_len max_batch_size max_num_tokens max_beam_width "
            "max_prompt_embedding_table_size "
            "checkpoint_repository gather_all_token_logits strongly_typed quantization_type "
            "quantization_config "
            "tensor_parallel_count pipeline_parallel_count moe_expert_parallel_option "
            "sequence_parallel_count "
            "plugin_configuration num_builder_gpus speculator lora_adapters lora_configuration "
            "skip_build_result"
        ),
        "trt_llm.build.checkpoint_repository": repository,
        "trt_llm.build.quantization_config": "calib_size calib_dataset calib_max_seq_length",
        "trt_llm.build.plugin_configuration": "paged_kv_cache use_paged_context_fmha use_fp8_context_fmha",
        "trt_llm.build.lora_configuration": "max_lora_rank lora_target_modules",
        "trt_llm.build.speculator": (
            "speculative_decoding_mode num_draft_tokens checkpoint_repository runtime build "
            "lookahead_windows_size "
            "lookahead_ngram_size lookahead_verification_set_size enable_b10_lookahead"
        ),
        "trt_llm.build.speculator.checkpoint_repository": repository,
        "trt_llm.runtime": (
            "kv_cache_free_gpu_mem_fraction kv_cache_host_memory_bytes enable_chunked_context "
            "batch_scheduler_policy request_default_max_tokens total_token_limit served_model_name "
            "webserver_default_route lora_cache_max_adapter_size lora_cache_optimal_adapter_size "
            "lora_cache_gpu_memory_fraction lora_cache_host_memory_bytes max_seq_len max_batch_size "
            "max_num_tokens "
            "tensor_parallel_size enable_chunked_prefill patch_kwargs gated_features"
        ),
    }
    return [key for parent, names in sections.items() for key in _group("refused", parent, _TRT, names)]


KEYS: tuple[Key, ...] = (
    _acted("model_name", "the name of the deployment; else the folder's name"),
    _acted(
        "model_metadata", "given to the model; `gusset.optional_secrets` lists secrets that may be missing"
    ),
    _ignored("description", "for people"),
    _ignored("examples_filename", "a list of example requests for people"),
    _acted("data_dir", "the model's `data_dir`"),
    Key("external_data", "refused", _DOWNLOAD, _LOAD_IT),
    *_group("refused", "external_data[]", _DOWNLOAD, "url local_data_path backend name"),
    _acted("external_package_dirs", "their contents are importable"),
    _ignored("python_version", "the Python that runs gusset runs the model"),
    _of_images("base_image", "what is run, or built on"),
    _of_images("base_image.image", "the image; pulled when the engine has it not"),
    _of_images("base_image.python_executable_path", "installs requirements; python3 when not given"),
    _of_images("base_image.docker_auth", "the login for the pull; else the one that the engine has"),
    _of_images(
        "base_image.docker_auth.auth_method", "REGISTRY_SECRET, GCP_SERVICE_ACCOUNT_JSON; others are refused"
    ),
    _of_images("base_image.docker_auth.registry", "the image's own; for another one no login is sent"),
    _of_images(
        "base_image.docker_auth.secret_name", "the login; DOCKER_REGISTRY_ and the host when not given"
    ),
    *_group(
        "ignored",
        "base_image.docker_auth",
        _IDENTITY,
        "aws_access_key_id_secret_name aws_secret_access_key_secret_name aws_oidc_role_arn aws_oidc_region "
        "gcp_oidc_service_account gcp_oidc_workload_id_provider aws_assume_role_arn aws_assume_role_region",
    ),
    *_group("images", "", _BUILD, "requirements_file requirements system_packages"),
    _acted("environment_variables", "set before the model's code is imported; every value becomes a text"),
    _acted("secrets", "the names that the model may read; a text beside one is never its value"),
    _of_images("resources", _LIMIT),
    *_group("images", "resources", _LIMIT, "cpu memory"),
    *_group("ignored", "resources", _PLATFORM, "accelerator instance_type node_count fabric"),
    _ignored("resources.use_gpu", "computed: true where an accelerator is named; what is written is dropped"),
    *_group("ignored", "resources.fabric", _PLATFORM, "use_rdma preferences"),
    _acted("runtime", "how the model is served"),
    _acted("runtime.predict_concurrency", "how many predictions run at a time"),
    _acted("runtime.streaming_read_timeout", "for how many seconds a stream may be silent before it is cut"),
    _ignored("runtime.enable_tracing_data", "gusset records no traces"),
    _acted("runtime.enable_debug_logs", "the model's process logs from DEBUG on"),
    _acted("runtime.transport", "http and websockets"),
    Key("runtime.transport.kind", "acted", "http or websocket; with grpc `serve` does not start"),
    _acted("runtime.transport.ping_interval_seconds", "of websockets; 20 when not given"),
    _acted("runtime.transport.ping_timeout_seconds", "of websockets; 20 when not given"),
    _acted("runtime.is_websocket_endpoint", "an old way to write `transport: {kind: websocket}`"),
    _ignored("runtime.num_workers", "an old key that may only be 1; see `gusset serve --workers`"),
    _of_images("runtime.health_checks", "for how long a container may be unwell"),
    _of_images("runtime.health_checks.restart_check_delay_seconds", "before its liveness is looked at; 0"),
    _of_images("runtime.health_checks.restart_threshold_seconds", "not alive, it is restarted; 1800"),
    _of_images(
        "runtime.health_checks.stop_traffic_threshold_seconds", "not ready, it gets no requests; 1800"
    ),
    _of_images("runtime.health_checks.startup_threshold_seconds", "until it has to be ready; 1800"),
    _ignored("runtime.oidc", _PLATFORM),
    _ignored("runtime.oidc.enabled", _PLATFORM),
    _ignored("runtime.remote_ssh", "log in to the machine itself"),
    _ignored("runtime.remote_ssh.enabled", "log in to the machine itself"),
    _ignored("runtime.egress_restrictions", "the network is the machine's; use its firewall"),
    *_group(
        "ignored",
        "runtime.egress_restrictions",
        "the network is the machine's; use its firewall",
        "ip_allow_list fqdn_allow_list",
    ),
    _ignored("runtime.truss_server_version_override", "gusset has a server of its own"),
    _of_images("build", "how the image is built"),
    *_group("ignored", "build", "internal to Truss", "model_server arguments"),
    _of_images(
        "build.secret_to_path_mapping", "builds are not given secrets yet: such an image is not served"
    ),
    _of_images("build.no_cache", "build all of it anew"),
    _of_images("build_commands", _BUILD),
    _acted("docker_server", "the image is run instead of a Python model"),
    _acted("docker_server.start_command", "run in the container, split as a shell would, without one"),
    _acted("docker_server.server_port", "where the server in the container listens"),
    _acted("docker_server.predict_endpoint", "what predictions and websockets are sent to"),
    _acted("docker_server.readiness_endpoint", "a status from 200 to 399 lets requests pass"),
    _acted("docker_server.liveness_endpoint", "an error, or no answer, for too long restarts the container"),
    _acted("docker_server.run_as_user_id", "the user in the container, who owns the files of secrets"),
    _acted("docker_server.no_build", "the image is run as it is, and nothing built into it"),
    Key("model_cache", "refused", _DOWNLOAD, _LOAD_IT),
    Key("hf_cache", "refused", f"the old name of model_cache; {_DOWNLOAD}", _LOAD_IT),
    *(
        key
        for section in ("model_cache[]", "hf_cache[]")
        for key in _group(
            "refused",
            section,
            _DOWNLOAD,
            "repo_id revision allow_patterns ignore_patterns volume_folder use_volume kind "
            "runtime_secret_name",
        )
    ),
    Key("weights", "refused", _DOWNLOAD, _LOAD_IT),
    *_group(
        "refused",
        "weights[]",
        _DOWNLOAD,
        "source mount_location auth auth_secret_name allow_patterns ignore_patterns",
    ),
    *_group(
        "refused",
        "weights[].auth",
        "used for the download",
        "auth_method auth_secret_name aws_oidc_role_arn aws_oidc_region gcp_oidc_service_account "
        "gcp_oidc_workload_id_provider "
        "aws_assume_role_arn aws_assume_role_region",
    ),
    _ignored("bdn", "the hosted platform's network of volumes"),
    Key("bdn.mounts", "refused", "mounts of the hosted platform's volumes", _LOAD_IT),
    *_group(
        "refused", "bdn.mounts[]", "mounts of the hosted platform's volumes", "source path include exclude"
    ),
    _ignored("bdn.access", "rights on the hosted platform's volumes"),
    *_group("ignored", "bdn.access[]", "rights on the hosted platform's volumes", "namespace grants"),
    _ignored("bdn.hotload", "of the hosted platform's volumes"),
    _ignored("bdn.hotload.enabled", "of the hosted platform's volumes"),
    Key("trt_llm", "refused", _TRT),
    *_trt_llm(),
    Key("training_checkpoints", "refused", _DOWNLOAD, _LOAD_IT),
    *_group(
        "refused",
        "training_checkpoints",
        _DOWNLOAD,
        "download_folder artifact_references loops_checkpoint_ids",
    ),
    *_group("refused", "training_checkpoints.artifact_references[]", _DOWNLOAD, "training_job_id paths"),
    Key("bis_llm", "refused", _TRT),
    *_group("refused", "bis_llm", _TRT, "config version additional_autoscaling_config"),
    *_group("refused", "bis_llm.additional_autoscaling_config", _TRT, "metrics"),
    *_group("refused", "bis_llm.additional_autoscaling_config.metrics[]", _TRT, "name target"),
    *_group("ignored", "", "Truss itself does nothing with it", "input_type model_framework model_type"),
    _acted("model_module_dir", "the folder of the model's code"),
    _acted("model_class_filename", "the file with the class"),
    _acted("model_class_name", "the class"),
    _acted("bundled_packages_dir", "its contents are importable"),
    _ignored("use_local_src", "internal to Truss"),
    _ignored("cache_internal", "internal to Truss"),
    *_group(
        "ignored",
        "cache_internal[]",
        "internal to Truss",
        "repo_id revision allow_patterns ignore_patterns volume_folder use_volume kind runtime_secret_name",
    ),
    _ignored("live_reload", "an option of the command: `gusset serve --reload`"),
    _ignored("apply_library_patches", "gusset changes no library"),
    _ignored("spec_version", "one version is known"),
)

_OPEN = frozenset(
    {
        "model_metadata",
        "environment_variables",
        "secrets",
        "build.arguments",
        "build.secret_to_path_mapping",
        "bis_llm.config",
    }
)
"""Maps whose keys are the author's."""


@cache
def by_path() -> dict[str, Key]:
    """The table, by path."""
    return {key.path: key for key in KEYS}


@cache
def _children() -> dict[str, list[str]]:
    """Names of the keys in each section; the top is the empty path."""
    found: dict[str, list[str]] = {}
    for key in KEYS:
        parent, _, name = key.path.rpartition(".")
        found.setdefault(parent, []).append(name)
    return found


def report_unknown(data: dict[Any, Any], report: Reporter) -> None:
    """Warn about each key that Truss does not know, with the nearest that it does."""
    _unknown_in(data, "", (), report)


def _unknown_in(data: Any, section: str, path: tuple[Any, ...], report: Reporter) -> None:
    known = _children().get(section)
    if section in _OPEN or known is None:
        return
    if isinstance(data, list):
        return
    for name, value in data.items() if isinstance(data, dict) else ():
        here = f"{section}.{name}" if section else str(name)
        if name not in known:
            _unknown_key((*path, name), known, report)
        elif isinstance(value, list):
            for position, item in enumerate(value):
                _unknown_in(item, f"{here}[]", (*path, name, position), report)
        else:
            _unknown_in(value, here, (*path, name), report)


def _unknown_key(path: tuple[Any, ...], known: list[str], report: Reporter) -> None:
    """Warn about the key at `path`, which is none of `known`."""
    near = (
        difflib.get_close_matches(str(path[-1]), known, n=1) if show_path(path[-1:]) != "(not shown)" else []
    )
    hint = f"did you mean '{near[0]}'?" if near else "it reaches the model's config and has no other effect"
    report.add(path, f"unknown key {show_key(path)}", hint, code="unknown_key", warning=True, at_key=True)


def refused(config: TrussConfig) -> list[tuple[tuple[str, ...], Key]]:
    """Keys of this configuration with which `gusset serve` does not start."""
    table = by_path()
    wanted = [path for path, asks in _ASKS.items() if asks(config)]
    found = [(path, table[".".join(path)]) for path in wanted]
    return [
        (
            path,
            Key(
                "runtime.transport.kind", "refused", "only http and websockets are served", "write kind: http"
            ),
        )
        if path == _KIND
        else (path, key)
        for path, key in found
    ]


_KIND = ("runtime", "transport", "kind")
_ASKS: dict[tuple[str, ...], Callable[[TrussConfig], bool]] = {
    ("external_data",): lambda config: bool(config.external_data),
    ("model_cache",): lambda config: bool(config.model_cache),
    ("weights",): lambda config: bool(config.weights),
    ("bdn", "mounts"): lambda config: bool(config.bdn.mounts),
    ("trt_llm",): lambda config: config.trt_llm is not None,
    ("training_checkpoints",): lambda config: _has_checkpoints(config),
    ("bis_llm",): lambda config: config.bis_llm is not None,
    _KIND: lambda config: config.runtime.transport.kind == "grpc",
}


def _has_checkpoints(config: TrussConfig) -> bool:
    wanted = config.training_checkpoints
    return wanted is not None and bool(wanted.artifact_references or wanted.loops_checkpoint_ids)


def without_effect(data: dict[Any, Any]) -> list[str]:
    """Top-level keys, and those in `runtime`, that a file has and gusset ignores; in the file's order."""
    table = by_path()
    names = [name for name in data if isinstance(name, str)]
    runtime = data.get("runtime")
    names += (
        [f"runtime.{name}" for name in runtime if isinstance(name, str)] if isinstance(runtime, dict) else []
    )
    idle = {"ignored"} if data.get("docker_server") else {"ignored", "images"}
    return [name for name in names if name in table and table[name].status in idle]
