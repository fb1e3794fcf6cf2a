"""Triton's repository extension through the scheduler: a real store and the real scheduler."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from controlplane.db import open_db
from controlplane.errors import InvalidInput, LoadFailed, ModelNotFound, ModelNotReady
from controlplane.events import EventBus
from controlplane.gateway import v2, v2_repository
from controlplane.gateway.errors import NotOffered
from controlplane.inference import again
from controlplane.lifecycle.effects import Loaded
from controlplane.lifecycle.scheduler import Scheduler
from controlplane.registry.model import NewModel
from controlplane.registry.store import ModelStore
from controlplane.settings import Settings
from tests.gateway import make_ready
from tests.waiting import eventually


class HeldEffects:
    """Loads and unloads end at once, unless `free` is cleared; `failure` makes loads fail."""

    def __init__(self):
        self.free = asyncio.Event()
        self.free.set()
        self.loads = []
        self.failure = None

    async def load(self, servable, timeout):
        self.loads.append(servable.key)
        await self.free.wait()
        if self.failure is not None:
            raise LoadFailed(servable.model_id, self.failure)
        return Loaded(memory_mb=10.0, process_id=None, seconds=0.1, response_time_ms=1.0)

    async def unload(self, servable, timeout):
        await self.free.wait()

    def fit_together(self, one, other):
        return True

    def kill_server(self):
        return False


@pytest.fixture
async def services():
    db, bus = open_db(":memory:"), EventBus()
    store, effects = ModelStore(db, bus), HeldEffects()
    scheduler = Scheduler(effects, bus, budget_mb=1000, max_models=5, load_timeout=5)
    for name in ("org/one", "org/two"):
        store.register(NewModel(model_id=name, task_type="txt2embed"))
        make_ready(store, name, "main")
    store.register(NewModel(model_id="org/raw", task_type="txt2embed"))
    yield SimpleNamespace(
        settings=Settings(load_timeout=5.0),
        store=store,
        scheduler=scheduler,
        effects=effects,
        server=SimpleNamespace(state="ready"),
        suspects=(suspects := []),
        suspect=suspects.append,
    )
    effects.free.set()
    await scheduler.close()
    db.close()


def states(services, **options):
    entries = v2_repository.index(services, **options)
    return [(e.name, e.version, e.state, e.reason) for e in entries]


async def test_index_tells_what_is_installed_and_what_is_loaded(services):
    unloaded = [("org--one", "1", "UNAVAILABLE", "unloaded")]
    two = [("org--two", "1", "UNAVAILABLE", "unloaded")]
    assert states(services) == unloaded + two
    assert states(services, ready=True) == []
    services.effects.free.clear()
    loading = asyncio.create_task(v2_repository.load(services, "org/one", {}))
    await eventually(lambda: services.effects.loads)
    assert states(services) == [("org--one", "1", "LOADING", "loading"), *two]
    services.effects.free.set()
    await loading
    assert states(services) == [("org--one", "1", "READY", ""), *two]
    assert states(services, ready=True) == [("org--one", "1", "READY", "")]


async def test_index_tells_why_a_load_failed(services):
    services.effects.failure = "no weights"
    with pytest.raises(LoadFailed):
        await v2_repository.load(services, "org/one", {})
    ((_, _, state, reason), _) = states(services)
    assert state == "UNAVAILABLE"
    assert "no weights" in reason


async def test_load_is_idempotent_and_waits_for_a_running_one(services):
    services.effects.free.clear()
    loads = [asyncio.create_task(v2_repository.load(services, "org/one", {})) for _ in range(5)]
    await eventually(lambda: services.effects.loads)
    await asyncio.sleep(0)
    assert not any(load.done() for load in loads)
    services.effects.free.set()
    await asyncio.gather(*loads)
    await v2_repository.load(services, "org--one", {})
    assert services.effects.loads == [("org--one", 1)]
    assert services.scheduler.view("org/one").active_requests == 0


async def test_unload_of_what_is_not_loaded_succeeds(services):
    for name in ("org/one", "org/unknown", "simple"):
        await v2_repository.unload(services, name, {"unload_dependents": True})
    await v2_repository.load(services, "org/one", {})
    await v2_repository.unload(services, "org/one", {})
    assert services.scheduler.view("org/one") is None


async def test_unload_waits_for_a_load_to_end(services):
    services.effects.free.clear()
    loading = asyncio.create_task(v2_repository.load(services, "org/one", {}))
    await eventually(lambda: services.effects.loads)
    unloading = asyncio.create_task(v2_repository.unload(services, "org/one", {}))
    await asyncio.sleep(0)
    services.effects.free.set()
    await asyncio.gather(loading, unloading)
    assert services.scheduler.view("org/one") is None


async def test_unload_of_a_load_that_fails_succeeds(services):
    services.effects.free.clear()
    services.effects.failure = "no weights"
    loading = asyncio.create_task(v2_repository.load(services, "org/one", {}))
    await eventually(lambda: services.effects.loads)
    unloading = asyncio.create_task(v2_repository.unload(services, "org/one", {}))
    await asyncio.sleep(0)
    services.effects.free.set()
    await unloading
    with pytest.raises(LoadFailed):
        await loading


async def test_what_runs_code_is_refused(services):
    for parameters in ({"config": "{}"}, {"file:1/model.py": "x", "config": "{}"}):
        with pytest.raises(NotOffered, match="runs code"):
            await v2_repository.load(services, "org/one", parameters)
    with pytest.raises(InvalidInput, match="'other'"):
        await v2_repository.load(services, "org/one", {"other": 1})
    with pytest.raises(InvalidInput, match="unload_dependents"):
        await v2_repository.unload(services, "org/one", {"unload_dependents": "yes"})
    assert services.effects.loads == []


async def test_load_of_what_cannot_be_loaded(services):
    with pytest.raises(ModelNotFound):
        await v2_repository.load(services, "org/unknown", {})
    with pytest.raises(ModelNotReady):
        await v2_repository.load(services, "org/raw", {})


# -- once more when the process died -----------------------------------------------------------


def one(services):
    return services.store.servable("org/one", None)


async def test_terms_of_a_request():
    now = asyncio.get_running_loop().time()
    plain = v2.terms(60.0)
    assert (plain.timeout, plain.priority) == (60.0, 3)
    assert plain.deadline == pytest.approx(now + 60, abs=10)
    assert v2.terms(60.0, priority=1).priority == 1
    assert v2.terms(60.0, priority=99).priority == 4
    assert v2.terms(60.0, timeout_us=1_500_000).timeout == 1.5
    assert v2.terms(60.0, timeout_us=2**63 - 1).timeout == 600.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Failed to process: Stub process 'org--one_0_0' is not healthy.", True),
        ("Request for unknown model: 'org--one' version 1 is not at ready state", True),
        ("Request for unknown model: 'org--one' has no available versions", True),
        ("ValueError: the input is not healthy", False),
        ("unexpected inference input 'x'", False),
    ],
)
def test_texts_that_say_a_request_was_not_run(text, expected):
    assert v2.was_not_run(text) is expected


async def test_a_request_whose_process_died_is_sent_once_more_when_it_is_back(services):
    target, sent = one(services), []

    async def send(leased):
        sent.append(services.scheduler.view("org/one").loaded_at)
        if len(sent) == 1:
            raise v2.AnswerLost(RuntimeError("connection lost"))
        return "answer"

    running = asyncio.create_task(v2.served(services, target, send, v2.terms(20.0)))
    await eventually(lambda: services.suspects)
    assert len(sent) == 1
    (resident,) = services.scheduler.residents()
    services.scheduler.declare_unhealthy(resident, "its process has died")
    assert await running == "answer"
    assert len(services.effects.loads) == len(sent) == 2
    assert sent[1] > sent[0]
    assert services.scheduler.view("org/one").active_requests == 0


async def test_a_request_is_not_sent_a_third_time(services, monkeypatch):
    monkeypatch.setattr(again, "NOTICE_SECONDS", 0.0)
    sent = []

    async def send(leased):
        sent.append(leased)
        raise v2.AnswerLost(LoadFailed("org/one", "cause"))

    with pytest.raises(LoadFailed, match="cause"):
        await v2.served(services, one(services), send, v2.terms(20.0))
    assert len(sent) == len(services.suspects) == 2
    with pytest.raises(LoadFailed, match="cause"):
        await v2.served(services, one(services), send, v2.terms(20.0), twice=False)
    assert len(sent) == 3
    assert services.scheduler.view("org/one").active_requests == 0


async def test_a_request_waits_for_a_server_that_comes_back(services):
    sent = []

    async def send(leased):
        sent.append(leased)
        if len(sent) == 1:
            services.server.state = "lost"
            services.scheduler.server_lost()
            raise v2.AnswerLost(RuntimeError("connection lost"))
        return "answer"

    running = asyncio.create_task(v2.served(services, one(services), send, v2.terms(20.0)))
    await eventually(lambda: services.suspects)
    await asyncio.sleep(0)
    assert len(sent) == 1
    services.scheduler.server_restored()
    assert await running == "answer"
