"""Makefile, CI, compose and images: what can be checked of them without Docker."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.settings import load_settings

ROOT = Path(__file__).parents[2]
TARGETS = {"demo", "serve", "test", "lint", "types", "imports", "bench", "clean"}
DOCKERFILES = sorted((ROOT / "deploy").glob("Dockerfile.*"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_lists_its_tasks() -> None:
    shown = make()
    assert shown.returncode == 0
    assert set(re.findall(r"^  make (\w+)", shown.stdout, re.MULTILINE)) >= TARGETS


@pytest.mark.parametrize("target", sorted(TARGETS - {"clean"}))
def test_each_task_prepares_the_environment(target: str) -> None:
    planned = make("--dry-run", "--always-make", target).stdout
    assert "-m venv" in planned
    assert "-c constraints.txt -e '.[dev]'" in planned


def test_an_unsupported_interpreter_is_named(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    done = make("-C", str(tmp_path), f"PYTHON={old}", "lint")
    assert done.returncode != 0
    assert f"needs Python 3.10, 3.11 or 3.12, and {old} is not one" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_the_tasks_and_parses() -> None:
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "set -euo pipefail" in script
    positions = [script.index(f"make {task}") for task in ("lint", "types", "imports", "test")]
    assert positions == sorted(positions)
    assert subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=False).returncode == 0
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_compose_names_what_exists(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert set(service["networks"]) <= compose["networks"].keys()
        volumes = {volume.split(":")[0] for volume in service["volumes"]}
        assert volumes <= compose["volumes"].keys()
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["cap_drop"] == ["ALL"]


def test_compose_keeps_triton_out_of_reach(compose: dict[str, Any]) -> None:
    triton, control_plane = compose["services"]["triton"], compose["services"]["controlplane"]
    assert "ports" not in triton
    assert triton["networks"] == ["triton"]
    assert compose["networks"]["triton"]["internal"] is True
    assert all(volume.endswith(":ro") for volume in triton["volumes"])
    assert all(port.startswith("127.0.0.1:") for port in control_plane["ports"])


def test_compose_settings_are_settings(compose: dict[str, Any]) -> None:
    image = (ROOT / "deploy/Dockerfile.controlplane").read_text(encoding="utf-8")
    environment = dict(re.findall(r"(MODELMORA_\w+)=(\S+)", image.partition("# 0.0.0.0 needs")[0]))
    given = compose["services"]["controlplane"]["environment"]
    environment |= {
        name: re.sub(r"\$\{\w+:[-?](.*)\}", r"\1", value)
        for name, value in given.items()
        if name.startswith("MODELMORA_")
    }
    settings = load_settings(config_file=_empty(), environ=environment)
    assert settings.host == "0.0.0.0"
    assert settings.triton_grpc_url == "triton:8001"


def test_compose_guards_tritons_control_apis(compose: dict[str, Any]) -> None:
    command = compose["services"]["triton"]["command"]
    header = compose["services"]["controlplane"]["environment"]["MODELMORA_TRITON_CONTROL_HEADER"]
    assert header.startswith("modelmora-control=${TRITON_CONTROL_SECRET:?")
    guards = [option for option in command if "restricted" in option]
    assert len(guards) == 2
    assert all(g.endswith(":modelmora-control=${TRITON_CONTROL_SECRET:?}") for g in guards)
    assert all("model-repository" in guard for guard in guards)


def _empty() -> Path:
    return Path(os.devnull)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfile(dockerfile: Path) -> None:
    text = dockerfile.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    instructions = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert instructions[0] == "FROM"
    assert {"USER", "HEALTHCHECK", "CMD"} <= set(instructions)
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users[-1] not in {"root", "0"}
    allowed = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    ]
    for line in lines:
        if line.startswith("COPY"):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists()
                assert source in allowed


def test_pre_commit_runs_the_same_tools() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    hooks = [hook["id"] for repo in yaml.safe_load(text)["repos"] for hook in repo["hooks"]]
    assert hooks == ["ruff-check", "ruff-format", "mypy", "lint-imports"]
