"""Keeping, planning and warming up over REST, with the real store and scheduler."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from controlplane.db import open_db
from controlplane.events import EventBus
from controlplane.lifecycle.effects import Loaded
from controlplane.lifecycle.keeping import Keeping
from controlplane.lifecycle.scheduler import Scheduler
from controlplane.lifecycle.state import ModelState
from controlplane.registry.keeping import MemoryLimits
from controlplane.registry.model import ModelChange, NewModel, ResourceRequirements
from controlplane.settings import Settings
from controlplane.triton.failures import TritonError
from tests.gateway import _http_server, make_ready
from tests.rest_services import BUDGET_MB, rest_services
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from controlplane.gateway.services import Services


class DeclaredEffects:
    """Loads at once; a model takes what it was said to need."""

    fault: str | None = None

    async def load(self, servable: Any, timeout: float) -> Loaded:
        return Loaded(servable.need_mb, None, seconds=0.1, response_time_ms=1.0)

    async def unload(self, servable: Any, timeout: float) -> None:
        return None

    def fit_together(self, one: Any, other: Any) -> bool:
        return True

    async def probe(self, servable: Any) -> float:
        if self.fault is not None:
            raise TritonError(self.fault)
        return 2.5

    def kill_server(self) -> bool:
        return False


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[Services]:
    settings = Settings(data_dir=tmp_path / "data")
    with contextlib.closing(open_db(settings.database)) as db:
        found = rest_services(db, tmp_path, settings, DeclaredEffects())
        found.store.memory_limits = MemoryLimits(BUDGET_MB, 3)
        Keeping(found.store, found.scheduler, found.bus)
        yield found
        await found.scheduler.close()


@pytest.fixture
async def http(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    async with _http_server(services) as port:
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=20) as client:
            yield client
        services.store.event_log.close()


def add(services: Services, name: str, memory_mb: int = 200) -> str:
    """A ready model that declares its need; its path."""
    needs = ResourceRequirements(memory_mb=memory_mb)
    model_id = f"org/{name}"
    services.store.register(NewModel(model_id=model_id, task_type="txt2embed"))
    make_ready(services.store, model_id, "main")
    services.store.update(model_id, ModelChange(resource_requirements=needs))
    return f"/api/v1/models/{model_id}"


def state(services: Services, name: str) -> ModelState | None:
    shown = services.scheduler.view(f"org/{name}")
    return shown.state if shown else None


async def test_a_model_that_is_to_be_kept_is_loaded_and_stays(http, services) -> None:
    kept = add(services, "kept")
    for name in ("a", "b", "c"):
        add(services, name)
    answer = (await http.put(kept, json={"keep_loaded": True})).json()
    assert answer["keep_loaded"] is True
    await eventually(lambda: state(services, "kept") is ModelState.LOADED)
    for name in ("a", "b", "c"):
        assert (await http.post(f"/api/v1/models/org/{name}/load")).status_code == 200
    assert state(services, "kept") is ModelState.LOADED
    assert (await http.get(kept)).json()["keep_loaded"] is True
    await http.put(kept, json={"keep_loaded": False})
    assert not services.scheduler.policy_of("org/kept").keep_loaded


async def test_more_than_fits_cannot_be_kept(http, services) -> None:
    for name in ("a", "b", "c"):
        add(services, name)
    for name in ("a", "b"):
        await http.put(f"/api/v1/models/org/{name}", json={"keep_loaded": True})
    refused = await http.put("/api/v1/models/org/c", json={"keep_loaded": True})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (409, "KEPT_MODELS_TOO_LARGE")
    assert "modelmora release" in error["message"]
    assert (await http.get("/api/v1/models/org/c")).json()["keep_loaded"] is False


async def test_a_kept_model_is_loaded_when_it_gets_ready(http, services) -> None:
    new = {"model_id": "org/new", "task_type": "txt2embed", "keep_loaded": True, "idle_ttl": 5}
    answer = (await http.post("/api/v1/models", json=new)).json()
    assert (answer["keep_loaded"], answer["idle_ttl"]) == (True, 5)
    make_ready(services.store, "org/new", "main")
    await eventually(lambda: state(services, "new") is ModelState.LOADED)
    await services.scheduler.unload("org/new")
    services.store.delete("org/new")
    assert not services.scheduler.policy_of("org/new").keep_loaded


async def test_the_idle_time_of_a_model_is_kept_with_it(http, services) -> None:
    path = add(services, "a")
    assert (await http.put(path, json={"idle_ttl": -1})).json()["idle_ttl"] == -1
    assert services.scheduler.policy_of("org/a").idle_ttl == -1
    assert "idle_ttl" not in (await http.put(path, json={"idle_ttl": None})).json()
    wrong = await http.put(path, json={"idle_ttl": 1e300})
    assert wrong.json()["error"]["details"]["fields"].keys() == {"idle_ttl"}


async def test_what_the_catalog_says_is_known_after_a_restart(services) -> None:
    add(services, "a")
    services.store.update("org/a", ModelChange(keep_loaded=True, idle_ttl=9.0))
    bus = EventBus()
    again = Scheduler(DeclaredEffects(), bus, budget_mb=BUDGET_MB, max_models=3, load_timeout=10)
    Keeping(services.store, again, bus).bring_all()
    assert again.policy_of("org/a").keep_loaded
    assert again.policy_of("org/a").idle_ttl == 9.0
    await eventually(lambda: [v.model_id for v in again.loaded()] == ["org/a"])
    await eventually(lambda: again.loaded()[0].state is ModelState.LOADED)
    await again.close()


async def test_a_plan_tells_and_changes_nothing(http, services) -> None:
    for name in ("a", "b", "c"):
        add(services, name)
    for name in ("a", "b"):
        await http.post(f"/api/v1/models/org/{name}/load")
    models = [{"model_id": "org/b"}, {"model_id": "org/c"}]
    plan = (await http.post("/api/v1/lifecycle/plan", json={"models": models})).json()
    assert plan["fits"] is True
    assert [step["verdict"] for step in plan["models"]] == ["loaded", "evicts"]
    step = plan["models"][1]
    assert (step["need_mb"], step["need_source"]) == (200.0, "declared")
    assert step["evictions"][0]["model_id"] == "org/a"
    assert "least recently used" in step["evictions"][0]["reason"]
    assert (step["used_mb_before"], step["used_mb_after"]) == (400.0, 400.0)
    assert state(services, "a") is ModelState.LOADED
    assert state(services, "c") is None


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"models": []}, 400, "VALIDATION_ERROR"),
        ({"models": [{"model_id": "org/none"}]}, 404, "MODEL_NOT_FOUND"),
        ({"models": [{"model_id": "org/a", "version": "v9"}]}, 404, "VERSION_NOT_FOUND"),
        ({}, 400, "VALIDATION_ERROR"),
    ],
)
async def test_a_plan_of_nothing_or_of_the_unknown_is_refused(
    http, services, body: dict[str, Any], status: int, code: str
) -> None:
    add(services, "a")
    answer = await http.post("/api/v1/lifecycle/plan", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_a_warm_up_loads_and_answers_times(http, services) -> None:
    path = add(services, "a")
    answer = (await http.post(f"{path}/warmup", json={"samples": 3})).json()
    assert answer["times_ms"] == [2.5, 2.5, 2.5]
    assert answer["median_ms"] == 2.5
    assert state(services, "a") is ModelState.LOADED
    assert len((await http.post(f"{path}/warmup")).json()["times_ms"]) == 10
    wrong = await http.post(f"{path}/warmup", json={"samples": 0})
    assert wrong.json()["error"]["details"]["fields"].keys() == {"samples"}


async def test_a_warm_up_that_fails_says_so_and_holds_nothing(http, services, monkeypatch) -> None:
    path = add(services, "a")
    monkeypatch.setattr(DeclaredEffects, "fault", "the answer was garbage")
    failed = await http.post(f"{path}/warmup")
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "INFERENCE_FAILED")
    shown = services.scheduler.view("org/a")
    assert shown is not None
    assert shown.active_requests == 0
