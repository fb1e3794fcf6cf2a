"""Settings: defaults < modelmora.yaml (`config_file.py`) < environment < command line.

Every key is written the same way everywhere: `max_memory_mb` in modelmora.yaml,
`MODELMORA_MAX_MEMORY_MB` in the environment, `--max-memory-mb` on the command line.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin

import msgspec
import psutil

from controlplane.cgroups import memory_groups
from controlplane.config_file import find_config_file, read_settings_section
from controlplane.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

ENV_PREFIX = "MODELMORA_"
_MB = 1024 * 1024


def machine_memory_mb() -> int:
    """Memory this process may use, in MB: the machine's, or a control group's limit if lower."""
    limits = (group.limit for group in memory_groups())
    return min([psutil.virtual_memory().total, *limits]) // _MB


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator can choose. Times are seconds, memory is MB.

    Attributes:
        max_memory_mb: budget for loaded models; 0 means 85 % of the machine's or cgroup's memory.
        memory_reserve_mb: memory of the machine or cgroup that stays free: when less is, whoever
            uses it, idle models leave. 0 means 5 %, at most 1,024.
        drain_timeout: how long running requests may take to end when the service stops.
        triton_hang_timeout: an embedded Triton that gives no sign of life for so long is killed.
        idle_ttl: unload a model after so many idle seconds; None means never.
        preload: model ids to load at start, in order.
        allow_pickle: read pickled weights (they can run code) where a source has no safetensors.
        allow_remote_code: let the converter run code of models' repositories, for versions that
            were registered with trust_remote_code.
        allow_http: sources over http://, which anybody on the way can change.
        allow_private_sources: sources at addresses of private networks and of this machine.
        allow_url_inputs: fetch images and recordings that an inference's input names by address, by
            the rules of sources (allow_http, allow_private_sources).
        max_source_mb: largest source of a version; also the largest archive.
        ready_model_dirs: folders whose ready-made Triton models may run, whoever owns them.
        allow_remote_ready_models: run ready-made Triton models from archives and S3.
        allow_unauthenticated_network: listen beyond loopback although nobody has to log in.
        allow_shared_memory: let clients of /v2 and gRPC register system shared memory with Triton,
            which reads and writes it with its own rights: only where all clients are trusted.
        triton_grpc_url: host:port of an external Triton; None means the embedded server.
        native_backends: Triton's own backends that may run exported graphs where it has them:
            onnxruntime, openvino, the preferred one first.
        triton_control_header: `NAME=VALUE`, the header that opens the restricted APIs of an
            external Triton (its --grpc-restricted-protocol); a secret.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int = 8001
    data_dir: Path = Path(".modelmora")
    model_repository: Path = Path("model_repository")
    max_memory_mb: int = 0
    memory_reserve_mb: int = 0
    max_models: int = 10
    load_timeout: float = 300.0
    request_timeout: float = 60.0
    install_timeout: float = 3600.0
    drain_timeout: float = 30.0
    triton_hang_timeout: float = 20.0
    idle_ttl: float | None = None
    preload: tuple[str, ...] = ()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "console", "auto"] = "auto"
    allow_pickle: bool = False
    allow_remote_code: bool = False
    allow_http: bool = False
    allow_private_sources: bool = False
    allow_url_inputs: bool = False
    max_source_mb: int = 100_000
    ready_model_dirs: tuple[str, ...] = ()
    allow_remote_ready_models: bool = False
    allow_unauthenticated_network: bool = False
    max_request_bytes: int = 256 * _MB
    allow_shared_memory: bool = False
    triton_grpc_url: str | None = None
    triton_http_url: str | None = None
    triton_metrics_url: str | None = None
    triton_control_header: str | None = None
    native_backends: tuple[str, ...] = ()

    @property
    def memory_budget_mb(self) -> int:
        """The budget in force, in MB."""
        return self.max_memory_mb or int(machine_memory_mb() * 0.85)

    @property
    def memory_reserve(self) -> int:
        """The reserve in force, in MB."""
        return self.memory_reserve_mb or min(machine_memory_mb() // 20, 1024)

    @property
    def database(self) -> Path:
        return self.data_dir / "modelmora.db"

    def public(self) -> dict[str, Any]:
        """All settings as JSON-ready values, secrets masked."""
        values = {name: _plain(getattr(self, name)) for name in self.__struct_fields__}
        return {k: "********" if k in _SECRETS and v else v for k, v in values.items()}

    @property
    def control_header(self) -> tuple[str, str] | None:
        """Name and value of `triton_control_header`."""
        name, _, value = (self.triton_control_header or "").partition("=")
        return (name.strip(), value.strip()) if value else None


_SECRETS = frozenset({"triton_control_header"})


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def load_settings(
    *,
    config_file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Merge and validate all sources.

    Args:
        config_file: the YAML file; None takes the one MODELMORA_CONFIG names, else
            ./modelmora.yaml where it exists.
        environ: the environment; None takes the process's.
        overrides: values of the command line; None values are not given.

    Raises:
        SettingsError: naming the key, as written where it was set, and what is allowed.
    """
    settings, _ = load_settings_with_sources(
        config_file=config_file, environ=environ, overrides=overrides
    )
    return settings


def load_settings_with_sources(
    *,
    config_file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Settings, dict[str, str]]:
    """As `load_settings`, with where each value comes from.

    Returns:
        The settings, and for every key its source: "default", the file's path, the name of the
        environment variable or the command line's option.

    Raises:
        SettingsError: as `load_settings`.
    """
    environ = os.environ if environ is None else environ
    path = find_config_file(config_file, environ)
    merged: dict[str, _Given] = {}
    for key, value in (read_settings_section(path, environ) if path else {}).items():
        merged[key] = _Given(key, value, str(path))
    for name, text in environ.items():
        if name.startswith(ENV_PREFIX) and name not in _OTHER_ENV:
            merged[name.removeprefix(ENV_PREFIX).lower()] = _Given(
                name, _from_text(name, text), name
            )
    for key, value in (overrides or {}).items():
        if value is not None:
            option = "--" + key.replace("_", "-")
            merged[key] = _Given(option, value, option)
    settings = _build(merged)
    names = settings.__struct_fields__
    return settings, {name: merged[name].source if name in merged else "default" for name in names}


class _Given(NamedTuple):
    """A value somebody set: the key as written there, the value, where."""

    written: str
    value: Any
    source: str


# Settings with a list value are written with commas in the environment.
_LIST_KEYS = {"preload", "ready_model_dirs", "native_backends"}
# Read by our own tools, not settings of the service.
_OTHER_ENV = {"MODELMORA_URL", "MODELMORA_CONFIG"}


def _from_text(name: str, text: str) -> Any:
    key = name.removeprefix(ENV_PREFIX).lower()
    if key in _LIST_KEYS:
        return [part.strip() for part in text.split(",") if part.strip()]
    if text == "" and _default(key) is None:
        return None
    return text


def _default(key: str) -> Any:
    for field in msgspec.structs.fields(Settings):
        if field.name == key:
            return field.default
    return msgspec.NODEFAULT


def _build(merged: Mapping[str, _Given]) -> Settings:
    known = {field.name: field for field in msgspec.structs.fields(Settings)}
    values: dict[str, Any] = {}
    for key, (written, given, _) in merged.items():
        if key not in known:
            raise SettingsError(written, _unknown(key, given, known))
        value = given.upper() if key == "log_level" and isinstance(given, str) else given
        try:
            values[key] = msgspec.convert(
                value, known[key].type, strict=not isinstance(value, str), dec_hook=_decode_path
            )
        except msgspec.ValidationError as error:
            meaning = _meaning(known[key].type)
            raise SettingsError(written, f"must be {meaning} (got {given!r})") from error
        _check_rule(key, written, values[key])
    settings = Settings(**values)
    _check_together(settings, {name: merged[name].written for name in merged})
    return settings


def _meaning(wanted: Any) -> str:
    """A setting's type in words."""
    options = [option for option in get_args(wanted) if option is not type(None)]
    if get_origin(wanted) is Literal:
        return "one of " + ", ".join(options)
    if get_origin(wanted) is tuple:
        return "a list"
    if len(options) == 1 and get_origin(wanted) is not None:  # T | None
        return _meaning(options[0])
    words = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    return words.get(wanted, "text")


def _unknown(key: str, value: Any, known: Collection[str]) -> str:
    if isinstance(value, dict):
        return (
            "is a section, and settings are flat: write "
            "`port: 8000` at the top level, not `server: {port: 8000}`"
        )
    close = difflib.get_close_matches(key.lower(), known, n=2) or sorted(
        name for name in known if name.split("_")[0] in key.split("_")
    )
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    return f"is not a setting{hint} All of them: modelmora config show"


def _decode_path(target: type, value: Any) -> Any:
    # an empty one would be the directory in which the server happens to be started
    if target is Path and isinstance(value, str | Path) and str(value).strip():
        return Path(value).expanduser()
    raise msgspec.ValidationError(f"Expected {target.__name__}, got {type(value).__name__}")


NATIVE_BACKENDS = ("onnxruntime", "openvino")

_RANGES: dict[str, tuple[float, float, str]] = {
    "port": (0, 65535, "a port from 1 to 65535, or 0 for any free one"),
    "grpc_port": (0, 65535, "a port from 1 to 65535, or 0 for any free one"),
    "max_memory_mb": (0, 10**9, "megabytes, or 0 for 85 % of this machine's memory"),
    "memory_reserve_mb": (0, 10**9, "megabytes, or 0 for 5 % of this machine's memory"),
    "drain_timeout": (0, 86_400, "seconds, at least 0"),
    "triton_hang_timeout": (1, 86_400, "seconds, at least 1"),
    "max_models": (1, 10_000, "at least 1"),
    "load_timeout": (0.001, 86_400, "seconds above 0"),
    "request_timeout": (0.001, 600, "seconds above 0, at most 600"),
    "install_timeout": (1, 7 * 86_400, "seconds, at least 1"),
    "idle_ttl": (0.001, 10**9, "seconds above 0, or leave it out for never"),
    "max_source_mb": (1, 10**9, "megabytes, at least 1"),
    "max_request_bytes": (1024, 2**40, "bytes, at least 1024"),
}


def _check_rule(key: str, written: str, value: Any) -> None:
    if key == "native_backends" and not set(value) <= set(NATIVE_BACKENDS):
        raise SettingsError(written, f"must be of {', '.join(NATIVE_BACKENDS)}")
    if value is None or key not in _RANGES:
        return
    low, high, meaning = _RANGES[key]
    if not low <= value <= high:
        raise SettingsError(written, f"must be {meaning} (got {value})")


def _check_together(settings: Settings, written: Mapping[str, str]) -> None:
    def wrong(key: str, message: str) -> SettingsError:
        return SettingsError(written.get(key, key), message)

    if settings.port and settings.port == settings.grpc_port:
        raise wrong("grpc_port", f"must differ from port (both are {settings.port})")
    grpc_url = settings.triton_grpc_url
    if grpc_url is not None and not _HOST_PORT.fullmatch(grpc_url):
        raise wrong("triton_grpc_url", f"must be host:port, no scheme (got {grpc_url!r})")
    for key in ("triton_http_url", "triton_metrics_url"):
        url = getattr(settings, key)
        if url is not None and grpc_url is None:
            raise wrong(key, "is for an external Triton: set triton_grpc_url as well")
        if url is not None and not url.startswith(("http://", "https://")):
            raise wrong(key, f"must begin with http:// or https:// (got {url!r})")
    if settings.triton_control_header and settings.control_header is None:
        raise wrong("triton_control_header", "must be NAME=VALUE")
    if not settings.allow_unauthenticated_network and not is_loopback(settings.host):
        raise wrong(
            "host",
            f"{settings.host} is reachable from other machines and ModelMora has no login yet. "
            "Use 127.0.0.1, or set MODELMORA_ALLOW_UNAUTHENTICATED_NETWORK=true "
            "where the network itself is protected.",
        )


_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:]+\]|[^\s:/]+):\d{1,5}")


def is_loopback(host: str) -> bool:
    """True for localhost and loopback addresses."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
