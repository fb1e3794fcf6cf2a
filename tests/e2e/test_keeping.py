"""Models that stay: kept, healed and brought back by the whole product, with real processes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.models import tiny_bert
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from controlplane.client import ModelMoraClient

pytestmark = [pytest.mark.e2e, pytest.mark.triton, pytest.mark.torch]

ONE, TWO = "org/one", "org/two"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server with two small models and room for one of them."""
    source = tiny_bert(tmp_path_factory.mktemp("tiny") / "m")
    running = Service(tmp_path_factory.mktemp("keeping"), forking=True, MAX_MODELS="1").start()
    try:
        with running.client() as client:
            for model in (ONE, TWO):
                client.install(model, source_url=source.as_uri(), timeout=120)
        yield running
    finally:
        running.end()


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.05)


def loaded(client: ModelMoraClient) -> list[str]:
    return [m.model_id for m in client.status().loaded_models if m.state == "loaded"]


def test_a_plan_and_a_warm_up(service: Service) -> None:
    with service.client() as client:
        warm = client.warm_up(ONE, samples=3)
        assert len(warm.times_ms) == 3
        assert loaded(client) == [ONE]
        plan = client.plan([TWO])
        (step,) = plan.models
        assert (step.verdict, step.evictions[0].model_id) == ("evicts", ONE)
        assert loaded(client) == [ONE]
        assert not client.plan([ONE, TWO]).fits


def test_a_kept_model_comes_back_after_every_death(service: Service) -> None:
    with service.client() as client:
        client.keep(ONE)
        until(lambda: loaded(client) == [ONE])
        pid = client.status().loaded_models[0].process_id
        assert pid is not None
        psutil.Process(pid).kill()  # the model's process
        until(lambda: [m.process_id for m in client.status().loaded_models] not in ([pid], []))
        until(lambda: loaded(client) == [ONE])
        triton = next(p for p in service.family() if p.name() == "tritonserver")
        triton.kill()
        until(lambda: not triton.is_running())
        until(lambda: loaded(client) == [ONE])
        assert len(client.embed(ONE, "hello")[0]) > 0
    assert service.stop() == 0
    with service.start().client() as client:  # and after a restart of the service
        until(lambda: loaded(client) == [ONE])
        client.release(ONE)
        assert len(client.embed(TWO, "hello")[0]) > 0
        assert loaded(client) == [TWO]
