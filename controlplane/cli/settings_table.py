"""Every setting in words: for `serve --help`, the file that `init` writes, and the docs' test.

A table of its own rather than `Settings` itself, because reading that class costs every command
the time of importing YAML and psutil.
"""

from __future__ import annotations

from typing import NamedTuple


class Setting(NamedTuple):
    """`kind` is text, flag (true or false) or list; `example` is shown in the written file."""

    name: str
    metavar: str
    text: str
    example: str
    kind: str = "text"


SETTINGS = (
    Setting("host", "ADDRESS", "Address to listen on; loopback only.", "127.0.0.1"),
    Setting("port", "PORT", "HTTP port: REST, Triton's HTTP, health, metrics, docs.", "8000"),
    Setting("grpc_port", "PORT", "Triton's gRPC port.", "8001"),
    Setting("data_dir", "DIR", "Database, downloads, working files.", ".modelmora"),
    Setting("model_repository", "DIR", "Where converted models lie.", "model_repository"),
    Setting("max_memory_mb", "MB", "Memory for loaded models; 0 takes 85 % of the machine's.", "0"),
    Setting(
        "memory_reserve_mb",
        "MB",
        "Memory of the machine that stays free; 0 takes 5 %, at most 1024.",
        "0",
    ),
    Setting("max_models", "N", "How many models may be loaded at once.", "10"),
    Setting("load_timeout", "SECONDS", "Longest time for loading a model.", "300"),
    Setting("request_timeout", "SECONDS", "Default time limit of an inference.", "60"),
    Setting("install_timeout", "SECONDS", "Longest time for download and conversion.", "3600"),
    Setting("drain_timeout", "SECONDS", "Longest wait for requests when it stops.", "30"),
    Setting(
        "triton_hang_timeout",
        "SECONDS",
        "Restart an embedded Triton without a sign of life for so long.",
        "20",
    ),
    Setting(
        "idle_ttl", "SECONDS", "Unload a model after so long without use. Default: never.", "3600"
    ),
    Setting(
        "preload",
        "MODEL_ID",
        "Load this model at start; may be repeated.",
        "[sentence-transformers/all-MiniLM-L6-v2]",
        "list",
    ),
    Setting("log_level", "LEVEL", "DEBUG, INFO, WARNING or ERROR.", "INFO"),
    Setting("log_format", "FORMAT", "json, console, or auto: console on a terminal.", "auto"),
    Setting(
        "allow_pickle",
        "",
        "Read pickled weights, which can run code, where a source has nothing safer.",
        "false",
        "flag",
    ),
    Setting(
        "allow_remote_code",
        "",
        "Let versions registered with trust_remote_code run their repository's code to convert.",
        "false",
        "flag",
    ),
    Setting(
        "allow_http",
        "",
        "Take sources over http://, which anybody on the way can change.",
        "false",
        "flag",
    ),
    Setting(
        "allow_private_sources",
        "",
        "Take sources from addresses of private networks and of this machine.",
        "false",
        "flag",
    ),
    Setting(
        "allow_url_inputs",
        "",
        "Fetch images and recordings that an input of REST inference names by address.",
        "false",
        "flag",
    ),
    Setting("max_source_mb", "MB", "Largest source of a model version.", "100000"),
    Setting(
        "ready_model_dirs",
        "DIR",
        "Ready-made Triton models below it may run, whoever owns them; may be repeated.",
        "[/srv/models]",
        "list",
    ),
    Setting(
        "allow_remote_ready_models",
        "",
        "Run ready-made Triton models from archives and S3.",
        "false",
        "flag",
    ),
    Setting(
        "allow_unauthenticated_network",
        "",
        "Let --host be reachable from other machines although nobody has to log in.",
        "false",
        "flag",
    ),
    Setting("max_request_bytes", "BYTES", "Largest request body.", "268435456"),
    Setting(
        "allow_shared_memory",
        "",
        "Let inference clients share memory with Triton: only where all are trusted.",
        "false",
        "flag",
    ),
    Setting(
        "triton_grpc_url", "HOST:PORT", "Use this Triton, not the embedded one.", "triton:8001"
    ),
    Setting("triton_http_url", "URL", "HTTP address of that Triton.", "http://triton:8000"),
    Setting("triton_metrics_url", "URL", "Its metrics.", "http://triton:8002/metrics"),
    Setting(
        "triton_control_header",
        "NAME=VALUE",
        "Opens its restricted APIs; a secret, better kept in the environment.",
        "modelmora-control=${TRITON_CONTROL_SECRET}",
    ),
    Setting(
        "native_backends",
        "NAME",
        "Run exported graphs on this backend of that Triton; may be repeated.",
        "[onnxruntime]",
        "list",
    ),
)
