"""Settings: defaults < modelmora.yaml < environment < command line.

Every key is written the same way everywhere: `max_memory_mb` in modelmora.yaml,
`MODELMORA_MAX_MEMORY_MB` in the environment, `--max-memory-mb` on the command line.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil
import yaml

from controlplane.errors import SettingsError

CONFIG_FILE = "modelmora.yaml"
ENV_PREFIX = "MODELMORA_"
_MB = 1024 * 1024


def machine_memory_mb() -> int:
    """Memory this process may use, in MB: the machine's, or the cgroup's limit where lower."""
    limits = [psutil.virtual_memory().total]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # absent, or the word "max"
            continue
    return min(limits) // _MB


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator can choose. Times are seconds, memory is MB.

    Attributes:
        max_memory_mb: budget for loaded models; 0 means 85 % of the machine's or cgroup's memory.
        idle_ttl: unload a model after so many idle seconds; None means never.
        preload: model ids to load at start, in order.
        allow_pickle: read pickled weights (they can run code) where a source has no safetensors.
        allow_unauthenticated_network: listen beyond loopback although nobody has to log in.
        triton_grpc_url: host:port of an external Triton; None means the embedded server.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int = 8001
    data_dir: Path = Path(".modelmora")
    model_repository: Path = Path("model_repository")
    max_memory_mb: int = 0
    max_models: int = 10
    load_timeout: float = 300.0
    request_timeout: float = 60.0
    install_timeout: float = 3600.0
    idle_ttl: float | None = None
    preload: tuple[str, ...] = ()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "console", "auto"] = "auto"
    allow_pickle: bool = False
    allow_unauthenticated_network: bool = False
    max_request_bytes: int = 256 * _MB
    triton_grpc_url: str | None = None
    triton_http_url: str | None = None
    triton_metrics_url: str | None = None

    @property
    def memory_budget_mb(self) -> int:
        """The budget in force, in MB."""
        return self.max_memory_mb or int(machine_memory_mb() * 0.85)

    @property
    def database(self) -> Path:
        return self.data_dir / "modelmora.db"

    def public(self) -> dict[str, Any]:
        """All settings as JSON-ready values; none of them is a secret."""
        return {name: _plain(getattr(self, name)) for name in self.__struct_fields__}


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
        config_file: the YAML file; None takes ./modelmora.yaml where it exists.
        environ: the environment; None takes the process's.
        overrides: values of the command line; None values are not given.

    Raises:
        SettingsError: naming the key, as written where it was set, and what is allowed.
    """
    merged: dict[str, tuple[str, Any]] = {}  # key -> (name as the user wrote it, value)
    for key, value in _read_file(config_file).items():
        merged[key] = (key, value)
    for name, text in (os.environ if environ is None else environ).items():
        if name.startswith(ENV_PREFIX):
            merged[name.removeprefix(ENV_PREFIX).lower()] = (name, _from_text(name, text))
    for key, value in (overrides or {}).items():
        if value is not None:
            merged[key] = ("--" + key.replace("_", "-"), value)
    return _build(merged)


def _read_file(config_file: Path | None) -> dict[str, Any]:
    path = config_file or Path(CONFIG_FILE)
    if config_file is None and not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(str(path), f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(str(path), f"is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(str(path), "must hold keys and values at its top level")
    return {str(key): value for key, value in content.items()}


# Settings with a list value are written with commas in the environment.
_LIST_KEYS = {"preload"}
# Set by our own tools, not settings of the service.
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


def _build(merged: Mapping[str, tuple[str, Any]]) -> Settings:
    known = {field.name: field for field in msgspec.structs.fields(Settings)}
    values: dict[str, Any] = {}
    for key, (written, value) in merged.items():
        if written in _OTHER_ENV:
            continue
        if key not in known:
            close = ", ".join(sorted(k for k in known if k.split("_")[0] in key.split("_")))
            hint = f"; did you mean {close}?" if close else ""
            raise SettingsError(written, f"is not a setting{hint} See: modelmora config show")
        try:
            values[key] = msgspec.convert(
                value, known[key].type, strict=not isinstance(value, str), dec_hook=_decode_path
            )
        except msgspec.ValidationError as error:
            raise SettingsError(written, f"{error} (got {value!r})") from error
        _check_rule(key, written, values[key])
    settings = Settings(**values)
    _check_together(settings)
    return settings


def _decode_path(target: type, value: Any) -> Any:
    if target is Path and isinstance(value, str | Path):
        return Path(value)
    raise msgspec.ValidationError(f"Expected {target.__name__}, got {type(value).__name__}")


_RANGES: dict[str, tuple[float, float, str]] = {
    "port": (0, 65535, "a port from 1 to 65535, or 0 for any free one"),
    "grpc_port": (0, 65535, "a port from 1 to 65535, or 0 for any free one"),
    "max_memory_mb": (0, 10**9, "megabytes, or 0 for 85 % of this machine's memory"),
    "max_models": (1, 10_000, "at least 1"),
    "load_timeout": (0.001, 86_400, "seconds above 0"),
    "request_timeout": (0.001, 600, "seconds above 0, at most 600"),
    "install_timeout": (1, 7 * 86_400, "seconds, at least 1"),
    "idle_ttl": (0.001, 10**9, "seconds above 0, or leave it out for never"),
    "max_request_bytes": (1024, 2**40, "bytes, at least 1024"),
}


def _check_rule(key: str, written: str, value: Any) -> None:
    if value is None or key not in _RANGES:
        return
    low, high, meaning = _RANGES[key]
    if not low <= value <= high:
        raise SettingsError(written, f"must be {meaning} (got {value})")


def _check_together(settings: Settings) -> None:
    if settings.port and settings.port == settings.grpc_port:
        raise SettingsError("grpc_port", f"must differ from port (both are {settings.port})")
    if not settings.allow_unauthenticated_network and not is_loopback(settings.host):
        raise SettingsError(
            "host",
            f"{settings.host} is reachable from other machines and ModelMora has no login yet. "
            "Use 127.0.0.1, or set MODELMORA_ALLOW_UNAUTHENTICATED_NETWORK=true "
            "where the network itself is protected.",
        )


def is_loopback(host: str) -> bool:
    """True for localhost and loopback addresses."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
