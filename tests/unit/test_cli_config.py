"""init, config show, config validate and serve's options: they need no server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.cli.config import template
from controlplane.cli.main import run
from controlplane.cli.settings_table import SETTINGS
from controlplane.registry.catalog_file import read_catalog
from controlplane.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_table_has_every_setting() -> None:
    assert [setting.name for setting in SETTINGS] == list(Settings.__struct_fields__)


def test_init_writes_a_file_that_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init"]) == 0
    assert capsys.readouterr().out == "modelmora.yaml is written. Next: modelmora serve\n"
    assert load_settings(environ={}) == Settings()
    assert [path.name for path in Path().iterdir()] == ["modelmora.yaml"]
    assert Path("modelmora.yaml").stat().st_mode & 0o777 == 0o644


def test_every_line_of_the_file_is_valid_when_uncommented() -> None:
    lines = [line for line in template().splitlines() if not re.match(r"# \S", line)]
    text = "\n".join(line.removeprefix("#") for line in lines)
    assert yaml.safe_load(text).keys() == {*Settings.__struct_fields__, "models"}
    Path("modelmora.yaml").write_text(text)
    settings = load_settings(environ={"TRITON_CONTROL_SECRET": "s3cret"})
    assert settings.control_header == ("modelmora-control", "s3cret")
    assert settings.preload == ("sentence-transformers/all-MiniLM-L6-v2",)
    assert settings.port == Settings().port
    first, second = read_catalog(Path("modelmora.yaml"), {})
    assert (first.model_id, first.preload) == ("sentence-transformers/all-MiniLM-L6-v2", True)
    assert second.source_url == (Path.cwd() / "models/my-model").as_uri()
    assert second.pinned


def test_init_refuses_to_overwrite(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("port: 9000\n")
    assert run(["init", "--config", "mine.yaml"]) == 1
    assert capsys.readouterr().err == "Error: mine.yaml exists; replace it with --force.\n"
    assert Path("mine.yaml").read_text() == "port: 9000\n"
    assert run(["init", "--config", "mine.yaml", "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": "mine.yaml", "created": True}
    assert Path("mine.yaml").read_text() == template()
    assert [path.name for path in Path().iterdir()] == ["mine.yaml"]


def test_init_where_nothing_can_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "--config", "no/such/place.yaml"]) == 1
    error = "Error: no/such/place.yaml cannot be written: No such file or directory.\n"
    assert capsys.readouterr().err == error


def test_show_names_each_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("modelmora.yaml").write_text("max_models: 3\n")
    monkeypatch.setenv("MODELMORA_PORT", "9000")
    assert run(["config", "show", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["max_models"] == {"value": 3, "source": "modelmora.yaml"}
    assert report["port"] == {"value": 9000, "source": "MODELMORA_PORT"}
    assert report["idle_ttl"] == {"value": None, "source": "default"}
    assert run(["config", "show"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["port", "9000", "MODELMORA_PORT"] in lines
    assert ["allow_pickle", "false", "default"] in lines
    assert ["preload", "-", "default"] in lines


def test_show_masks_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELMORA_TRITON_GRPC_URL", "triton:8001")
    monkeypatch.setenv("MODELMORA_TRITON_CONTROL_HEADER", "modelmora-control=s3cret")
    assert run(["config", "show"]) == 0
    assert "s3cret" not in capsys.readouterr().out


def test_validate(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "validate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"valid": True}
    Path("a.yaml").write_text("port: 9000\n")
    assert run(["config", "validate", "--file", "a.yaml"]) == 0
    assert capsys.readouterr().out == "Valid: a.yaml\n"
    Path("a.yaml").write_text("prot: 9000\n")
    assert run(["config", "validate", "--file", "a.yaml"]) == 2
    error = "Error: prot: is not a setting; did you mean port? All of them: modelmora config show\n"
    assert capsys.readouterr().err == error


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--port", "x"], "Error: --port: must be a whole number (got 'x')\n"),
        (["--log-level", "loud"], "Error: --log-level: must be one of DEBUG, INFO"),
        (["--host", "0.0.0.0"], "Error: --host: 0.0.0.0 is reachable from other machines"),
        (["--config", "no.yaml"], "Error: no.yaml: cannot be read: No such file or directory\n"),
    ],
    ids=str,
)
def test_serve_checks_its_settings(
    capsys: pytest.CaptureFixture[str], arguments: list[str], error: str
) -> None:
    assert run(["serve", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(error)
    assert captured.err.count("\n") == 1


def test_serve_takes_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    run(["serve", "--help"])
    shown = capsys.readouterr().out
    options: list[Any] = [f"--{name.replace('_', '-')}" for name in Settings.__struct_fields__]
    assert [option for option in options if option not in shown] == []
