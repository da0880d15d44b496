"""What gusset does with each key of `config.yaml`, in one table.

`supported`: gusset does what the key says. `ignored`: checked and passed to the
model in its `config`, without any other effect. `images`: supported for a custom
image, ignored for a Python model. `refused`: checked, but `gusset serve` does not
start with it, because the model would not work. docs/config.md shows this table.
A test compares the two, and the table with the schema.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from gusset.package.problems import ProblemCollector, format_path, quoted_key

Status = Literal["supported", "ignored", "images", "refused"]


@dataclass(frozen=True, slots=True)
class ConfigKey:
    """A key by its path (`weights[].source`), what gusset does with it, and why or how."""

    path: str
    status: Status
    about: str
    instead: str | None = None


def _group(status: Status, parent: str, about: str, names: str) -> list[ConfigKey]:
    """Keys below `parent` with the same status and explanation."""
    return [ConfigKey(f"{parent}.{name}" if parent else name, status, about) for name in names.split()]


def _supported(path: str, about: str) -> ConfigKey:
    return ConfigKey(path, "supported", about)


def _ignored(path: str, about: str) -> ConfigKey:
    return ConfigKey(path, "ignored", about)


def _for_images(path: str, about: str) -> ConfigKey:
    return ConfigKey(path, "images", about)


_PLATFORM = "only for the hosted platform: gusset runs on the machine as it is"
_BUILD = "run when the image is built"
_IDENTITY = "only for methods that gusset refuses"
_LIMIT = "the container's limit; a Python model has no limit"
_LOAD_IT = "download it in the model's `load` instead, with a token from the secrets"
_CHECKPOINTS = "only the hosted platform has its training jobs"
_MACHINE_LOGIN = "accepted; the login of the machine is used, as the cloud's library finds it"
_TRT = "only the hosted platform builds and runs such engines"
_OWN_SERVER = "write a model.py, or run an inference server's image with docker_server"


_REPOSITORY = "source repo revision runtime_secret_name"
_SECTIONS_OF_TRT_LLM = {  # names of keys, by the path of their section
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
    "trt_llm.build.checkpoint_repository": _REPOSITORY,
    "trt_llm.build.quantization_config": "calib_size calib_dataset calib_max_seq_length",
    "trt_llm.build.plugin_configuration": "paged_kv_cache use_paged_context_fmha use_fp8_context_fmha",
    "trt_llm.build.lora_configuration": "max_lora_rank lora_target_modules",
    "trt_llm.build.speculator": (
        "speculative_decoding_mode num_draft_tokens checkpoint_repository runtime build "
        "lookahead_windows_size "
        "lookahead_ngram_size lookahead_verification_set_size enable_b10_lookahead"
    ),
    "trt_llm.build.speculator.checkpoint_repository": _REPOSITORY,
    "trt_llm.runtime": (
        "kv_cache_free_gpu_mem_fraction kv_cache_host_memory_bytes enable_chunked_context "
        "batch_scheduler_policy request_default_max_tokens total_token_limit served_model_name "
        "webserver_default_route lora_cache_max_adapter_size lora_cache_optimal_adapter_size "
        "lora_cache_gpu_memory_fraction lora_cache_host_memory_bytes max_seq_len max_batch_size "
        "max_num_tokens "
        "tensor_parallel_size enable_chunked_prefill patch_kwargs gated_features"
    ),
}


def _trt_llm() -> list[ConfigKey]:
    """The keys of both inference stacks."""
    sections = _SECTIONS_OF_TRT_LLM.items()
    return [key for parent, names in sections for key in _group("refused", parent, _TRT, names)]


def _cached_repo(section: str) -> list[ConfigKey]:
    """The keys of an entry of `model_cache`, or of its old name."""
    about = {
        "repo_id": "a repository of a hub, or a bucket and the path in it",
        "revision": "a branch, a tag or a commit",
        "allow_patterns": "only files that match one of them",
        "ignore_patterns": "no files that match one of them",
        "volume_folder": "the folder in /app/model_cache, a link into the cache; in a container, a mount",
        "use_volume": "false: a repository goes into the hub's own cache, where its libraries look",
        "kind": "hf, gcs, s3 or azure",
        "runtime_secret_name": "the secret with the login; a public source needs none",
    }
    return [ConfigKey(f"{section}.{name}", "supported", text) for name, text in about.items()]


KEYS: tuple[ConfigKey, ...] = (
    _supported("model_name", "the deployment's name; the folder's name by default"),
    _supported(
        "model_metadata",
        "passed to the model; `gusset.optional_secrets` lists secrets that may be missing, `gusset.callers` "
        "those that callers must present",
    ),
    _ignored("description", "for human readers"),
    _ignored("examples_filename", "example requests for human readers"),
    _supported("data_dir", "passed to the model as `data_dir`"),
    _supported(
        "external_data", "downloaded into the data folder before the import; refused for a custom image"
    ),
    _supported("external_data[].url", "http or https, without a login"),
    _supported("external_data[].local_data_path", "the file in the data folder; `..` is refused"),
    _ignored("external_data[].backend", "every file is downloaded from its URL"),
    _ignored("external_data[].name", "for human readers"),
    _supported("external_package_dirs", "the model can import what they contain"),
    _supported(
        "python_version", "the Python of the model's environment; the nearest, if there is no such one"
    ),
    _for_images("base_image", "the image to run or to build on"),
    _for_images("base_image.image", "the image's name; pulled if the engine does not have it"),
    _for_images(
        "base_image.python_executable_path", "the Python that installs requirements; `python3` by default"
    ),
    _for_images("base_image.docker_auth", "the login for the pull; by default the engine's own"),
    _for_images(
        "base_image.docker_auth.auth_method",
        "REGISTRY_SECRET and GCP_SERVICE_ACCOUNT_JSON; `gusset serve` refuses others",
    ),
    _for_images("base_image.docker_auth.registry", "must be the registry in the image's name"),
    _for_images(
        "base_image.docker_auth.secret_name",
        "the secret with the login; by default DOCKER_REGISTRY_ and the host",
    ),
    *_group(
        "ignored",
        "base_image.docker_auth",
        _IDENTITY,
        "aws_access_key_id_secret_name aws_secret_access_key_secret_name aws_oidc_role_arn aws_oidc_region "
        "gcp_oidc_service_account gcp_oidc_workload_id_provider aws_assume_role_arn aws_assume_role_region",
    ),
    _supported("requirements_file", "pip's format, pyproject.toml or uv.lock; installed like `requirements`"),
    _supported("requirements", "installed in an environment of the model's own, or added to the image"),
    _supported("system_packages", "added to an image; for a model, a warning names those that are missing"),
    _supported(
        "environment_variables", "set before the model's code is imported; every value is converted to a text"
    ),
    _supported("secrets", "the names that the model may read; text after a name is never its value"),
    _for_images("resources", _LIMIT),
    *_group("images", "resources", _LIMIT, "cpu memory"),
    *_group("ignored", "resources", _PLATFORM, "accelerator instance_type node_count fabric"),
    _ignored(
        "resources.use_gpu", "computed: true if an accelerator is named; the value in the file is dropped"
    ),
    *_group("ignored", "resources.fabric", _PLATFORM, "use_rdma preferences"),
    _supported("runtime", "how the model is served"),
    _supported("runtime.predict_concurrency", "how many predictions run at the same time; 1 or more"),
    _supported("runtime.streaming_read_timeout", "seconds after which a stream without output is aborted"),
    _ignored("runtime.enable_tracing_data", "gusset records no traces"),
    _supported("runtime.enable_debug_logs", "the worker logs at level DEBUG"),
    _supported("runtime.transport", "http, websocket or grpc"),
    ConfigKey("runtime.transport.kind", "supported", "http or websocket; grpc for a custom image"),
    _supported("runtime.transport.ping_interval_seconds", "for websockets; 20 by default"),
    _supported("runtime.transport.ping_timeout_seconds", "for websockets; 20 by default"),
    _supported("runtime.is_websocket_endpoint", "the old form of `transport: {kind: websocket}`"),
    _ignored("runtime.num_workers", "an old key that can only be 1; use `gusset serve --workers`"),
    _for_images("runtime.health_checks", "how long a container may be unhealthy"),
    _for_images(
        "runtime.health_checks.restart_check_delay_seconds",
        "seconds before the first liveness probe; 0 by default",
    ),
    _for_images(
        "runtime.health_checks.restart_threshold_seconds",
        "seconds without liveness until a restart; 1800 by default",
    ),
    _for_images(
        "runtime.health_checks.stop_traffic_threshold_seconds",
        "seconds without readiness until it gets no requests; 1800 by default",
    ),
    _for_images(
        "runtime.health_checks.startup_threshold_seconds", "seconds until it must be ready; 1800 by default"
    ),
    _ignored("runtime.oidc", _PLATFORM),
    _ignored("runtime.oidc.enabled", _PLATFORM),
    _ignored("runtime.remote_ssh", "log in to the machine that gusset runs on"),
    _ignored("runtime.remote_ssh.enabled", "log in to the machine that gusset runs on"),
    _ignored("runtime.egress_restrictions", "the model uses the machine's network; use its firewall"),
    *_group(
        "ignored",
        "runtime.egress_restrictions",
        "the model uses the machine's network; use its firewall",
        "ip_allow_list fqdn_allow_list",
    ),
    _ignored("runtime.truss_server_version_override", "gusset has its own server"),
    _supported("build", "how the image is built; logins for package indexes"),
    *_group("ignored", "build", "internal to Truss", "model_server arguments"),
    _supported(
        "build.secret_to_path_mapping",
        "files for build_commands and the installation of an image; for a model that is served, logins for "
        "package indexes: paths that end in .netrc, pip.conf or uv.toml",
    ),
    _for_images("build.no_cache", "build every layer again"),
    _for_images("build_commands", _BUILD),
    _supported("docker_server", "run the image instead of a Python model"),
    _supported(
        "docker_server.start_command",
        "the container's command, split into words as in a shell but run without one",
    ),
    _supported("docker_server.server_port", "the port on which the container's server listens"),
    _supported("docker_server.predict_endpoint", "the path for predictions and websockets"),
    _supported(
        "docker_server.readiness_endpoint",
        "the path of the readiness probe: a status from 200 to 399 means ready",
    ),
    _supported(
        "docker_server.liveness_endpoint",
        "the path of the liveness probe: errors for too long restart the container",
    ),
    _supported(
        "docker_server.run_as_user_id", "the user in the container, who also owns the files of secrets"
    ),
    _supported("docker_server.no_build", "run the image without adding anything to it"),
    _supported("model_cache", "downloaded before `load`, or before the container starts"),
    _supported("hf_cache", "the old name of model_cache"),
    *(key for section in ("model_cache[]", "hf_cache[]") for key in _cached_repo(section)),
    _supported("weights", "downloaded before `load`, or before the container starts"),
    _supported("weights[].source", "hf, https, s3, gs, azure, r2 or cw; see weights.md"),
    _supported("weights[].mount_location", "a symbolic link into the cache; in a container, a mount"),
    _supported("weights[].auth", "how to log in at the source"),
    _supported("weights[].auth_secret_name", "the secret with the login; a public source needs none"),
    _supported("weights[].allow_patterns", "only files that match one of them"),
    _supported("weights[].ignore_patterns", "no files that match one of them"),
    _supported("weights[].auth.auth_method", "CUSTOM_SECRET; for others the login of the machine is used"),
    _supported("weights[].auth.auth_secret_name", "the secret with the login"),
    *_group(
        "ignored",
        "weights[].auth",
        _MACHINE_LOGIN,
        "aws_oidc_role_arn aws_oidc_region gcp_oidc_service_account gcp_oidc_workload_id_provider "
        "aws_assume_role_arn aws_assume_role_region",
    ),
    _ignored("bdn", "volumes of the hosted platform"),
    ConfigKey("bdn.mounts", "refused", "gusset cannot mount the hosted platform's volumes", _LOAD_IT),
    *_group(
        "refused",
        "bdn.mounts[]",
        "gusset cannot mount the hosted platform's volumes",
        "source path include exclude",
    ),
    _ignored("bdn.access", "rights to the hosted platform's volumes"),
    *_group("ignored", "bdn.access[]", "rights to the hosted platform's volumes", "namespace grants"),
    _ignored("bdn.hotload", "volumes of the hosted platform"),
    _ignored("bdn.hotload.enabled", "volumes of the hosted platform"),
    ConfigKey("trt_llm", "refused", _TRT, _OWN_SERVER),
    *_trt_llm(),
    ConfigKey("training_checkpoints", "refused", _CHECKPOINTS, _LOAD_IT),
    *_group(
        "refused",
        "training_checkpoints",
        _CHECKPOINTS,
        "download_folder artifact_references loops_checkpoint_ids",
    ),
    *_group("refused", "training_checkpoints.artifact_references[]", _CHECKPOINTS, "training_job_id paths"),
    _ignored("training", "only for training jobs of the hosted platform"),
    ConfigKey("bis_llm", "refused", _TRT, _OWN_SERVER),
    *_group("refused", "bis_llm", _TRT, "config version additional_autoscaling_config"),
    *_group("refused", "bis_llm.additional_autoscaling_config", _TRT, "metrics"),
    *_group("refused", "bis_llm.additional_autoscaling_config.metrics[]", _TRT, "name target"),
    *_group("ignored", "", "Truss does not use it either", "input_type model_framework model_type"),
    _supported("model_module_dir", "the folder with the model's code"),
    _supported("model_class_filename", "the file with the model's class"),
    _supported("model_class_name", "the name of the model's class"),
    _supported("bundled_packages_dir", "the model can import what it contains"),
    _ignored("use_local_src", "internal to Truss"),
    _ignored("cache_internal", "internal to Truss"),
    *_group(
        "ignored",
        "cache_internal[]",
        "internal to Truss",
        "repo_id revision allow_patterns ignore_patterns volume_folder use_volume kind runtime_secret_name",
    ),
    _ignored("live_reload", "use `gusset serve --reload`"),
    _ignored("apply_library_patches", "gusset patches no libraries"),
    _ignored("spec_version", "there is only one version"),
)

_OPEN = frozenset(
    {
        "model_metadata",
        "environment_variables",
        "secrets",
        "build.arguments",
        "training",
        "build.secret_to_path_mapping",
        "bis_llm.config",
    }
)
"""Maps with any keys."""


@cache
def keys_by_path() -> dict[str, ConfigKey]:
    """The table by path."""
    return {key.path: key for key in KEYS}


@cache
def _children() -> dict[str, list[str]]:
    """The names of the keys in each section; the top level has the empty path."""
    found: dict[str, list[str]] = {}
    for key in KEYS:
        parent, _, name = key.path.rpartition(".")
        found.setdefault(parent, []).append(name)
    return found


def report_unknown(data: dict[Any, Any], problems: ProblemCollector) -> None:
    """Warn about each key that Truss does not have, and suggest the most similar one."""
    _unknown_in(data, "", (), problems)


def _unknown_in(data: Any, section: str, path: tuple[Any, ...], problems: ProblemCollector) -> None:
    known = _children().get(section)
    if section in _OPEN or known is None:
        return
    if isinstance(data, list):
        return
    for name, value in data.items() if isinstance(data, dict) else ():
        here = f"{section}.{name}" if section else str(name)
        if name not in known:
            _unknown_key((*path, name), known, problems)
        elif isinstance(value, list):
            for position, item in enumerate(value):
                _unknown_in(item, f"{here}[]", (*path, name, position), problems)
        else:
            _unknown_in(value, here, (*path, name), problems)


def _unknown_key(path: tuple[Any, ...], known: list[str], problems: ProblemCollector) -> None:
    """Warn about the key at `path`, which is not one of `known`."""
    similar = (
        difflib.get_close_matches(str(path[-1]), known, n=1)
        if format_path(path[-1:]) != "(not shown)"
        else []
    )
    passed_on = "it is passed to the model in its config and has no other effect"
    hint = f"did you mean '{similar[0]}'?" if similar else passed_on
    problems.add(path, f"unknown key {quoted_key(path)}", hint, code="unknown_key", warning=True, at_key=True)


def refused_keys(data: Mapping[Any, Any]) -> list[tuple[tuple[str, ...], ConfigKey]]:
    """The keys that `gusset serve` refuses, with their paths, in a configuration of any shape."""
    table = keys_by_path()
    refused = [
        (path, table[".".join(path)]) for path, is_set in _REFUSED_WHEN.items() if is_set(_at(data, path))
    ]
    if data.get("docker_server"):
        if data.get(_IMAGE_DATA.path):
            refused.append(((_IMAGE_DATA.path,), _IMAGE_DATA))
    elif _at(data, path := tuple(_GRPC.path.split("."))) == "grpc":
        refused.append((path, _GRPC))
    return refused


def _at(data: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        data = data.get(name) if isinstance(data, Mapping) else None
    return data


_IMAGE_DATA = ConfigKey(
    "external_data", "refused", "a custom image has no data folder", "use `weights` with the same URL"
)
_GRPC = ConfigKey(
    "runtime.transport.kind",
    "refused",
    "a Python model is called by http and websockets",
    "only a custom image (docker_server) can serve gRPC",
)
_REFUSED_WHEN: dict[tuple[str, ...], Callable[[Any], bool]] = {
    ("bdn", "mounts"): bool,
    ("trt_llm",): lambda value: value is not None,
    ("training_checkpoints",): lambda value: _has_checkpoints(value),
    ("bis_llm",): lambda value: value is not None,
}


def _has_checkpoints(value: Any) -> bool:
    return any(_at(value, (name,)) for name in ("artifact_references", "loops_checkpoint_ids"))


_FOR_BUILDS = ("base_image", "build_commands")
"""Keys of a Python model that `gusset build` uses, and `gusset serve` does not."""

_NOT_MISSED = frozenset(
    {
        *_FOR_BUILDS,
        "resources",  # they choose a machine of the hosted platform
        "description",
        "examples_filename",
        "input_type",
        "model_framework",
        "model_type",
        "use_local_src",
        "cache_internal",
        "spec_version",
    }
)
"""Ignored keys without an effect on a served model that a user could miss, or with a warning of their own."""


def ignored_keys(data: Mapping[Any, Any]) -> list[str]:
    """The keys at the top level and in `runtime` whose effect a user may miss, in the file's order."""
    runtime = data.get("runtime")
    values = {name: value for name, value in data.items() if isinstance(name, str)}
    if isinstance(runtime, dict):
        values |= {f"runtime.{name}": value for name, value in runtime.items() if isinstance(name, str)}
    statuses = {"ignored"} if data.get("docker_server") else {"ignored", "images"}
    table = keys_by_path()
    found = [name for name, value in values.items() if value and name in table and name not in _NOT_MISSED]
    return [name for name in found if table[name].status in statuses]


def keys_for_build(data: Mapping[Any, Any]) -> list[str]:
    """The keys of a Python model that have an effect only in the image that `gusset build` makes."""
    return [] if data.get("docker_server") else [name for name in _FOR_BUILDS if data.get(name)]
