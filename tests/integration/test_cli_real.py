"""The command line against ModelMora itself: the answers that `tests/rest_server.py` recorded."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from controlplane.cli import exits
from controlplane.client import AsyncModelMoraClient, ModelMoraApiError
from tests import rest_server as recorded
from tests.models import HIDDEN, tiny_bert
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from controlplane.client_types import ModelInfo

pytestmark = [pytest.mark.triton, pytest.mark.torch]

MODEL_ID = "tests/tiny-bert"


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Shell:
    """Runs `modelmora …` as a user of `service` would."""

    def __init__(self, service: Service, source: Path) -> None:
        self.service = service
        self.source = source

    def __call__(self, *arguments: str) -> Result:
        environment = self.service.environment() | {"MODELMORA_URL": self.service.url}
        done = subprocess.run(
            [sys.executable, "-m", "controlplane", *arguments],
            cwd=self.source.parent,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def json(self, *arguments: str) -> Any:
        result = self(*arguments, "--json")
        assert (result.code, result.err) == (0, "")
        return json.loads(result.out)


@pytest.fixture(scope="module")
def modelmora(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A server of its own with a small random BERT installed, through the CLI."""
    home = tmp_path_factory.mktemp("cli")
    source = tiny_bert(home / "tiny bert")
    service = Service(home / "server", forking=True).start()
    shell = Shell(service, source)
    try:
        installed = shell("install", MODEL_ID, "--source", source.name)
        assert installed.code == 0, installed.err
        assert f"{MODEL_ID}@main is installed ({HIDDEN} dimensions" in installed.out
        assert "Verifying:" in installed.err or "Loading:" in installed.err
        yield shell
    finally:
        service.end()


def keys(value: Any) -> Any:
    """The shape of a document: its keys, all the way down."""
    if isinstance(value, dict):
        return {key: keys(item) for key, item in value.items()}
    return [keys(value[0])] if isinstance(value, list) and value else type(value).__name__


def test_install_again_changes_nothing(modelmora: Shell) -> None:
    before = modelmora.json("info", MODEL_ID)
    assert "is already installed" in modelmora("install", MODEL_ID).out
    assert modelmora.json("info", MODEL_ID) == before
    assert before["source_url"] == modelmora.source.as_uri()
    assert before["artefact"]["dimension"] == HIDDEN


def test_list_and_filters(modelmora: Shell) -> None:
    assert [m["model_id"] for m in modelmora.json("list")["data"]] == [MODEL_ID]
    assert modelmora.json("list", "--status", "failed")["data"] == []
    assert modelmora.json("list", "--search", "tiny", "--task", "txt2embed")["data"] != []
    assert modelmora("list", "--status", "asleep").code == exits.USAGE


def test_load_status_infer_unload(modelmora: Shell) -> None:
    loaded = modelmora.json("load", MODEL_ID)
    assert loaded["memory_usage_mb"] > 0
    assert modelmora("load", MODEL_ID).code == exits.CONFLICT
    assert modelmora("uninstall", MODEL_ID).code == exits.CONFLICT
    result = modelmora.json("infer", MODEL_ID, "the cat", "a dog")
    assert [len(vector) for vector in result["output_data"]["embeddings"]] == [HIDDEN] * 2
    status = modelmora.json("status")
    assert [m["model_id"] for m in status["loaded_models"]] == [MODEL_ID]
    assert modelmora.json("health")["models"]["healthy_count"] == 1
    assert MODEL_ID in modelmora("status").out
    assert modelmora.json("unload", MODEL_ID)["unloaded"] is True
    assert modelmora("unload", MODEL_ID).code == exits.NOT_FOUND


def test_answers_have_the_recorded_shape(modelmora: Shell) -> None:
    modelmora("infer", MODEL_ID, "the cat")
    actual = modelmora.json("status")
    assert keys(recorded.STATUS).keys() <= actual.keys()
    assert recorded.LOADED.keys() <= actual["loaded_models"][0].keys()
    assert recorded.STATUS["memory"].keys() <= actual["memory"].keys()
    info = modelmora.json("info", MODEL_ID)
    assert recorded.model().keys() - {"a_field_of_tomorrow", "revision"} - info.keys() <= {
        "measured_memory_mb"
    }
    assert info["facts"]["vector_size"] == {
        "value": HIDDEN,
        "source": "file",
        "file": info["facts"]["vector_size"]["file"],
    }
    (operation,) = modelmora.json("operations", "list")["data"]
    assert recorded.operation().keys() <= operation.keys()
    assert operation["status"] == "succeeded"
    inferred = modelmora.json("infer", MODEL_ID, "the cat", "a dog")
    assert keys(inferred).keys() == keys(recorded.INFERRED).keys()
    assert inferred["metadata"].keys() == recorded.INFERRED["metadata"].keys()
    health = modelmora.json("health")
    assert {"status", "checks", "version", "models"} <= health.keys()
    assert health["checks"].keys() == recorded.READY["checks"].keys()


def test_failures(modelmora: Shell, tmp_path: Path) -> None:
    missing = modelmora("info", "tests/absent")
    assert missing.code == exits.NOT_FOUND
    assert missing.err.count("\n") == 1
    assert modelmora("infer", MODEL_ID, " ").code == exits.USAGE
    refused = modelmora("install", "tests/empty", "--source", str(tmp_path))
    assert refused.code == exits.FAILED
    assert "config.json" in refused.err.splitlines()[-1]
    assert modelmora("uninstall", "tests/empty").code == exits.NOT_FOUND  # not even registered
    assert modelmora("info", "tests/empty").code == exits.NOT_FOUND


def test_the_async_client(modelmora: Shell) -> None:
    async def use() -> tuple[ModelInfo, list[list[float]]]:
        async with AsyncModelMoraClient(modelmora.service.url) as client:
            with pytest.raises(ModelMoraApiError, match="not registered"):
                await client.get("tests/absent")
            changed = await client.update(MODEL_ID, display_name="Tiny")
            one, two = await asyncio.gather(
                client.embed(MODEL_ID, "the cat"), client.embed(MODEL_ID, ["the cat"])
            )
            assert one[0] == pytest.approx(two[0], abs=1e-5)
            return changed, one

    changed, vectors = asyncio.run(use())
    assert changed.display_name == "Tiny"
    assert sum(number * number for number in vectors[0]) == pytest.approx(1, abs=1e-4)


def test_serve_refuses_in_one_line(modelmora: Shell) -> None:
    taken = modelmora("serve")
    assert taken.code == exits.FAILED
    assert taken.err.startswith("Error: Another ModelMora is running on the data directory")
    assert taken.err.count("\n") == 1
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        busy = modelmora("serve", "--data-dir", "other", "--port", str(port))
    assert busy.code == exits.FAILED
    assert f"Cannot listen on 127.0.0.1:{port}" in busy.err
    assert busy.err.count("\n") == 1


def test_serve_ends_on_ctrl_c_with_0(tmp_path: Path) -> None:
    service = Service(tmp_path).start()
    try:
        assert service.process is not None
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(60) == 0
    finally:
        service.end()
