"""Settings: precedence, sources, and errors that name the key as the user wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.config_file import find_config_file
from controlplane.errors import SettingsError
from controlplane.settings import (
    Settings,
    is_loopback,
    load_settings,
    load_settings_with_sources,
    machine_memory_mb,
)


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(
    yaml: str | None = None, environ: dict[str, str] | None = None, **options: Any
) -> Settings:
    if yaml is not None:
        Path("modelmora.yaml").write_text(yaml, encoding="utf-8")
    return load_settings(environ=environ or {}, overrides=options)


def test_defaults() -> None:
    settings = load()
    assert (settings.host, settings.port, settings.grpc_port) == ("127.0.0.1", 8000, 8001)
    assert settings.database == Path(".modelmora/modelmora.db")
    assert settings.memory_budget_mb == int(machine_memory_mb() * 0.85)
    assert load(max_memory_mb=512).memory_budget_mb == 512


def test_later_sources_win_and_are_named() -> None:
    Path("modelmora.yaml").write_text("port: 1001\ngrpc_port: 1002\nmax_models: 3\n")
    environ = {"MODELMORA_GRPC_PORT": "2002", "MODELMORA_MAX_MODELS": "4", "PATH": "/bin"}
    settings, sources = load_settings_with_sources(environ=environ, overrides={"max_models": "5"})
    assert (settings.port, settings.grpc_port, settings.max_models) == (1001, 2002, 5)
    assert sources["port"] == "modelmora.yaml"
    assert sources["grpc_port"] == "MODELMORA_GRPC_PORT"
    assert sources["max_models"] == "--max-models"
    assert sources["host"] == "default"
    assert sources.keys() == settings.public().keys()


def test_option_that_was_not_given_changes_nothing() -> None:
    assert load("port: 1001", port=None).port == 1001


@pytest.mark.parametrize(
    ("environ", "key", "value"),
    [
        ({"MODELMORA_ALLOW_PICKLE": "true"}, "allow_pickle", True),
        ({"MODELMORA_ALLOW_PICKLE": "0"}, "allow_pickle", False),
        ({"MODELMORA_LOG_LEVEL": "debug"}, "log_level", "DEBUG"),
        ({"MODELMORA_IDLE_TTL": "1.5"}, "idle_ttl", 1.5),
        ({"MODELMORA_IDLE_TTL": ""}, "idle_ttl", None),
        ({"MODELMORA_PRELOAD": "a/b, c/d,"}, "preload", ("a/b", "c/d")),
        ({"MODELMORA_PRELOAD": ""}, "preload", ()),
        ({"MODELMORA_DATA_DIR": "~/data"}, "data_dir", Path.home() / "data"),
        ({"MODELMORA_TRITON_GRPC_URL": "[::1]:8001"}, "triton_grpc_url", "[::1]:8001"),
        ({"MODELMORA_URL": "http://elsewhere:1"}, "port", 8000),
    ],
    ids=str,
)
def test_environment(environ: dict[str, str], key: str, value: Any) -> None:
    assert getattr(load(environ=environ), key) == value


def test_file_may_use_variables() -> None:
    text = "data_dir: ${BASE}/data\nport: ${PORT:-9000}\npreload: ['${ORG:-a}/b']\n"
    settings = load(text, {"BASE": "/srv"})
    assert settings.data_dir == Path("/srv/data")
    assert settings.port == 9000
    assert settings.preload == ("a/b",)
    with pytest.raises(SettingsError, match=r"data_dir: uses \$\{BASE\}, which is not set"):
        load(text)


def test_empty_file_is_no_settings() -> None:
    assert load("# nothing\n") == Settings()


WRONG = [
    ("port: eighty", {}, r"^port: must be a whole number \(got 'eighty'\)"),
    ("port: 8000.5", {}, "^port: must be a whole number"),
    ("allow_pickle: 1", {}, "^allow_pickle: must be true or false"),
    ("preload: a/b", {}, "^preload: must be a list"),
    ("log_format: xml", {}, "^log_format: must be one of json, console, auto"),
    ("idle_ttl: soon", {}, "^idle_ttl: must be a number"),
    ("data_dir: 5", {}, "^data_dir: must be a path"),
    ("data_dir: ''", {}, r"^data_dir: must be a path \(got ''\)"),
    (None, {"MODELMORA_MODEL_REPOSITORY": " "}, "^MODELMORA_MODEL_REPOSITORY: must be a path"),
    ("PORT: 1", {}, "^PORT: is not a setting; did you mean port"),
    ("host: 5", {}, "^host: must be text"),
    ("server: {port: 1}", {}, "^server: is a section, and settings are flat"),
    ("max_memory: 5", {}, "^max_memory: is not a setting; did you mean max_memory_mb"),
    ("xyzzy: 5", {}, r"^xyzzy: is not a setting\. All of them: modelmora config show"),
    ("- port", {}, "^modelmora.yaml: must hold keys and values"),
    ("port: [1", {}, "^modelmora.yaml: is not valid YAML: line 1"),
    (None, {"MODELMORA_PORTT": "1"}, "^MODELMORA_PORTT: is not a setting; did you mean port"),
    (None, {"MODELMORA_PORT": "x"}, "^MODELMORA_PORT: must be a whole number"),
    (None, {"MODELMORA_PORT": "70000"}, "^MODELMORA_PORT: must be a port from 1 to 65535"),
    (None, {"MODELMORA_MAX_MODELS": "0"}, "^MODELMORA_MAX_MODELS: must be at least 1"),
    (
        None,
        {"MODELMORA_PORT": "1", "MODELMORA_GRPC_PORT": "1"},
        "^MODELMORA_GRPC_PORT: must differ",
    ),
    (None, {"MODELMORA_HOST": "0.0.0.0"}, "^MODELMORA_HOST: 0.0.0.0 is reachable from other"),
    (None, {"MODELMORA_TRITON_GRPC_URL": "http://t:1"}, "must be host:port, no scheme"),
    (None, {"MODELMORA_TRITON_HTTP_URL": "http://t:1"}, "set triton_grpc_url as well"),
    (
        None,
        {"MODELMORA_TRITON_GRPC_URL": "t:1", "MODELMORA_TRITON_METRICS_URL": "t:2"},
        "^MODELMORA_TRITON_METRICS_URL: must begin with http://",
    ),
]


@pytest.mark.parametrize(("yaml", "environ", "message"), WRONG)
def test_error_names_the_key_and_what_is_allowed(
    yaml: str | None, environ: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        load(yaml, environ)
    assert "\n" not in str(caught.value)


def test_error_of_an_option_names_the_option() -> None:
    with pytest.raises(SettingsError, match=r"^--port: must be a whole number"):
        load(port="x")


def test_file_that_cannot_be_read() -> None:
    with pytest.raises(SettingsError, match=r"no-such\.yaml: cannot be read: No such file"):
        load_settings(config_file=Path("no-such.yaml"), environ={})
    Path("latin.yaml").write_bytes(b"host: caf\xe9")
    with pytest.raises(SettingsError, match=r"latin\.yaml: is not UTF-8"):
        load_settings(config_file=Path("latin.yaml"), environ={})


def test_which_file() -> None:
    assert find_config_file(None, {}) is None
    Path("modelmora.yaml").touch()
    assert find_config_file(None, {}) == Path("modelmora.yaml")
    assert find_config_file(None, {"MODELMORA_CONFIG": "b.yaml"}) == Path("b.yaml")
    assert find_config_file(Path("c.yaml"), {"MODELMORA_CONFIG": "b.yaml"}) == Path("c.yaml")


def test_network_needs_as_many_words() -> None:
    environ = {"MODELMORA_HOST": "0.0.0.0", "MODELMORA_ALLOW_UNAUTHENTICATED_NETWORK": "true"}
    assert load(environ=environ).host == "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@given(st.dictionaries(st.sampled_from([*Settings.__struct_fields__, "other"]), st.text()))
def test_any_environment_loads_or_is_refused_by_name(values: dict[str, str]) -> None:
    environ = {f"MODELMORA_{name.upper()}": text for name, text in values.items()}
    try:
        load_settings(environ=environ)
    except SettingsError as error:
        assert error.key in environ  # noqa: PT017
