"""Engines as users handle them: chosen at install, by name, and measured again while serving."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from controlplane.client import InstallFailed, ModelMoraApiError, vectors
from converters.candidates import NEGLIGIBLE_SECONDS
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from controlplane.client import ModelMoraClient

pytestmark = [pytest.mark.e2e, pytest.mark.triton]

MODEL = "org/tiny"
TEXTS = ["the cat plays in the house", "a", "the small dog eats by the river"]
ENOUGH = 240.0
FAST_MS = 1000 * NEGLIGIBLE_SECONDS


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("service"), forking=True).start()
    try:
        with running.client() as client:
            client.install(MODEL, source_url=tiny.as_uri(), timeout=ENOUGH)
        yield running
    finally:
        running.end()


@pytest.fixture
def client(service: Service) -> Iterator[ModelMoraClient]:
    with service.client() as opened:
        yield opened


def embeddings(client: ModelMoraClient) -> np.ndarray:
    return np.asarray(vectors(client.infer(MODEL, {"text": TEXTS})))


def test_a_model_that_is_fast_enough_takes_the_default(client: ModelMoraClient) -> None:
    model = client.get(MODEL)
    assert model.artefact is not None
    first, *others = model.artefact["candidates"]
    assert (first["engine"], first["precision"]) == ("onnxruntime", "fp32")
    # On a busy machine even a tiny model may not have been fast enough in any of its runs.
    if not others:
        assert (model.engine, model.artefact["precision"]) == ("onnxruntime", "fp32")
        assert first["chosen"] is True
    assert others == [] or max(first["milliseconds"].values()) >= FAST_MS
    assert set(first["milliseconds"]) == {"1", "8", "32"}
    assert first["min_cosine"] >= 0.9999


def test_tuning_switches_a_loaded_model_and_requests_go_on(client: ModelMoraClient) -> None:
    """The new engine serves the same vectors from a process of its own; nobody is refused."""
    before = embeddings(client)
    stop, failures = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            try:
                embeddings(client)
            except ModelMoraApiError as error:
                failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        tuned = client.tune(MODEL, timeout=ENOUGH, engine="openvino", precision="fp32")
    finally:
        stop.set()
        asking.join()
    assert failures == []
    assert (tuned.engine, tuned.status) == ("openvino", "ready")
    np.testing.assert_allclose(embeddings(client), before, atol=1e-4)
    assert [loaded.model_id for loaded in client.status().loaded_models] == [MODEL]


def test_what_this_machine_has_not_is_refused_and_the_old_one_serves(
    client: ModelMoraClient,
) -> None:
    was = client.get(MODEL)
    with pytest.raises(InstallFailed, match="onnxruntime fp32") as raised:
        client.tune(MODEL, timeout=ENOUGH, engine="onnxruntime", precision="bf16")
    assert "bf16" in str(raised.value)
    now = client.get(MODEL)
    assert (now.engine, now.status, now.artefact) == (was.engine, "ready", was.artefact)
    assert embeddings(client).shape == (3, 32)


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"engine": "abacus"}, "must be one of onnxruntime, openvino, torchscript, auto"),
        ({"precision": "fp8"}, "must be one of fp32, bf16, fp16, int8, auto"),
    ],
)
def test_unknown_names_are_told_what_there_is(
    client: ModelMoraClient, choice: dict[str, str], says: str
) -> None:
    with pytest.raises(ModelMoraApiError, match=r"must") as raised:
        client.tune(MODEL, **choice)
    assert says in str(raised.value) + str(raised.value.details)


def test_an_installed_model_is_not_reinstalled_for_its_engine(client: ModelMoraClient) -> None:
    made = client.get(MODEL)
    other = "onnxruntime" if made.engine == "openvino" else "openvino"
    with pytest.raises(ModelMoraApiError) as raised:
        client.install(MODEL, engine=other, timeout=ENOUGH)
    assert "modelmora tune" in str(raised.value) + str(raised.value.details)
