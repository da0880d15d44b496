"""Configurations that Truss's own loader was seen to accept or refuse, and gusset's few differences."""

from __future__ import annotations

DOCKER = "server_port: 8000, predict_endpoint: /p, readiness_endpoint: /r, liveness_endpoint: /l"
V1 = "checkpoint_repository: {source: HF, repo: a/b}"
SIX = "aws_oidc_role_arn: a, aws_oidc_region: b"

ACCEPTED = [
    # from file to config
    "", "# only a comment", "---", "null", "false", "0", "[]", "{}",
    "a: &x {cpu: '2'}\nresources: *x", "a: &x {cpu: '2'}\nresources: {<<: *x, memory: 1Gi}",
    "a: &x {cpu: '2'}\nb: &y {memory: 1Gi}\nresources: {<<: [*x, *y]}",
    "a: &x {cpu: '2'}\nresources:\n  <<: *x\n  cpu: '3'", "base: &b {x: 1}\nunknown: *b",
    # unknown keys
    "Model_Name: x", "unknown: null", "resources: {foo: 1}", "runtime: {transport: {kind: http, foo: 1}}",
    "to_dict: 1", "model_config: 2", "self: 3", "model_metadata: {a: {1: 2}}",
    # conversions
    "runtime: {predict_concurrency: '4'}", "runtime: {predict_concurrency: 4.0}",
    "runtime: {predict_concurrency: ' +5 '}", "runtime: {predict_concurrency: '1_000'}",
    "runtime: {predict_concurrency: true}", "runtime: {predict_concurrency: -3}", "runtime: {predict_concurrency: 010}",
    "live_reload: 'Y'", "live_reload: 1.0", "live_reload: 'off'", "model_name: !!binary aGk=",
    "requirements: ['', '']", "requirements: !!set {a, b}",
    # null
    "model_name:", "description:", "external_data:", "base_image:", "requirements_file:", "docker_server:",
    "trt_llm:", "training_checkpoints:", "bis_llm:", "cache_internal:", "hf_cache:",
    "resources: {}", "build: {}", "runtime: {}", "weights: []", "secrets: {}",
    # top level
    "model_name: ''", "spec_version: any", "model_framework: x", "data_dir: ''", "data_dir: a/../b", "model_module_dir: .",
    "model_class_filename: ../model.py", "bundled_packages_dir: ..packages",
    "external_package_dirs: [a, /b, ../c]", "model_metadata: {tags: [x], when: 2024-01-01}",
    # requirements
    "requirements: []\nrequirements_file: r.txt", "requirements: [x]\nrequirements_file: ''", "requirements_file: no.txt",
    # environment_variables
    "environment_variables: {A: null, B: 1.0, C: [1], D: {a: b}, E: 2024-01-01, F: true, 'a b': y}",
    "environment_variables: {PORT: 1}", "environment_variables: {N: !!binary /w==}",
    # secrets
    "secrets: {a: null, b: text, c: ''}", "secrets: {a: !!binary aGk=}",
    # python_version
    "python_version: py39", "python_version: py314",
    # resources
    *[f"resources: {{cpu: '{cpu}'}}" for cpu in ("0", "1e3", "500m", " 1 ")],
    *[f"resources: {{memory: '{memory}'}}" for memory in ("1024", "1e3", "2Ei", "1k")],
    *[f"resources: {{accelerator: '{name}'}}" for name in (" L4:2 ", "L4", "L4:02", "L4:2:3", "GB300:8", "L4:x:y")],
    "resources: {accelerator: {accelerator: L4, count: 0}}", "resources: {accelerator: {}}",
    "resources: {accelerator: {accelerator: null}}", "resources: {use_gpu: banana}", "resources: {use_gpu: [1]}",
    "resources: {instance_type: ''}", "resources: {instance_type: x}", "resources: {node_count: 3}",
    "resources: {node_count: null}", "resources: {fabric: {use_rdma: true, preferences: []}}",
    "resources: {fabric: {}}", "resources: {fabric: {preferences: null}}",
    # runtime
    "runtime: {streaming_read_timeout: 0}", "runtime: {transport: {}}", "runtime: {transport: {kind: grpc}}",
    "runtime: {transport: {kind: http, ping_interval_seconds: x}}",
    "runtime: {transport: {kind: websocket, ping_interval_seconds: '1.5', ping_timeout_seconds: null}}",
    "runtime: {is_websocket_endpoint: 'no'}", "runtime: {transport: {kind: grpc}, is_websocket_endpoint: true}",
    "runtime: {transport: {kind: websocket, ping_timeout_seconds: 3}, is_websocket_endpoint: false}",
    "runtime: {transport: null, is_websocket_endpoint: true}", "runtime: {is_websocket_endpoint: null}",
    "runtime: {transport: {kind: http}, is_websocket_endpoint: null}",
    "runtime: {transport: {kind: websocket, ping_timeout_seconds: 3}, is_websocket_endpoint: true}",
    "runtime: {transport: {kind: http, ping_timeout_seconds: 3}, is_websocket_endpoint: true}",
    "runtime: {transport: {}, is_websocket_endpoint: true}",
    "runtime: {num_workers: 1}", "runtime: {num_workers: 1.0}", "runtime: {num_workers: true}",
    "runtime: {health_checks: {restart_threshold_seconds: -1}}", "runtime: {oidc: {enabled: null}}",
    "runtime: {egress_restrictions: {}}", "runtime: {egress_restrictions: null}",
    "runtime: {egress_restrictions: {ip_allow_list: [1.2.3.4, 1.2.3.4/8, 10.0.0.1/255.0.0.0, 1.2.3.4]}}",
    "runtime: {egress_restrictions: {fqdn_allow_list: [a, '*.b.c', 1.2.3.4, 'x*y']}}",
    "runtime:\n  egress_restrictions:\n    fqdn_allow_list:\n      - |\n        huggingface.co\n",
    *[f"runtime: {{truss_server_version_override: '{v}'}}" for v in ("v0.9.0", "1", " 1.2 ", "1.0rc1.dev2", "1!2.post3")],
    # base_image, docker_server
    "base_image: {}", "base_image: {image: '', python_executable_path: /usr/bin/python}",
    *[
        f"base_image: {{docker_auth: {{{auth}}}}}"
        for auth in (
            "auth_method: gcp_service_account_json, secret_name: s", "auth_method: AWS_IAM", f"auth_method: AWS_IAM, {SIX}",
            "auth_method: REGISTRY_SECRET", f"auth_method: AWS_OIDC, {SIX}", f"auth_method: AWS_OIDC, {SIX}, secret_name: ''",
            "auth_method: GCP_OIDC, gcp_oidc_service_account: a, gcp_oidc_workload_id_provider: b",
            "auth_method: AWS_ASSUME_ROLE, aws_assume_role_arn: a, aws_assume_role_region: b", "auth_method: AWS_IAM, registry:",
        )
    ],
    f"docker_server: {{{DOCKER}, start_command: ''}}", f"docker_server: {{{DOCKER}, no_build: true}}",
    f"docker_server: {{{DOCKER}, start_command: x, run_as_user_id: true}}",
    f"docker_server: {{{DOCKER}, start_command: x, run_as_user_id: -1}}",
    f"docker_server: {{{DOCKER}, start_command: 'date +%Y'}}",
    "docker_server: {server_port: -1, predict_endpoint: '', readiness_endpoint: x, liveness_endpoint: y, start_command: z}",
    # build
    "build: {model_server: TRT_LLM, arguments: {a: [1]}}", "build: {no_cache: 'true'}", "build: {no_cache: 1}",
    "build: {no_cache: false}", "build: {secret_to_path_mapping: {a: x, b: x, DOCKER_REGISTRY_https://x y: ''}}",
    # weights and caches
    *[
        f"weights: [{{source: '{source}', mount_location: /m}}]"
        for source in ("hf://a", "hf://@x", "s3://a b", "https://u@h/x", "azure://x", "cw://a", "r2://b", "gs://c")
    ],
    "weights: [{source: hf://a, mount_location: /m}, {source: hf://a, mount_location: /m/}]",
    "weights: [{source: hf://a, mount_location: /, auth: {auth_method: custom_secret, auth_secret_name: x}}]",
    f"weights: [{{source: hf://a, mount_location: /, auth_secret_name: x, auth: {{auth_method: AWS_OIDC, {SIX}}}}}]",
    "model_cache: [{repo_id: a, use_volume: false}]", "model_cache: [{repo_id: a, use_volume: false, revision: ''}]",
    "model_cache: [{repo_id: a, use_volume: true, revision: main, volume_folder: ../x}]",
    "model_cache: [{repo_id: a, use_volume: true, kind: s3, volume_folder: x}]",
    "cache_internal: [{repo_id: a}]", "cache_internal: [{repo_id: a}]\nweights: [{source: hf://a, mount_location: /m}]",
    "hf_cache: [{repo_id: a, use_volume: false}]", "hf_cache: false", "hf_cache: {}", "hf_cache: ''", "hf_cache: 0", "hf_cache: banana\nmodel_cache: []",
    # external_data
    "external_data: []", "external_data: [{url: u, local_data_path: ../p, backend: x, name: null}]",
    # bdn
    "bdn: {mounts: [{source: 'bdn:n/v', path: /m/}], access: [{namespace: n, grants: [pull]}], hotload: {enabled: true}}",
    "bdn: {mounts: [{source: 'bdn:n/v:t', path: //, include: ['a/*/'], exclude: ['*.bin']}]}",
    "bdn: {mounts: [{source: 'bdn:n/v@b3:0123456789ab', path: /m}]}",
    # training_checkpoints, bis_llm
    "training_checkpoints: {}", "training_checkpoints: {artifact_references: [{training_job_id: ''}]}",
    "training_checkpoints: {checkpoints: x, loops_checkpoint_ids: [a]}",
    "bis_llm: {}", "bis_llm: {config: {a: 1}, additional_autoscaling_config: {metrics: [{name: x, target: '1'}]}}",
    # trt_llm
    f"trt_llm: {{build: {{{V1}}}}}", f"trt_llm: {{build: {{{V1}, foo: 1}}, bar: 2}}",
    f"trt_llm: {{build: {{{V1}, tensor_parallel_count: 2}}}}\nresources: {{accelerator: 'H100:2'}}",
    f"trt_llm: {{build: {{{V1}, base_model: encoder}}}}\nresources: {{accelerator: L4}}",
    f"trt_llm: {{build: {{{V1}, base_model: encoder_bert, quantization_type: fp8}}}}\nresources: {{accelerator: T4}}",
    f"trt_llm: {{inference_stack: v2, runtime: {{gated_features: {{a: 1}}}}, build: {{{V1}}}}}",
    "trt_llm: {inference_stack: v2, runtime: {}, build: {skip_build_result: true}}",
    f"trt_llm: {{inference_stack: v2, runtime: {{}}, build: {{{V1}, max_batch_size: 256}}}}",
    f"trt_llm: {{build: {{{V1}, speculator: {{speculative_decoding_mode: LOOKAHEAD_DECODING, num_draft_tokens: 11, "
    "lookahead_windows_size: 3, lookahead_ngram_size: 3, lookahead_verification_set_size: 3}}}",
    f"trt_llm: {{build: {{{V1}, lora_adapters: {{a.b: {{source: GCS, repo: x}}}}}}}}",
    f"trt_llm: {{build: {{{V1}}}, version_overrides: {{briton_version: 1.x, v2_llm_version: x}}}}",
    # rules across sections that are not there
    f"docker_server: {{{DOCKER}, start_command: x}}\nlive_reload: true", "build: {model_server: TRT_LLM}",
]  # fmt: skip

REFUSED = [
    # from file to config
    "[1]", "text", "a: 1\n---\nb: 2", "a: [", "\ta: 1", "a: !foo x", "a: !!python/object:x.Y {}", "? [1]\n: x", "*nope",
    "<<: 3", "build: {no_cache: true}", "build: {no_cache: yes}",
    # unknown keys
    "1: x", "yes: x", "~: x", "model_metadata: {1: x}", "environment_variables: {1: x}", "secrets: {1: null}",
    "build: {arguments: {1: x}}", "build: {secret_to_path_mapping: {1: x}}", "bis_llm: {config: {1: x}}",
    # conversions
    "model_name: 123", "spec_version: 2.0", "model_name: true", "model_name: 2024-01-01", "model_name: []",
    "runtime: {predict_concurrency: 4.5}", "runtime: {predict_concurrency: 1e3}", "runtime: {predict_concurrency: null}",
    "live_reload: 2", "live_reload: ' true'", "live_reload: null", "live_reload: x",
    "requirements: x", "requirements: {a: b}", "requirements: [{a: b}]", "requirements: [2.0]",
    # null
    *[
        f"{key}:"
        for key in (
            "requirements", "resources", "build", "weights", "model_metadata", "environment_variables", "runtime",
            "data_dir", "examples_filename", "python_version", "system_packages", "build_commands", "model_cache", "bdn",
            "external_package_dirs", "input_type", "model_class_name", "model_module_dir", "live_reload", "spec_version",
        )
    ],
    "environment_variables: [a]", "runtime: []", "resources: []", "secrets: [a]",
    # requirements
    "requirements: ['']\nrequirements_file: r.txt", "requirements: [x]\nrequirements_file: r.txt",
    # secrets
    "secrets: {a: 5}", "secrets: {a: true}", "secrets: {a: [x]}", "secrets: {a: {}}", "secrets: {a: 2024-01-01}",
    # python_version
    *[f"python_version: {v}" for v in ("3.11", "'3.11'", "python3.11", "PY311", "py38", "py315", "' py311'")],
    # resources
    *[f"resources: {{cpu: {cpu}}}" for cpu in ("1", "''", "1k", "'500 m'", "null")],
    *[f"resources: {{memory: {m}}}" for m in ("1", "K", "1GB", "1GiB", "1gi", "1m", "'1 Gi'", "1e3Gi", "-1Gi", "''")],
    *[f"resources: {{accelerator: '{a}'}}" for a in ("L4:0", "L4:", "L4:+2", "L4: 2", "", ":2", "l4", "L5")],
    "resources: {accelerator: [L4]}", "resources: {accelerator: 4}", "resources: {accelerator: true}",
    "resources: {accelerator: {accelerator: L4, count: -1}}", "resources: {node_count: 0}", "resources: {node_count: '2'}",
    "resources: {node_count: 2.0}", "resources: {node_count: true}", "resources: {fabric: {preferences: x}}",
    # runtime
    "runtime: {transport: null}", "runtime: {transport: {kind: HTTP}}", "runtime: {transport: {foo: 1}}",
    "runtime: {transport: {kind: websocket, ping_interval_seconds: x}}", "runtime: {transport: x}",
    "runtime: {is_websocket_endpoint: banana}", "runtime: {transport: null, is_websocket_endpoint: false}",
    "runtime: {num_workers: 0}", "runtime: {num_workers: 2}", "runtime: {num_workers: '1'}", "runtime: {num_workers: null}",
    "runtime: {health_checks: null}", "runtime: {oidc: null}", "runtime: {remote_ssh: null}",
    *[
        f"runtime: {{egress_restrictions: {{ip_allow_list: ['{ip}']}}}}"
        for ip in ("::1", "1.2.3.4-5", "01.2.3.4", " 1.2.3.4", "1.2.3.4/33", "")
    ],
    *[
        f"runtime: {{egress_restrictions: {{fqdn_allow_list: ['{name}']}}}}"
        for name in ("http://a", "a:1", "a_b", "a.", "a..b", "-a", "a-", "é.com", "", "a" * 64)
    ],
    *[f"runtime: {{truss_server_version_override: {v}}}" for v in ("''", "latest", "'>=1'", "1.0")],
    # base_image, docker_server
    "base_image: {image: null}", "base_image: {python_executable_path: python}", "base_image: {docker_auth: {}}",
    *[
        f"base_image: {{docker_auth: {{{auth}}}}}"
        for auth in (
            "auth_method: GCP_SERVICE_ACCOUNT_JSON", f"auth_method: GCP_SERVICE_ACCOUNT_JSON, secret_name: s, {SIX}",
            "auth_method: AWS_OIDC", f"auth_method: AWS_OIDC, {SIX}, secret_name: x", "auth_method: ' AWS_IAM'",
            f"auth_method: AWS_OIDC, {SIX}, gcp_oidc_service_account: x", "auth_method: CUSTOM_SECRET",
            "auth_method: GCP_OIDC, gcp_oidc_service_account: a", "auth_method: AWS_ASSUME_ROLE, aws_assume_role_arn: a",
        )
    ],
    f"docker_server: {{{DOCKER}}}", "docker_server: {}", f"docker_server: {{{DOCKER}, start_command: [x]}}",
    "docker_server: {server_port: 8000, start_command: x}", f"docker_server: {{{DOCKER}, no_build: false}}",
    *[f"docker_server: {{{DOCKER}, start_command: x, run_as_user_id: {u}}}" for u in ("0", "60000", "false", "'0'", "x")],
    # build
    "build: {model_server: x}", "build: {no_cache: null}", "build: {arguments: null}",
    *[f"build: {{secret_to_path_mapping: {{'{name}': x}}}}" for name in ("", ".", "..", "a b", "a/b", "docker_registry_/")],
    "build: {secret_to_path_mapping: {a: null}}",
    # weights and caches
    *[
        f"weights: [{{source: '{source}', mount_location: /m}}]"
        for source in ("http://a", "gcs://a", "az://a", "file://a", "a/b", "hf:///a", "hf://", "HF://a", "s3://a@b")
    ],
    "weights: [{source: hf://a}]", "weights: [{mount_location: /m}]", "weights: [{source: hf://a, mount_location: m}]",
    "weights: [{source: hf://a, mount_location: /m}, {source: hf://b, mount_location: /m}]",
    "weights: [{source: hf://a, mount_location: /m, auth: {auth_method: CUSTOM_SECRET}}]",
    "weights: [{source: hf://a, mount_location: /m, auth: {auth_method: AWS_IAM}}]",
    "weights: [{source: hf://a, mount_location: /m, auth_secret_name: x, "
    "auth: {auth_method: CUSTOM_SECRET, auth_secret_name: x}}]",
    "weights: [x]", "weights: {}",
    *[
        f"model_cache: [{{{repo}}}]"
        for repo in (
            "repo_id: a", "repo_id: '', use_volume: false", "repo_id: a, use_volume: false, revision: m",
            "repo_id: a, use_volume: false, revision: null", "repo_id: a, use_volume: false, volume_folder: ''",
            "repo_id: a, use_volume: true, volume_folder: x", "repo_id: a, use_volume: true, revision: main",
            "repo_id: a, use_volume: 'false'", "repo_id: a, use_volume: false, kind: HF", "use_volume: false",
            "repo_id: a, use_volume: true, kind: gcs",
        )
    ],
    "model_cache: [x]", "model_cache: [{repo_id: a, use_volume: true, revision: main, volume_folder: 5}]",
    "model_cache: [{repo_id: a, use_volume: false}]\nweights: [{source: hf://a, mount_location: /m}]",
    "hf_cache: [{repo_id: a}]", "hf_cache: [{repo_id: a, use_volume: false}]\nweights: [{source: hf://a, mount_location: /m}]",
    # external_data
    "external_data: [{url: ''}]", "external_data: [{url: u, local_data_path: ''}]", "external_data: {}",
    # bdn
    *[
        f"bdn: {{mounts: [{{source: '{source}', path: '{path}'}}]}}"
        for source, path in (
            ("n/v", "/m"), ("bdn:n", "/m"), ("bdn:n/v:t@b3:0123456789ab", "/m"), ("bdn:n/v@b3:01", "/m"), ("bdn:n/v", "m"),
            ("bdn:n/v", "/"), ("bdn:n/v", "/a/../b"), ("bdn:n/v:..", "/m"), ("bdn:n/v/w", "/m"),
        )
    ],
    "bdn: {mounts: [{source: 'bdn:n/v', path: /m}, {source: 'bdn:n/v', path: /m/}]}",
    *[f"bdn: {{mounts: [{{source: 'bdn:n/v', path: /m, include: ['{g}']}}]}}" for g in ("/a", "./a", "a/../b", " a", "a//b", "a\\b", "")],
    "bdn: {access: [{namespace: n, grants: []}]}", "bdn: {access: [{namespace: n, grants: [pull, pull]}]}",
    "bdn: {access: [{namespace: n, grants: [pull]}, {namespace: n, grants: [push]}]}", "bdn: {access: [{namespace: a/b, grants: [pull]}]}",
    # training_checkpoints, bis_llm
    "training_checkpoints: {artifact_references: [{training_job_id: x}], loops_checkpoint_ids: [a]}",
    "training_checkpoints: {artifact_references: [{}]}", "bis_llm: {additional_autoscaling_config: {}}", "bis_llm: {version: null}",
    # trt_llm
    "trt_llm: {}", "trt_llm: {build: {}}", "trt_llm: {inference_stack: v3, build: {}}", f"trt_llm: {{inference_stack: null, build: {{{V1}}}}}",
    *[
        f"trt_llm: {{build: {{{V1}, {more}}}}}"
        for more in (
            "base_model: llama", "max_seq_len: '2'", "max_seq_len: 0", "max_batch_size: 2049", "max_num_tokens: 64",
            "max_beam_width: 2", "tensor_parallel_count: 0", "num_builder_gpus: 0", "quantization_type: int8",
            "quantization_config: {calib_size: 65}", "lora_adapters: {'a b': {source: GCS, repo: x}}",
            "speculator: {speculative_decoding_mode: DRAFT_TOKENS_EXTERNAL}", "moe_expert_parallel_option: 0",
            "speculator: {speculative_decoding_mode: LOOKAHEAD_DECODING}",
            "speculator: {speculative_decoding_mode: LOOKAHEAD_DECODING, num_draft_tokens: 10, lookahead_windows_size: 3, "
            "lookahead_ngram_size: 3, lookahead_verification_set_size: 3}", "lora_cache_max_adapter_size: 1",
            "plugin_configuration: {use_paged_context_fmha: false}", "plugin_configuration: {paged_kv_cache: false}",
            "plugin_configuration: {use_fp8_context_fmha: true, use_paged_context_fmha: false}", "moe_expert_parallel_option: 2",
        )
    ],
    "trt_llm: {build: {checkpoint_repository: {source: HF, repo: 'a b'}}}",
    f"trt_llm: {{build: {{{V1}}}}}\nresources: {{accelerator: 'H100:2'}}", f"trt_llm: {{build: {{{V1}}}}}\nresources: {{accelerator: T4}}",
    f"trt_llm: {{build: {{{V1}, quantization_type: fp8}}}}\nresources: {{accelerator: A100}}",
    f"trt_llm: {{build: {{{V1}, quantization_type: fp4}}}}\nresources: {{accelerator: H100}}",
    f"trt_llm: {{build: {{{V1}}}}}\nmodel_metadata: {{tags: [openai-compatible, force-legacy-api-non-openai-compatible]}}",
    f"trt_llm: {{inference_stack: v2, build: {{{V1}}}}}", f"trt_llm: {{inference_stack: v2, runtime: {{}}, build: {{{V1}, max_batch_size: 2}}}}",
    "trt_llm: {inference_stack: v2, runtime: {}, build: {}}",
    f"trt_llm: {{build: {{{V1}}}, runtime: {{webserver_default_route: /x}}}}",
    f"trt_llm: {{build: {{{V1}, speculator: {{speculative_decoding_mode: LOOKAHEAD_DECODING, runtime: null, "
    "lookahead_windows_size: 3, lookahead_ngram_size: 3, lookahead_verification_set_size: 3}}}",
    f"trt_llm: {{build: {{{V1}}}, version_overrides: {{briton_version: v1}}}}",
    f"trt_llm: {{build: {{{V1}}}, runtime: {{lora_cache_max_adapter_size: 1, lora_cache_optimal_adapter_size: 2}}}}",
    # rules across sections
    f"runtime: {{remote_ssh: {{enabled: true}}}}\ndocker_server: {{{DOCKER}, start_command: x, run_as_user_id: 5}}",
]  # fmt: skip

STRICTER = [
    # gusset's own rules: duplicate keys, names of secrets, credentials, variables that none can have, paths out of the folder
    "a: 1\na: 2", "x: {a: 1, a: 2}", "1: a\ntrue: b", "secrets: {'': null}", "secrets: {a b: null}", "secrets: {a/b: null}",
    "secrets: {..: null}", "secrets: {a-b: null, a_b: null}", "secrets: {t: hf_" + "aB1" * 12 + "}",
    "secrets: {a-b: null}\nbuild: {secret_to_path_mapping: {a_b: x}}", "x: &a [*a]",
    "environment_variables: {'': x}", "environment_variables: {A=B: x}", 'environment_variables: {"A\\0": x}',
    'environment_variables: {A: "x\\0y"}',
    "model_module_dir: ../..", "model_module_dir: /model", "model_module_dir: a/../..", "model_class_filename: ../../model.py",
    "model_class_filename: /model.py", "data_dir: ../x", "data_dir: /data", 'data_dir: "a\\0b"', "bundled_packages_dir: ..",
    # amounts that Truss accepts as texts but that are not numbers, or out of range
    *[f"resources: {{cpu: '{cpu}'}}" for cpu in ("-1", "inf", "nan", "m", "..m", "1e10")],
    *[f"resources: {{memory: '{memory}'}}" for memory in ("Gi", "1.5.5Gi", "inf", "-1", "8Ei", "1e30")],
    "data_dir: !!binary Li4veA==", "environment_variables: {? !!binary QT1C : x}",
]  # fmt: skip

LOOSER = ["secrets:"]
