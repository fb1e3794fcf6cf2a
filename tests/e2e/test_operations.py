"""Operations and catalog files on the whole product: watched while it stops, and resumed."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from controlplane.cli.main import run
from controlplane.client_types import ModelMoraApiError, ServerUnreachable
from tests.models import tiny_bert
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from controlplane.client_operation_types import Operation

pytestmark = [pytest.mark.e2e, pytest.mark.triton]

TINY = "tests/tiny-bert"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "own")
    yield service
    service.end()


def test_a_watched_server_stops_at_once_and_the_next_one_finishes_the_work(
    own: Service, tmp_path: Path
) -> None:
    source = tiny_bert(tmp_path / "source")
    own.start()
    with own.client() as client:
        client.register(TINY, source_url=source.as_uri())  # the files tell the task
        operation = client.download(TINY)
    seen: list[Operation] = []
    began = threading.Event()

    def watch() -> None:
        def note(state: Operation) -> None:
            seen.append(state)
            if state.phase == "exporting":
                began.set()

        with own.client() as client, pytest.raises((ServerUnreachable, ModelMoraApiError)):
            client.follow_operation(operation.id, note)

    watching = threading.Thread(target=watch)
    watching.start()
    assert began.wait(60)
    stopping = time.monotonic()
    assert own.stop() == 0
    assert time.monotonic() - stopping < 20  # not the half minute that requests are given
    watching.join(30)
    assert not watching.is_alive()
    assert {state.status for state in seen} <= {"pending", "running"}
    own.start()
    with own.client() as client:
        ended = client.follow_operation(operation.id, timeout=120)
        assert (ended.status, ended.attempts) == ("succeeded", 2)
        assert client.embed(TINY, "hello")
    assert own.stop() == 0


def test_a_wrong_curated_list_is_named_at_the_start(own: Service) -> None:
    own.data_dir.mkdir(parents=True)
    (own.data_dir / "model_configs.yaml").write_text("models: {a/b: {vector_size: 0}}")
    assert own.spawn().wait(30) == 2
    assert "models[a/b].vector_size: must be above 0" in own.log.splitlines()[-1]


def test_a_catalog_file_is_installed_and_preloaded(
    own: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own.forking = True
    tiny_bert(tmp_path / "models" / "tiny")
    file = tmp_path / "modelmora.yaml"
    file.write_text(f"models:\n  - name: {TINY}\n    source: ${{HERE:-.}}/models/tiny\n")
    own.start()
    monkeypatch.setenv("MODELMORA_URL", own.url)
    monkeypatch.setenv("HERE", str(tmp_path))
    assert run(["catalog", "plan", "--file", str(file)]) == 0
    assert "register, install" in capsys.readouterr().out
    assert run(["catalog", "sync", "--file", str(file)]) == 0
    assert run(["catalog", "sync", "--file", str(file)]) == 0
    assert "All models are as the file wants them." in capsys.readouterr().out
    file.write_text(file.read_text() + "    preload: true\n")
    assert run(["catalog", "sync", "--file", str(file)]) == 0
    assert own.stop() == 0
    own.start()
    deadline = time.monotonic() + 60
    while not httpx.get(f"{own.url}/api/v1/status").json()["loaded_models"]:
        assert time.monotonic() < deadline, "it was not preloaded"
        time.sleep(0.05)
    assert own.stop() == 0
